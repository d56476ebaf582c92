from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.checkpoint import store, writer_process
from megatron_dsmath.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from megatron_dsmath.errors import CheckpointError, OutputError
from megatron_dsmath.files import directories
from tests.support.runs import run_config


def fill(folder: Path, content: str = "weights") -> None:
    (folder / "shards").mkdir()
    (folder / "shards" / "__0_0.distcp").write_text(content * 100)
    (folder / "shards" / ".metadata").write_text(content)
    (folder / "tokenizer.json").write_text("{}")


def manifest(step: int, folder: Path, **changes: Any) -> Manifest:
    run = run_config()
    values = {
        "kind": "training",
        "step": step,
        "next_sample": 8 * step,
        "consumed_tokens": 256 * step,
        "model": run.model.model_dump(mode="json"),
        "layout": run.parallel.model_dump(mode="json"),
        "precision": "fp32",
        "tokenizer_fingerprint": None,
        "state": {"step": step},
        "files": store.hash_files(folder),
    }
    return Manifest(**{**values, **changes})


def begin(root: Path, step: int) -> Path:
    """As `training.checkpointing` begins a checkpoint."""
    store.set_aside_damaged(root / f"step_{step}")
    return directories.begin(root / f"step_{step}")


def publish(incomplete: Path, manifest: Manifest, keep: int = 100) -> Path:
    writer_process.publish(memoryview(b""), str(incomplete), manifest.to_json(), keep, [])
    return incomplete.with_name(f"step_{manifest.step}")


def save(root: Path, step: int) -> Path:
    incomplete = begin(root, step)
    fill(incomplete, f"weights of {step}")
    return publish(incomplete, manifest(step, incomplete))


def test_saved_checkpoints_are_listed_verified_and_found(tmp_path: Path) -> None:
    for step in (4, 10):
        save(tmp_path, step)
    assert store.newest_checkpoint(tmp_path) == tmp_path / "step_10"  # in numeric order
    rows = store.listing(tmp_path)
    assert [(row["step"], row["tokens"]) for row in rows] == [(4, 1024), (10, 2560)]
    assert {row["kind"] for row in rows} == {"training"}
    assert rows[0]["size_bytes"] == len("weights of 4") * 101 + 2
    read = store.verify(tmp_path / "step_10")
    assert (read.step, read.next_sample, read.state) == (10, 80, {"step": 10})
    assert sorted(read.files) == ["shards/.metadata", "shards/__0_0.distcp", "tokenizer.json"]


def test_a_checkpoint_is_found_by_the_run_directory(tmp_path: Path) -> None:
    published = save(tmp_path / "checkpoints", 4)
    assert store.locate(tmp_path) == store.locate(tmp_path / "checkpoints") == store.locate(published) == published
    for path in (tmp_path, tmp_path / "checkpoints", published):
        assert [row["path"] for row in store.listing(path)] == [str(published)]


def test_an_incomplete_checkpoint_is_not_found(tmp_path: Path) -> None:
    incomplete = begin(tmp_path, 4)
    fill(incomplete)
    (incomplete / MANIFEST).write_text(manifest(4, incomplete).to_json())
    assert store.newest_checkpoint(tmp_path) is None
    assert store.listing(tmp_path) == []


def test_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    fill(tmp_path)
    found = {name: entry.sha256 for name, entry in store.hash_files(tmp_path).items()}
    lines = subprocess.run(["sha256sum", *found], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found == {name: digest for digest, name in (line.split("  ") for line in lines.splitlines())}


def test_a_published_step_is_never_written_again(tmp_path: Path) -> None:
    save(tmp_path, 4)
    with pytest.raises(OutputError, match="exists already"):
        begin(tmp_path, 4)


def test_the_second_writer_of_a_step_is_refused(tmp_path: Path) -> None:
    first, second = begin(tmp_path, 4), begin(tmp_path, 4)
    fill(first, "first")
    fill(second, "second")
    publish(first, manifest(4, first))
    with pytest.raises(OutputError, match="exists already"):
        publish(second, manifest(4, second))
    assert (tmp_path / "step_4/shards/.metadata").read_text() == "first"


def test_files_that_differ_from_the_manifest_are_not_published(tmp_path: Path) -> None:
    incomplete = begin(tmp_path, 4)
    fill(incomplete)
    described = manifest(4, incomplete)
    (incomplete / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        publish(incomplete, described)
    assert store.newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["shards/.metadata", "shards/__0_0.distcp", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_the_error_names_the_damaged_file(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 4) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "grow": content + b"x"}
        path.write_bytes(changed[damage])
    with pytest.raises(CheckpointError) as caught:
        store.verify(tmp_path / "step_4")
    assert caught.value.where == path
    assert caught.value.exit_code == 78


def test_ranks_together_verify_every_file(tmp_path: Path) -> None:
    path = save(tmp_path, 4) / "shards/.metadata"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    found = 0
    for rank in range(2):
        try:
            store.verify(tmp_path / "step_4", rank, 2)
        except CheckpointError:
            found += 1
    assert found == 1


@pytest.mark.fault(
    "R7",
    injected="`LATEST` wrong, of nowhere, empty, garbage, gone",
    where="the store alone",
    holds="no effect",
)
@pytest.mark.parametrize("content", ["step_4", "step_999", "", "\0garbage", None])
def test_the_file_latest_has_no_effect(tmp_path: Path, content: str | None) -> None:
    save(tmp_path, 4)
    save(tmp_path, 8)
    assert (tmp_path / store.LATEST).read_text() == "step_8\n"
    if content is None:
        (tmp_path / store.LATEST).unlink()
    else:
        (tmp_path / store.LATEST).write_text(content)
    assert store.newest_checkpoint(tmp_path) == tmp_path / "step_8"


DAMAGED_MANIFESTS = ["", "{", "[]", "null", '{"format": "other"}', "\0" * 50]


@pytest.mark.parametrize("content", DAMAGED_MANIFESTS)
def test_a_step_without_a_valid_manifest_is_skipped_and_listed_as_damaged(tmp_path: Path, content: str) -> None:
    save(tmp_path, 4)
    (save(tmp_path, 8) / MANIFEST).write_text(content)
    assert store.newest_checkpoint(tmp_path) == tmp_path / "step_4"
    assert [row["kind"] for row in store.listing(tmp_path)] == ["training", "damaged"]


@pytest.mark.parametrize("content", DAMAGED_MANIFESTS)
def test_a_run_with_only_damaged_checkpoints_is_refused(tmp_path: Path, content: str) -> None:
    (save(tmp_path, 4) / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match="none is complete"):
        store.newest_checkpoint(tmp_path)


def test_a_renamed_checkpoint_is_damaged(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 4), tmp_path / "step_9")
    assert store.newest_checkpoint(tmp_path) == tmp_path / "step_4"


def test_a_damaged_step_is_set_aside_when_it_is_saved_again(tmp_path: Path) -> None:
    (save(tmp_path, 4) / MANIFEST).unlink()
    save(tmp_path, 4)
    store.verify(tmp_path / "step_4")
    (aside,) = tmp_path.glob("step_4.damaged-*")
    assert (aside / "tokenizer.json").exists()


def test_the_oldest_checkpoints_are_pruned(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    assert store.prune(tmp_path, keep=3) == [tmp_path / "step_2"]
    assert [row["step"] for row in store.listing(tmp_path)] == [4, 6, 8]


@pytest.mark.parametrize("keep", [-1, 0, 1, 2])
def test_at_least_two_complete_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    (save(tmp_path, 8) / MANIFEST).write_text("")
    store.prune(tmp_path, keep)
    assert [row["step"] for row in store.listing(tmp_path)] == [4, 6, 8]  # 8 is damaged and does not count


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    mine = begin(tmp_path, 4)
    host, _ = mine.name.removeprefix("step_4.incomplete-").rsplit(f"-{os.getpid()}-", 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"step_2.incomplete-{host}-{dead.pid}-00000000", f"step_2.incomplete-elsewhere-{dead.pid}-00000000"):
        (tmp_path / name).mkdir()
    unrelated = tmp_path / "step_2.incomplete-notes"
    unrelated.mkdir()
    directories.remove_leftovers(tmp_path, "step_*")
    left = {path.name.split("-")[1] for path in tmp_path.glob("step_2.*")}
    assert left == {"elsewhere", "notes"}
    assert mine.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from megatron_dsmath.checkpoint import store, writer_process
from megatron_dsmath.files import directories
from tests.checkpoint.test_store import save

root, victim = Path(sys.argv[1]), sys.argv[2]
save(root, 4)
module, name = (directories, victim) if hasattr(directories, victim) else (store, victim)
setattr(module, name, lambda *arguments, **keywords: os.kill(os.getpid(), signal.SIGKILL))
save(root, 8)
"""


@pytest.mark.parametrize("victim", ["begin", "hash_files", "sync", "require_absent", "publish"])
def test_a_kill_during_a_save_leaves_the_previous_checkpoint(tmp_path: Path, victim: str) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), victim], cwd=Path(__file__).parents[2])
    assert process.returncode == -signal.SIGKILL
    assert store.newest_checkpoint(tmp_path) == tmp_path / "step_4"
    store.verify(tmp_path / "step_4")
    save(tmp_path, 8)
    assert store.newest_checkpoint(tmp_path) == tmp_path / "step_8"
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.LATEST, "step_4", "step_8"]


def test_a_missing_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert store.newest_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="no such directory"):
        store.listing(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere"):
        store.locate(tmp_path / "nowhere")


@pytest.mark.fault(
    "R4",
    injected="less room than a checkpoint needs",
    where="the check before a save",
    holds="refused with the bytes needed and free, nothing written",
)
def test_too_little_space_is_refused_with_the_bytes(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    store.require_space(tmp_path / "checkpoints", free // 2)
    with pytest.raises(OutputError, match=f"{2 * free:,} bytes free"):
        store.require_space(tmp_path / "checkpoints", 2 * free)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.fault(
    "R5",
    injected="a directory that cannot be written",
    where="`/proc`",
    holds="refused before anything is begun",
)
def test_a_directory_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(OutputError, match="/proc"):
        store.require_space(Path("/proc/run"), 1)
    with pytest.raises(OutputError, match="/proc"):
        begin(Path("/proc/run"), 1)


def test_the_store_imports_no_torch() -> None:
    program = "import megatron_dsmath.checkpoint.store, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_manifest_survives_being_written_and_read(tmp_path: Path) -> None:
    published = save(tmp_path, 4)
    text = (published / MANIFEST).read_text()
    assert read_manifest(published).to_json() == text
    assert json.loads(text)["software"]["python"] == sys.version.split()[0]
