"""A rank that stands still is named, with the Python stacks of all ranks, and the job ends with 70.

A daemon thread in each rank writes a heartbeat into `logs/heartbeats/WORLD/` and reads the others' when its own main
thread has not got on (`whereabouts`) for longer than its section may. Ranks wait for each other in every step, so that
where one hangs all stand still soon: silence alone, as of a slow file system, condemns nobody. The main thread itself
puts down each section it enters, since a process that is stopped tells no more.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from megatron_dsmath.config.sections import GuardConfig
from megatron_dsmath.errors import EXIT_INTERNAL, OutputError
from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.files.processes import can_run, process_start
from megatron_dsmath.supervision.heartbeat import Beat, brought_up_to, entry, heartbeat, verdict
from megatron_dsmath.training.goodput import Goodput
from megatron_dsmath.training.rank_progress import RankProgress
from megatron_dsmath.training.run_directory import RunDirectory

MOST_SECONDS_BETWEEN_BEATS = 3.0
MOST_SECONDS_BETWEEN_LOOKS = 0.5  # of a rank for another one's call
ANSWER_SECONDS = 3.0  # in which every rank that runs has heard a call and written where it is
ASKING_SECONDS = 0.1  # between looks for what is expected any moment
MEDIAN_FACTOR = 10.0  # a step may take this many times the median one

_WORLD = (
    *("DSMATH_RENDEZVOUS", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    *("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
)


class Watchdog:
    """Watches the main thread of this rank, from `start` on until the process ends."""

    def __init__(
        self, guard: GuardConfig, directory: RunDirectory, progress: RankProgress, rank: int, ranks: int
    ) -> None:
        self._guard, self._directory, self._progress, self._rank, self._ranks = guard, directory, progress, rank, ranks
        self._folder = directory.logs / "heartbeats" / world_name()
        self._call = self._folder / "call.json"
        self._main = threading.main_thread().ident
        shortest = min(guard.setup_timeout_seconds, guard.step_timeout_seconds, guard.save_timeout_seconds)
        self._between_beats = min(MOST_SECONDS_BETWEEN_BEATS, shortest / 20)
        self._between_looks = min(MOST_SECONDS_BETWEEN_LOOKS, shortest / 20)
        self._entered: int | None = None
        self._is_ending = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch. Rank 0 calls this once the directory is its own: the others write nothing before."""
        self._progress.enter("setup", 0)
        if self._rank == 0:
            shutil.rmtree(self._folder.parent, ignore_errors=True)
            with suppress(OSError):
                self._folder.mkdir(parents=True)
        self._progress.on_enter = self._put_down_entry
        self._thread.start()

    def stop(self) -> None:
        """Watch no more. Where a rank has found that the job hangs, what else ends is a consequence: never returns."""
        if self._thread.is_alive() and (self._is_ending or self._call.exists()):
            self._thread.join()
        self._stopped.set()
        self._progress.on_enter = None
        if self._entered is not None:
            os.close(self._entered)
            self._entered = None
        if self._rank == 0 and self._thread.is_alive():
            shutil.rmtree(self._folder.parent, ignore_errors=True)

    def limit_seconds(self) -> float:
        """How long the main thread may stand still where it is now."""
        guard, median = self._guard, self._progress.median_step_seconds
        if self._progress.section in ("evaluation", "save", "end"):
            return guard.save_timeout_seconds
        if self._progress.section == "setup" or median is None:
            return guard.setup_timeout_seconds
        return max(guard.step_timeout_seconds, MEDIAN_FACTOR * median)

    def _watch(self) -> None:
        marks, still_seconds, last, last_beat = self._progress.marks, 0.0, time.monotonic(), 0.0
        while not self._stopped.wait(self._between_looks):
            now = time.monotonic()
            # A job that was suspended as a whole has not stood still for as long as the clock says.
            still_seconds += min(now - last, 2 * self._between_looks)
            last = now
            if marks != self._progress.marks:
                marks, still_seconds = self._progress.marks, 0.0
            if now - last_beat >= self._between_beats:
                last_beat = now
                self._beat(still_seconds)
            if self._call.exists():
                self._answer()
            elif still_seconds > self.limit_seconds():
                self._judge(still_seconds) if self._is_first_to_call() else self._answer()

    def _beat(self, still_seconds: float, *, answers: bool = False) -> Beat:
        beat = heartbeat(self._progress, self._main, still_seconds, answers=answers)
        if self._folder.is_dir():  # it belongs to rank 0, which makes it once the run is its own
            with suppress(OutputError):
                replace_text(self._folder / f"rank_{self._rank}.json", json.dumps(beat))
        return beat

    def _put_down_entry(self) -> None:
        """In the main thread: one system call, which waits for no disk."""
        with suppress(OSError):
            if self._entered is None:
                self._entered = os.open(self._folder / f"rank_{self._rank}.entered", os.O_WRONLY | os.O_CREAT)
            os.pwrite(self._entered, entry(self._progress), 0)

    def _dump(self) -> Path:
        """The Python stacks of this process' threads into the folder that the call names."""
        file = self._directory.logs / f"hang_{world_name()}" / f"stacks_rank_{self._rank}.txt"
        with suppress(OSError):
            file.parent.mkdir(exist_ok=True)
            with file.open("w", encoding="utf-8") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
        return file.parent

    def _answer(self) -> None:
        """Another rank has called: say where this one is, and end once the caller has heard all."""
        self._is_ending = True
        self._dump()
        self._beat(0.0, answers=True)
        deadline = time.monotonic() + 2 * ANSWER_SECONDS
        while self._call.exists() and time.monotonic() < deadline:
            time.sleep(ASKING_SECONDS)
        os._exit(EXIT_INTERNAL)

    def _judge(self, still_seconds: float) -> None:
        """Hear where each rank is that this one called, say which of them hangs, and end the job."""
        self._is_ending = True
        stacks = self._dump()
        beats, silent = self._answers(self._beat(still_seconds, answers=True))
        error = verdict(beats, silent, self._ranks, still_seconds, stacks)
        print(error.text(), file=sys.stderr, flush=True)
        with suppress(OutputError, OSError):
            facts = Goodput.of(self._directory).facts()
            step = self._directory.last_step()
            message = f"{error.what}: {error.where}"
            self._directory.write_status("failed", EXIT_INTERNAL, step, message, **facts)
        for rank in silent:
            _kill(beats[rank])
        self._call.unlink(missing_ok=True)  # the next start may be a world of the same name
        os._exit(EXIT_INTERNAL)

    def _answers(self, own: Beat) -> tuple[dict[int, Beat], list[int]]:
        """Every rank's last word, and who has not answered though it had the time, or cannot."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            beats = {**self._read_beats(), self._rank: own}
            silent = [rank for rank, beat in beats.items() if not beat["answers"]]
            awaited = [rank for rank in silent if not _is_here(beats[rank]) or can_run(beats[rank]["pid"])]
            if (not awaited and len(beats) == self._ranks) or time.monotonic() > deadline:
                return beats, silent
            time.sleep(ASKING_SECONDS)

    def _is_first_to_call(self) -> bool:
        """Call all ranks, unless another one has just done so; where nothing can be written, each is on its own."""
        try:
            os.close(os.open(self._call, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:
            pass
        return True

    def _read_beats(self) -> dict[int, Beat]:
        beats = {}
        for rank in range(self._ranks):
            with suppress(OSError, ValueError):
                beats[rank] = json.loads((self._folder / f"rank_{rank}.json").read_text(encoding="utf-8"))
                entered = json.loads((self._folder / f"rank_{rank}.entered").read_text(encoding="utf-8"))
                beats[rank] = brought_up_to(entered, beats[rank])
        return beats


def world_name() -> str:
    """What the processes of one world have in common, and no other world that runs has."""
    common = [os.environ.get(name, "") for name in _WORLD]
    if os.environ.get("MASTER_ADDR", "localhost") in ("localhost", "127.0.0.1"):
        common.append(socket.gethostname())
    if os.environ.get("WORLD_SIZE", "1") == "1":
        common.append(str(os.getpid()))
    return hashlib.sha256("\n".join(common).encode()).hexdigest()[:12]


def _is_here(beat: Beat) -> bool:
    return bool(beat["host"] == socket.gethostname() and beat["process_start"] is not None)


def _kill(beat: Beat) -> None:
    """End a rank that no longer runs, if it is on this machine: a stopped process takes no other signal."""
    if _is_here(beat) and process_start(beat["pid"]) == beat["process_start"]:
        with suppress(OSError):
            os.kill(beat["pid"], signal.SIGKILL)
