"""Named points at which a run can be made to fail, so that tests inject faults where they would happen.

Nothing happens unless the environment variable DSMATH_FAULT names a kind and a point:

    DSMATH_FAULT=kill:checkpoint.before_rename:rank=1:count=2

kills rank 1 when it reaches the point for the second time. Without `rank`, the fault applies to every rank; without
`count` and `step`, every time. `count=2,4` selects several times. Several faults are separated by blanks.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.errors import UsageError

VARIABLE = "DSMATH_FAULT"

POINTS = {
    "setup.begin": "the rank handles signals and has not joined the other ranks",
    "setup.open": "the rank has joined the other ranks; data and model are not open yet",
    "step.begin": "a step begins; its microbatches are not on the device",
    "step.draw": "the worker thread is about to draw the microbatches of a step",
    "step.tokens": "the microbatches of a step are on the device; a token becomes another (`fault_factor`)",
    "microbatch.begin": "the pipeline's schedule takes a microbatch, of a step or of a validation",
    "step.loss": "the losses of a microbatch are computed (`fault_factor`)",
    "step.gradients": "the gradients are summed over all ranks; no weight is changed yet (`fault_factor`)",
    "validation.begin": "a validation begins, after its step's update",
    "evaluation.begin": "an evaluation begins, after its step's update",
    "step.logged": "the row of the step is written; the ranks have not agreed on a stop or a save",
    "save.begin": "a save begins; all ranks have agreed on it",
    "save.weights": "the weights are about to be checked before a save; one of them changes (`fault_factor`)",
    "end.begin": "the last step is done or a stop is agreed on, and the state is saved",
    "row.before_append": "a row of metrics.jsonl or of a file in logs/ is about to be written (rank 0)",
    "file.before_rename": "the text of STATUS.json, run.yaml, LATEST or a file in logs/ is in a temporary file",
    "checkpoint.begun": "the incomplete directory exists and is empty (rank 0)",
    "checkpoint.copying": "the rank is about to copy its state into the staging buffer",
    "checkpoint.copied": "the rank's state is copied; its writer has not been asked to write it",
    "writer.before_file": "the rank's writer is about to write a file of the checkpoint",
    "writer.inside_file": "half of that file is written",
    "writer.before_sync": "that file is written and not yet synchronized to the disk",
    "writer.after_file": "that file is on the disk and hashed; its rank has no answer yet",
    "checkpoint.before_manifest": "all ranks have written their files; there is no manifest yet (rank 0)",
    "checkpoint.before_rename": "the manifest is on the disk; the directory still has its incomplete name (rank 0)",
    "checkpoint.before_pointer": "the checkpoint has its final name; LATEST names the previous one (rank 0)",
    "checkpoint.before_prune": "the checkpoint is published; the oldest one is not deleted yet (rank 0)",
    "checkpoint.pruning": "the oldest checkpoint is renamed; its files still exist (rank 0)",
}
"""Each point and the state of the run there."""

KINDS = {
    "kill": "the process gets SIGKILL, as from the system when memory runs out",
    "terminate": "the process gets SIGTERM, as from a scheduler",
    "warn": "the process gets SIGUSR1, as from SLURM before the time limit",
    "stop": "the process gets SIGSTOP: it halts, and the other ranks wait for it",
    "hang": "the process sleeps forever",
    "delay": "the process sleeps for a second",
    "raise": "an unexpected error is raised",
    "memory": "the process gets at most 16 MiB more of address space than it has",
    "full": "the system reports that the disk is full",
    "quota": "the system reports that the user's quota is used up",
    "broken": "the system reports that the disk failed",
    "nan": "a value becomes NaN (`fault_factor`)",
    "infinity": "a value becomes infinite (`fault_factor`)",
    "spike": "a value becomes a thousand times as large (`fault_factor`)",
    "drift": "a value becomes larger by a 1024th the first time, by two the second time, and so on (`fault_factor`)",
}
"""Each kind and its effect."""

_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "warn": signal.SIGUSR1, "stop": signal.SIGSTOP}
_SLEEP_SECONDS = {"hang": math.inf, "delay": 1.0}
_SPARE_BYTES = 16 << 20
_ERRORS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "broken": errno.EIO}
_FACTORS = {"nan": math.nan, "infinity": math.inf, "spike": 1000.0}


class InjectedFaultError(Exception):
    """Raised by the kind `raise`; no code catches it by name."""


class Fault(NamedTuple):
    """A kind of fault, its point, and the ranks, counts and steps to which it applies."""

    kind: str
    point: str
    selectors: dict[str, frozenset[int]]


_counts: Counter[str] = Counter()


def fault_point(point: str, step: int | None = None) -> None:
    """Inject the fault that DSMATH_FAULT names for this point. `step`: completed steps, where the caller knows them."""
    fault = _armed(point, step)
    if fault is None:
        return
    if fault.kind in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.kind])
    elif fault.kind in _SLEEP_SECONDS:
        end = time.monotonic() + _SLEEP_SECONDS[fault.kind]
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 3600.0))
    elif fault.kind in _ERRORS:
        raise OSError(_ERRORS[fault.kind], os.strerror(_ERRORS[fault.kind]))
    elif fault.kind == "memory":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    elif fault.kind == "raise":
        raise InjectedFaultError(f"{VARIABLE} is {os.environ[VARIABLE]}")


def fault_factor(point: str, step: int | None = None) -> float:
    """The factor by which the caller multiplies a value at this point: 1, unless DSMATH_FAULT corrupts the value."""
    fault = _armed(point, step)
    if fault is None:
        return 1.0
    return 1.0 + _counts[point] / 1024 if fault.kind == "drift" else _FACTORS.get(fault.kind, 1.0)


def _armed(point: str, step: int | None) -> Fault | None:
    """The fault to inject at this point now."""
    text = os.environ.get(VARIABLE)
    faults = [fault for fault in _parse(text or "") if fault.point == point]
    if not faults:
        return None
    _counts[point] += 1
    now = {"rank": int(os.environ.get("RANK", "0")), "step": step, "count": _counts[point]}
    armed = (fault for fault in faults if all(now[name] in values for name, values in fault.selectors.items()))
    return next(armed, None)


@lru_cache(maxsize=1)
def _parse(text: str) -> list[Fault]:
    return [_parse_fault(word) for word in text.split()]


def _parse_fault(text: str) -> Fault:
    kind, _, rest = text.partition(":")
    point, *selectors = rest.split(":")
    pairs = [(name, values.split(",")) for name, _, values in (selector.partition("=") for selector in selectors)]
    are_valid = all(
        name in ("rank", "step", "count") and all(value.isdecimal() for value in values) for name, values in pairs
    )
    if kind not in KINDS or point not in POINTS or not are_valid:
        raise UsageError(
            "the fault to inject is not a known one",
            where=VARIABLE,
            found=text,
            expected="KIND:POINT, then :rank=N, :count=N and :step=N as needed, or several numbers: :count=N,M",
            fix=f"kinds: {', '.join(KINDS)}; points: {', '.join(POINTS)}",
        )
    return Fault(kind, point, {name: frozenset(map(int, values)) for name, values in pairs})
