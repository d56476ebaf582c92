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

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from megatron_dsmath.errors import CheckpointError, OutputError
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
        "files": store.hashes(folder),
    }
    return Manifest(**{**values, **changes})


def save(root: Path, step: int) -> Path:
    incomplete = store.begin(root, step)
    fill(incomplete, f"weights of {step}")
    return store.publish(incomplete, manifest(step, incomplete))


def test_what_is_saved_is_listed_verified_and_found(tmp_path: Path) -> None:
    for step in (4, 10):
        save(tmp_path, step)
    assert store.newest(tmp_path) == tmp_path / "step_10"  # by number, not by letters
    rows = store.listing(tmp_path)
    assert [(row["step"], row["tokens"]) for row in rows] == [(4, 1024), (10, 2560)]
    assert {row["kind"] for row in rows} == {"training"}
    assert rows[0]["size_bytes"] == len("weights of 4") * 101 + 2
    read = store.verify(tmp_path / "step_10")
    assert (read.step, read.next_sample, read.state) == (10, 80, {"step": 10})
    assert sorted(read.files) == ["shards/.metadata", "shards/__0_0.distcp", "tokenizer.json"]


def test_a_run_is_named_by_its_directory_too(tmp_path: Path) -> None:
    published = save(tmp_path / "checkpoints", 4)
    assert store.locate(tmp_path) == store.locate(tmp_path / "checkpoints") == store.locate(published) == published
    for path in (tmp_path, tmp_path / "checkpoints", published):
        assert [row["path"] for row in store.listing(path)] == [str(published)]


def test_nothing_incomplete_is_ever_found(tmp_path: Path) -> None:
    incomplete = store.begin(tmp_path, 4)
    fill(incomplete)
    (incomplete / MANIFEST).write_text(manifest(4, incomplete).to_json())
    assert store.newest(tmp_path) is None
    assert store.listing(tmp_path) == []


def test_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    fill(tmp_path)
    found = {name: entry.sha256 for name, entry in store.hashes(tmp_path).items()}
    lines = subprocess.run(["sha256sum", *found], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found == {name: digest for digest, name in (line.split("  ") for line in lines.splitlines())}


def test_a_published_step_is_never_written_again(tmp_path: Path) -> None:
    save(tmp_path, 4)
    with pytest.raises(OutputError, match="exists already"):
        store.begin(tmp_path, 4)


def test_of_two_writers_of_one_step_the_second_is_refused(tmp_path: Path) -> None:
    first, second = store.begin(tmp_path, 4), store.begin(tmp_path, 4)
    fill(first, "first")
    fill(second, "second")
    store.publish(first, manifest(4, first))
    with pytest.raises(OutputError, match="exists already"):
        store.publish(second, manifest(4, second))
    assert (tmp_path / "step_4/shards/.metadata").read_text() == "first"


def test_a_manifest_that_is_not_of_these_files_is_not_published(tmp_path: Path) -> None:
    incomplete = store.begin(tmp_path, 4)
    fill(incomplete)
    described = manifest(4, incomplete)
    (incomplete / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        store.publish(incomplete, described)
    assert store.newest(tmp_path) is None


@pytest.mark.parametrize("name", ["shards/.metadata", "shards/__0_0.distcp", "tokenizer.json"])
@pytest.mark.parametrize("spoil", ["flip", "cut", "grow", "remove"])
def test_a_spoiled_file_is_named(tmp_path: Path, name: str, spoil: str) -> None:
    path = save(tmp_path, 4) / name
    content = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    else:
        changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "grow": content + b"x"}
        path.write_bytes(changed[spoil])
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
def test_the_pointer_is_only_a_hint(tmp_path: Path, content: str | None) -> None:
    save(tmp_path, 4)
    save(tmp_path, 8)
    assert (tmp_path / store.LATEST).read_text() == "step_8\n"
    if content is None:
        (tmp_path / store.LATEST).unlink()
    else:
        (tmp_path / store.LATEST).write_text(content)
    assert store.newest(tmp_path) == tmp_path / "step_8"


SPOILED_MANIFESTS = ["", "{", "[]", "null", '{"format": "other"}', "\0" * 50]


@pytest.mark.parametrize("content", SPOILED_MANIFESTS)
def test_a_step_without_a_valid_manifest_is_passed_over_and_listed_as_damaged(tmp_path: Path, content: str) -> None:
    save(tmp_path, 4)
    (save(tmp_path, 8) / MANIFEST).write_text(content)
    assert store.newest(tmp_path) == tmp_path / "step_4"
    assert [row["kind"] for row in store.listing(tmp_path)] == ["training", "damaged"]


@pytest.mark.parametrize("content", SPOILED_MANIFESTS)
def test_a_run_never_starts_anew_over_damaged_checkpoints(tmp_path: Path, content: str) -> None:
    (save(tmp_path, 4) / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match="step_4"):
        store.newest(tmp_path)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 4), tmp_path / "step_9")
    assert store.newest(tmp_path) == tmp_path / "step_4"


def test_a_damaged_step_makes_way_when_it_is_saved_again(tmp_path: Path) -> None:
    (save(tmp_path, 4) / MANIFEST).unlink()
    save(tmp_path, 4)
    store.verify(tmp_path / "step_4")
    (aside,) = tmp_path.glob("step_4.damaged-*")
    assert (aside / "tokenizer.json").exists()


def test_the_oldest_are_pruned(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    assert store.prune(tmp_path, keep=3) == [tmp_path / "step_2"]
    assert [row["step"] for row in store.listing(tmp_path)] == [4, 6, 8]


@pytest.mark.parametrize("keep", [-1, 0, 1, 2])
def test_two_complete_ones_always_stay(tmp_path: Path, keep: int) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    (save(tmp_path, 8) / MANIFEST).write_text("")
    store.prune(tmp_path, keep)
    assert [row["step"] for row in store.listing(tmp_path)] == [4, 6, 8]  # 8 is damaged and does not count


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    mine = store.begin(tmp_path, 4)
    host, _ = mine.name.removeprefix("step_4.incomplete-").rsplit(f"-{os.getpid()}-", 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"step_2.incomplete-{host}-{dead.pid}-00000000", f"step_2.incomplete-elsewhere-{dead.pid}-00000000"):
        (tmp_path / name).mkdir()
    unrelated = tmp_path / "step_2.incomplete-notes"
    unrelated.mkdir()
    store.begin(tmp_path, 6)
    left = {path.name.split("-")[1] for path in tmp_path.glob("step_2.*")}
    assert left == {"elsewhere", "notes"}
    assert mine.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from megatron_dsmath.checkpoint import store
from megatron_dsmath.files import directories
from tests.checkpoint.test_store import save

root, victim = Path(sys.argv[1]), sys.argv[2]
save(root, 4)
module, name = (directories, victim) if hasattr(directories, victim) else (store, victim)
setattr(module, name, lambda *arguments, **keywords: os.kill(os.getpid(), signal.SIGKILL))
save(root, 8)
"""


@pytest.mark.parametrize("victim", ["begin", "hashes", "sync", "require_absent", "publish"])
def test_a_kill_inside_a_save_leaves_the_one_before(tmp_path: Path, victim: str) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), victim], cwd=Path(__file__).parents[2])
    assert process.returncode == -signal.SIGKILL
    assert store.newest(tmp_path) == tmp_path / "step_4"
    store.verify(tmp_path / "step_4")
    save(tmp_path, 8)
    assert store.newest(tmp_path) == tmp_path / "step_8"
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.LATEST, "step_4", "step_8"]


def test_a_directory_that_is_not_there_holds_no_checkpoint(tmp_path: Path) -> None:
    assert store.newest(tmp_path / "nowhere") is None
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
def test_too_little_room_is_refused_with_the_bytes(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    store.preflight(tmp_path / "checkpoints", free // 2)
    with pytest.raises(OutputError, match=f"{2 * free:,} bytes free"):
        store.preflight(tmp_path / "checkpoints", 2 * free)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.fault(
    "R5",
    injected="a directory that nobody may write",
    where="`/proc`",
    holds="refused before anything is begun",
)
def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(OutputError, match="/proc"):
        store.preflight(Path("/proc/run"), 1)
    with pytest.raises(OutputError, match="/proc"):
        store.begin(Path("/proc/run"), 1)


def test_the_store_imports_no_torch() -> None:
    program = "import megatron_dsmath.checkpoint.store, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_manifest_survives_being_written_and_read(tmp_path: Path) -> None:
    published = save(tmp_path, 4)
    text = (published / MANIFEST).read_text()
    assert read_manifest(published).to_json() == text
    assert json.loads(text)["software"]["python"] == sys.version.split()[0]
