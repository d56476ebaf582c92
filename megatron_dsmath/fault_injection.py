"""Named points at which a run can be made to fail, so that what it survives is tested where it would happen.

Nothing happens unless the environment variable DSMATH_FAULT names a kind and a point:

    DSMATH_FAULT=kill:checkpoint.before_rename:rank=1:count=2

kills rank 1 when it comes by the second time. Without `rank`, every rank; without `count` and `step`, every time.
Several are written `count=2,4`.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from megatron_dsmath.errors import UsageError

VARIABLE = "DSMATH_FAULT"

POINTS = {
    "setup.begin": "the rank listens to signals, and has not joined the others",
    "step.begin": "a step begins; nothing of it is read",
    "microbatch.begin": "the pipeline's schedule draws a microbatch, of a step or of a validation",
    "step.loss": "the losses of a microbatch are computed (`fault_factor`)",
    "step.gradients": "the gradients are summed over all ranks, and no weight is changed (`fault_factor`)",
    "validation.begin": "a validation begins, after its step's update",
    "evaluation.begin": "an evaluation begins, after its step's update",
    "save.begin": "a save begins; every rank has agreed to it",
    "end.begin": "the last step is done or a stop agreed on, and all of it saved",
    "row.before_append": "a row of metrics.jsonl or of a file in logs/ is about to be written (rank 0)",
    "file.before_rename": "STATUS.json, run.yaml or a file in logs/ has its new text under another name",
    "checkpoint.begun": "the incomplete directory is made, and nothing is in it (rank 0)",
    "checkpoint.copying": "the rank is about to copy its state into the staging buffer",
    "checkpoint.copied": "the rank's state is copied, and its writer not told yet",
    "writer.before_file": "the rank's writer is about to write a file of the checkpoint",
    "writer.inside_file": "half of that file is written",
    "writer.before_sync": "that file is written, and not on the disk",
    "writer.after_file": "that file is on the disk and hashed, and its rank not told",
    "checkpoint.before_manifest": "every rank has written its files, and there is no manifest (rank 0)",
    "checkpoint.before_rename": "the manifest is on the disk, and the directory still has its incomplete name (rank 0)",
    "checkpoint.before_pointer": "the checkpoint has its name, and LATEST names the one before (rank 0)",
    "checkpoint.before_prune": "the checkpoint is published, and the oldest not deleted (rank 0)",
    "checkpoint.pruning": "the oldest has lost its name, and its files are there (rank 0)",
}
"""Every point, and what is true there."""

KINDS = {
    "kill": "the process gets SIGKILL, as by the system when memory runs out",
    "terminate": "the process gets SIGTERM, as by a scheduler",
    "warn": "the process gets SIGUSR1, as by SLURM before the time is up",
    "stop": "the process gets SIGSTOP: it stands still, and its peers wait",
    "hang": "the process sleeps for ever",
    "raise": "an error nobody expects",
    "full": "the system says that the disk is full",
    "quota": "the system says that the user may write no more",
    "broken": "the system says that the disk failed",
    "nan": "a value becomes NaN (`fault_factor`)",
    "infinity": "a value becomes infinite (`fault_factor`)",
    "spike": "a value becomes a thousand times as large (`fault_factor`)",
    "drift": "a value becomes larger by a 1024th, and by one more each time (`fault_factor`)",
}
"""Every kind, and what happens."""

_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "warn": signal.SIGUSR1, "stop": signal.SIGSTOP}
_ERRORS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "broken": errno.EIO}
_FACTORS = {"nan": math.nan, "infinity": math.inf, "spike": 1000.0}


class InjectedFaultError(Exception):
    """Raised by the kind `raise`; nothing catches it by name."""


class Fault(NamedTuple):
    """What is to happen, where, to whom and when."""

    kind: str
    point: str
    selectors: dict[str, frozenset[int]]


_passages: Counter[str] = Counter()


def fault_point(point: str, step: int | None = None) -> None:
    """Come by a point; what DSMATH_FAULT says happens there. `step`: completed steps, where the caller knows them."""
    fault = _armed(point, step)
    if fault is None:
        return
    if fault.kind in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.kind])
    elif fault.kind == "hang":
        while True:
            time.sleep(3600)
    elif fault.kind in _ERRORS:
        raise OSError(_ERRORS[fault.kind], os.strerror(_ERRORS[fault.kind]))
    elif fault.kind == "raise":
        raise InjectedFaultError(f"{VARIABLE} is {os.environ[VARIABLE]}")


def fault_factor(point: str, step: int | None = None) -> float:
    """What the caller is to multiply a value with at this point: 1, unless DSMATH_FAULT corrupts it."""
    fault = _armed(point, step)
    if fault is None:
        return 1.0
    return 1.0 + _passages[point] / 1024 if fault.kind == "drift" else _FACTORS.get(fault.kind, 1.0)


def _armed(point: str, step: int | None) -> Fault | None:
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    fault = _parse(text)
    if fault.point != point:
        return None
    _passages[point] += 1
    now = {"rank": int(os.environ.get("RANK", "0")), "step": step, "count": _passages[point]}
    return fault if all(now[name] in values for name, values in fault.selectors.items()) else None


@lru_cache(maxsize=1)
def _parse(text: str) -> Fault:
    kind, _, rest = text.partition(":")
    point, *selectors = rest.split(":")
    pairs = [(name, values.split(",")) for name, _, values in (selector.partition("=") for selector in selectors)]
    legible = all(
        name in ("rank", "step", "count") and all(value.isdecimal() for value in values) for name, values in pairs
    )
    if kind not in KINDS or point not in POINTS or not legible:
        raise UsageError(
            "the fault to inject is none",
            where=VARIABLE,
            found=text,
            expected="KIND:POINT, then :rank=N, :count=N, :step=N as wanted, or :count=N,M",
            fix=f"kinds: {', '.join(KINDS)}; points: {', '.join(POINTS)}",
        )
    return Fault(kind, point, {name: frozenset(map(int, values)) for name, values in pairs})
