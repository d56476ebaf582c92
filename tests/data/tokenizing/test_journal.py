from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.data.tokenizing import journal as journal_module
from megatron_dsmath.data.tokenizing.journal import EMPTY_ENTRY, Journal
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.errors import DataError
from megatron_dsmath.files.atomic_files import OutputFile
from tests.support.small_tokenizer import TEXT, write_small_tokenizer

# A run with many small batches, each with a journal entry.
RUN = """
import sys
from pathlib import Path
from megatron_dsmath.data.tokenizing import journal, tokenize
from megatron_dsmath.files import lines
journal.SECONDS_BETWEEN_ENTRIES = 0
lines.BLOCK_BYTES = 20_000
if __name__ == "__main__":
    corpus, tokenizer, out, workers, seed = sys.argv[1:]
    field = {"text": "_text", "title": "_title"} if workers == "2" else "text"
    options = {"field": field, "workers": int(workers), "shuffle_seed": int(seed) if seed else None}
    tokenize.tokenize([corpus], tokenizer, out, bad_lines="skip", **options)
"""


@pytest.fixture(autouse=True)
def _every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SECONDS_BETWEEN_ENTRIES", 0.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_tokenizer(tmp_path_factory.mktemp("small"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents of many lengths, some of them empty, with bad lines between them."""
    path = tmp_path / "corpus.jsonl"
    texts = [TEXT[: 7 * row % len(TEXT)] * (row % 5) for row in range(6000)]
    rows = [json.dumps({"text": text, "title": text[:9]}) for text in texts]
    rows[::97] = ["not JSON"] * len(rows[::97])
    path.write_text("\n".join(rows) + "\n")
    return path


def outputs_of(prefix: Path) -> dict[str, bytes]:
    return {
        path.name.removeprefix(prefix.name): path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}[._]*")
    }


Command = Callable[[Path, str, str], list[str]]


def write(path: Path, content: bytes) -> OutputFile:
    file = OutputFile(path)
    file.write(content)
    return file


def test_the_entry_of_a_killed_run_is_read_back(tmp_path: Path) -> None:
    file = write(tmp_path / "out.bin", b"12345678")
    journal = Journal(tmp_path / "out", "task")
    journal.add(1, 0, np.array([3, 0]), [file])
    journal.add(2, 4, np.array([5]), [file])
    file.write(b"after the last entry")
    file.sync()
    done = Journal(tmp_path / "out", "task").read()
    assert (done.batches, done.bad_lines, done.lengths.tolist()) == (2, 4, [3, 0, 5])
    file.close()
    again = OutputFile(tmp_path / "out.bin", done.partial_files[tmp_path / "out.bin"])
    again.write(b"9")
    again.sync()
    assert again.partial.read_bytes() == b"123456789"
    assert again.sha256 == "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"  # sha256sum of 123456789


def test_another_task_starts_from_scratch(tmp_path: Path) -> None:
    Journal(tmp_path / "out", "task").add(1, 0, np.array([3]), [write(tmp_path / "out.bin", b"1234")])
    assert Journal(tmp_path / "out", "other task").read() == EMPTY_ENTRY


@pytest.mark.parametrize("damage", ["", "1", "12X4", "journal", "lengths", "no lengths"])
def test_damaged_files_are_written_from_scratch(tmp_path: Path, damage: str) -> None:
    file = write(tmp_path / "out.bin", b"1234")
    Journal(tmp_path / "out", "task").add(1, 0, np.array([3]), [file])
    if damage == "journal":
        (tmp_path / "out.journal").write_bytes(b'{"task"')
    elif damage == "lengths":
        (tmp_path / "out.journal.lengths").write_bytes(b"1234567")
    elif damage == "no lengths":
        (tmp_path / "out.journal.lengths").unlink()
    else:
        file.partial.write_text(damage)
    assert Journal(tmp_path / "out", "task").read() is EMPTY_ENTRY


def test_a_run_that_ends_leaves_no_journal(tmp_path: Path, tokenizer: Path, corpus: Path) -> None:
    tokenize([corpus], tokenizer, tmp_path / "out", bad_lines="skip")
    assert set(outputs_of(tmp_path / "out")) == {".bin", ".idx", ".json", ".bad_lines.jsonl"}
    with pytest.raises(DataError):
        tokenize([corpus], tokenizer, tmp_path / "failed")
    assert outputs_of(tmp_path / "failed") == {}


@pytest.fixture
def command(tmp_path: Path, tokenizer: Path, corpus: Path) -> Command:
    """The command line of a run that writes to a prefix."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    return lambda out, workers, seed: [sys.executable, *map(str, (script, corpus, tokenizer, out, workers, seed))]


@pytest.mark.parametrize(("workers", "seed"), [("1", ""), ("2", "7")])
def test_killed_runs_continue_to_the_same_bytes(tmp_path: Path, command: Command, workers: str, seed: str) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    subprocess.run(command(undisturbed, workers, seed), check=True)
    journal = Path(f"{out}.journal")
    furthest = 0
    for _ in range(2):
        with subprocess.Popen(command(out, workers, seed)) as process:
            batches = furthest
            deadline = time.monotonic() + 60
            while batches <= furthest and process.poll() is None and time.monotonic() < deadline:
                batches = json.loads(journal.read_bytes())["batches"] if journal.exists() else 0
            process.send_signal(signal.SIGKILL)
        batches = json.loads(journal.read_bytes())["batches"]
        assert batches > furthest
        furthest = batches
    subprocess.run(command(out, workers, seed), check=True)
    assert outputs_of(out) == outputs_of(undisturbed)


@pytest.mark.long
@pytest.mark.parametrize(("workers", "seed"), [("1", ""), ("2", "7")])
def test_a_run_killed_at_any_of_25_random_moments_continues_to_the_same_bytes(
    tmp_path: Path, command: Command, workers: str, seed: str
) -> None:
    undisturbed = tmp_path / "undisturbed"
    started = time.monotonic()
    subprocess.run(command(undisturbed, workers, seed), check=True)
    run_seconds = time.monotonic() - started
    moments = random.Random(1)
    unfinished = 0
    for number in range(25):
        out = tmp_path / f"out{number}"
        with subprocess.Popen(command(out, workers, seed)) as process:
            time.sleep(moments.random() * run_seconds)
            process.send_signal(signal.SIGKILL)
        unfinished += Path(f"{out}.journal").exists()
        subprocess.run(command(out, workers, seed), check=True)
        assert outputs_of(out) == outputs_of(undisturbed)
    assert unfinished > 0
