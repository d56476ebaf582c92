from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.checkpoint.manifest import MANIFEST, Manifest, read_manifest, software, source_commit
from megatron_dsmath.errors import CheckpointError
from tests.support.runs import run_config

HASH = "0" * 64


def written() -> dict[str, Any]:
    manifest = Manifest(
        kind="weights",
        step=0,
        next_sample=0,
        consumed_tokens=0,
        model=run_config().model,
        layout={},
        precision="bf16",
        tokenizer_fingerprint=None,
        state={},
    )
    content: dict[str, Any] = json.loads(manifest.to_json())
    return content


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"format": "another checkpoint"}, "format"),
        ({"version": 2}, "version"),
        ({"kind": "pickle"}, "kind"),
        ({"step": -1}, "step"),
        ({"step": "4"}, "step"),
        ({"step": 4.5}, "step"),
        ({"model": {}}, "model.layers"),
        ({"surprise": 1}, "surprise"),
        ({"files": {"a": {"bytes": -1, "sha256": HASH}}}, "files.a.bytes"),
        ({"files": {"a": {"bytes": 1, "sha256": "xyz"}}}, "files.a.sha256"),
        ({"files": {"../a": {"bytes": 1, "sha256": HASH}}}, "files.../a"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": HASH}}}, "files./etc/passwd"),
        ({"files": {"a/./b": {"bytes": 1, "sha256": HASH}}}, "files.a/./b"),
        ({"files": {MANIFEST: {"bytes": 1, "sha256": HASH}}}, f"files.{MANIFEST}"),
    ],
)
def test_an_invalid_value_is_refused_with_its_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(written() | changes))
    with pytest.raises(CheckpointError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value.where).startswith(f"{tmp_path / MANIFEST}: {key}")


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(written()))
    assert read_manifest(tmp_path).model == run_config().model


def test_nan_and_infinity_are_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(written()).replace("1e-06", "NaN"))
    with pytest.raises(CheckpointError, match="norm_epsilon"):
        read_manifest(tmp_path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"state": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_manifest(tmp_path)


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
