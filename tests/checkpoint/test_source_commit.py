from __future__ import annotations

import re
import subprocess
from pathlib import Path

from megatron_dsmath.checkpoint.manifest import software, source_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_marked_if_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "One")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert source_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    source_commit.cache_clear()
    assert source_commit(tmp_path) == f"{commit}-dirty"


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    assert source_commit(installed) == "unknown"


def test_the_manifest_contains_the_commit() -> None:
    assert software()["commit"] == source_commit()
