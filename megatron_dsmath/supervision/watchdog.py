"""Detects a job that hangs, names the rank that hangs, writes the Python stacks of all ranks, and exits with 70.

A daemon thread of each rank writes heartbeats into `logs/heartbeats/WORLD/`. When the rank's main thread makes no
progress (`rank_progress`) for longer than its section may take, the thread calls the other ranks to write a heartbeat,
and reads all heartbeats. Ranks wait for each other in every step, so that all of them halt soon after one hangs.
A missing heartbeat alone, as on a slow file system, is not a hang. The main thread records each section that it enters
by itself, because a stopped process writes no heartbeats.
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
from megatron_dsmath.supervision.heartbeat import Heartbeat, entered_section, hang_error, heartbeat, newest_heartbeat
from megatron_dsmath.training.goodput import Goodput
from megatron_dsmath.training.rank_progress import RankProgress
from megatron_dsmath.training.run_directory import RunDirectory

MOST_SECONDS_BETWEEN_BEATS = 3.0
MOST_SECONDS_BETWEEN_CHECKS = 0.5  # for progress, and for the call of another rank
ANSWER_SECONDS = 3.0  # within which every rank that runs answers a call
POLL_SECONDS = 0.1  # between checks for an answer that may come at any moment
MEDIAN_FACTOR = 10.0  # a step may take this many times the median step

_WORLD = (
    *("DSMATH_RENDEZVOUS", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    *("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
)


class Watchdog:
    """Watches the progress of this rank's main thread from `start` until `stop`."""

    def __init__(
        self, guard: GuardConfig, directory: RunDirectory, progress: RankProgress, rank: int, ranks: int
    ) -> None:
        self._guard, self._directory, self._progress, self._rank, self._ranks = guard, directory, progress, rank, ranks
        self._folder = directory.logs / "heartbeats" / world_name()
        self._call = self._folder / "call.json"
        self._main = threading.main_thread().ident
        shortest = min(guard.setup_timeout_seconds, guard.step_timeout_seconds, guard.save_timeout_seconds)
        self._between_beats = min(MOST_SECONDS_BETWEEN_BEATS, shortest / 20)
        self._between_checks = min(MOST_SECONDS_BETWEEN_CHECKS, shortest / 20)
        self._entered_file: int | None = None
        self._is_ending = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread. Rank 0 makes the folder of heartbeats, and the other ranks write nothing before that."""
        self._progress.enter("setup", 0)
        if self._rank == 0:
            shutil.rmtree(self._folder.parent, ignore_errors=True)
            with suppress(OSError):
                self._folder.mkdir(parents=True)
        self._progress.on_enter = self._write_entered_section
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. Never returns where a rank has found that the job hangs: its error is to be the only one."""
        if self._thread.is_alive() and (self._is_ending or self._call.exists()):
            self._thread.join()
        self._stopped.set()
        self._progress.on_enter = None
        if self._entered_file is not None:
            os.close(self._entered_file)
            self._entered_file = None
        if self._rank == 0 and self._thread.is_alive():
            shutil.rmtree(self._folder.parent, ignore_errors=True)

    def limit_seconds(self) -> float:
        """How long the main thread may take without progress in its current section."""
        guard, median = self._guard, self._progress.median_step_seconds
        if self._progress.section in ("evaluation", "save", "end"):
            return guard.save_timeout_seconds
        if self._progress.section == "setup" or median is None:
            return guard.setup_timeout_seconds
        return max(guard.step_timeout_seconds, MEDIAN_FACTOR * median)

    def _watch(self) -> None:
        marks, still_seconds, last, last_beat = self._progress.marks, 0.0, time.monotonic(), 0.0
        while not self._stopped.wait(self._between_checks):
            now = time.monotonic()
            # While the whole job is suspended, the clock runs on; that time does not count.
            still_seconds += min(now - last, 2 * self._between_checks)
            last = now
            if marks != self._progress.marks:
                marks, still_seconds = self._progress.marks, 0.0
            if now - last_beat >= self._between_beats:
                last_beat = now
                self._beat(still_seconds)
            if self._call.exists():
                self._answer()
            elif still_seconds > self.limit_seconds():
                self._report_hang(still_seconds) if self._is_first_to_call() else self._answer()

    def _beat(self, still_seconds: float, *, answers: bool = False) -> Heartbeat:
        beat = heartbeat(self._progress, self._main, still_seconds, answers=answers)
        if self._folder.is_dir():  # rank 0 makes it once it holds the run's directory
            with suppress(OutputError):
                replace_text(self._folder / f"rank_{self._rank}.json", json.dumps(beat))
        return beat

    def _write_entered_section(self) -> None:
        """Record the section that the main thread enters: one system call, which does not wait for the disk."""
        with suppress(OSError):
            if self._entered_file is None:
                self._entered_file = os.open(self._folder / f"rank_{self._rank}.entered", os.O_WRONLY | os.O_CREAT)
            os.pwrite(self._entered_file, entered_section(self._progress), 0)

    def _write_stacks(self) -> Path:
        """Write the Python stacks of this process' threads; returns their folder, which is the same for all ranks."""
        file = self._directory.logs / f"hang_{world_name()}" / f"stacks_rank_{self._rank}.txt"
        with suppress(OSError):
            file.parent.mkdir(exist_ok=True)
            with file.open("w", encoding="utf-8") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
        return file.parent

    def _answer(self) -> None:
        """Answer the call of another rank with a heartbeat, and exit once that rank has all answers."""
        self._is_ending = True
        self._write_stacks()
        self._beat(0.0, answers=True)
        deadline = time.monotonic() + 2 * ANSWER_SECONDS
        while self._call.exists() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        os._exit(EXIT_INTERNAL)

    def _report_hang(self, still_seconds: float) -> None:
        """Collect the answers of all ranks, report which of them hangs, and end the job."""
        self._is_ending = True
        stacks = self._write_stacks()
        beats, silent = self._answers(self._beat(still_seconds, answers=True))
        error = hang_error(beats, silent, self._ranks, still_seconds, stacks)
        print(error.text(), file=sys.stderr, flush=True)
        with suppress(OutputError, OSError):
            facts, step = Goodput.of(self._directory).facts(), self._directory.last_step()
            self._directory.write_status("failed", EXIT_INTERNAL, step, f"{error.what}: {error.where}", **facts)
        for beat in (beats[rank] for rank in silent):
            # A stopped process reacts to SIGKILL only.
            if _is_on_this_host(beat) and process_start(beat["pid"]) == beat["process_start"]:
                with suppress(OSError):
                    os.kill(beat["pid"], signal.SIGKILL)
        self._call.unlink(missing_ok=True)  # the next start may have the same world name
        os._exit(EXIT_INTERNAL)

    def _answers(self, own: Heartbeat) -> tuple[dict[int, Heartbeat], list[int]]:
        """The newest heartbeat of each rank, and the ranks that cannot answer or have not answered in time."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            beats = {**self._read_beats(), self._rank: own}
            silent = [rank for rank, beat in beats.items() if not beat["answers"]]
            awaited = [rank for rank in silent if not _is_on_this_host(beats[rank]) or can_run(beats[rank]["pid"])]
            if (not awaited and len(beats) == self._ranks) or time.monotonic() > deadline:
                return beats, silent
            time.sleep(POLL_SECONDS)

    def _is_first_to_call(self) -> bool:
        """Call all ranks; False where another rank has already called. True also where the call cannot be written."""
        try:
            os.close(os.open(self._call, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:
            pass
        return True

    def _read_beats(self) -> dict[int, Heartbeat]:
        beats = {}
        for rank in range(self._ranks):
            with suppress(OSError, ValueError):
                beats[rank] = json.loads((self._folder / f"rank_{rank}.json").read_text(encoding="utf-8"))
                entered = json.loads((self._folder / f"rank_{rank}.entered").read_text(encoding="utf-8"))
                beats[rank] = newest_heartbeat(entered, beats[rank])
        return beats


def world_name() -> str:
    """A name that all processes of this world compute, and that no other running world has."""
    common = [os.environ.get(name, "") for name in _WORLD]
    if os.environ.get("MASTER_ADDR", "localhost") in ("localhost", "127.0.0.1"):
        common.append(socket.gethostname())
    if os.environ.get("WORLD_SIZE", "1") == "1":
        common.append(str(os.getpid()))
    return hashlib.sha256("\n".join(common).encode()).hexdigest()[:12]


def _is_on_this_host(beat: Heartbeat) -> bool:
    return bool(beat["host"] == socket.gethostname() and beat["process_start"] is not None)
