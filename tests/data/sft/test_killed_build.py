"""A build that was killed is started again from scratch and writes the same bytes. There is no journal."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.errors import DsmathError
from tests.data.sft.sets import rows, write_rows
from tests.support.small_tokenizer import write_small_tokenizer

# A build of many batches.
BUILD = """
import sys
from megatron_dsmath.files import lines
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.sources import sources_from_files
lines.BLOCK_BYTES = 20_000
if __name__ == "__main__":
    file, tokenizer, out, bad_lines = sys.argv[1:]
    build(sources_from_files([file]), tokenizer, out, Options(sequence_length=256, bad_lines=bad_lines), workers=2)
"""


class Build:
    """The command line of a build of 6,000 rows, with the files and the seconds of an undisturbed one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "build.py").write_text(BUILD)
        self._inputs = [write_rows(folder / "rows.jsonl", rows(6000)), write_small_tokenizer(folder / "tokenizer")]
        started = time.monotonic()
        subprocess.run(self.command("undisturbed"), check=True)
        self.seconds = time.monotonic() - started
        self.whole = self.files("undisturbed")

    def command(self, out: str, bad_lines: str = "fail") -> list[str]:
        paths = [self._folder / "build.py", *self._inputs, self.prefix(out)]
        return [sys.executable, *map(str, paths), bad_lines]

    def prefix(self, out: str) -> Path:
        return self._folder / out / "set"

    def files(self, out: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.prefix(out).parent.iterdir()}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("build"))


def test_a_killed_build_leaves_no_set_and_the_next_one_has_the_same_bytes(build: Build) -> None:
    """It is killed while it writes, with a quarantine file that the next build does not have."""
    partial = Path(f"{build.prefix('once')}.bin.partial")
    with subprocess.Popen(build.command("once", "skip")) as process:
        deadline = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert "set.bad_lines.jsonl.partial" in build.files("once")
    with pytest.raises(DsmathError):
        Examples(build.prefix("once"))
    subprocess.run(build.command("once"), check=True)
    assert build.files("once") == build.whole


@pytest.mark.long
def test_a_build_killed_at_any_of_25_random_moments_is_built_again_to_the_same_bytes(build: Build) -> None:
    """Half of them overwrite a set: no reader takes the files of two builds for one set."""
    moments = random.Random(1)
    unfinished = 0
    for number in range(25):
        out = f"out{number}"
        if number % 2:
            subprocess.run(build.command(out), check=True)
        with subprocess.Popen(build.command(out)) as process:
            time.sleep(moments.random() * build.seconds)
            process.send_signal(signal.SIGKILL)
        left = build.files(out) if build.prefix(out).parent.exists() else {}
        unfinished += any(name.endswith(".partial") for name in left)
        subprocess.run(build.command(out), check=True)
        assert build.files(out) == build.whole
    assert unfinished > 0
