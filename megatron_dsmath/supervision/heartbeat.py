"""The heartbeats of ranks, and the rank that hangs according to the newest heartbeats of all ranks."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_dsmath.errors import InternalError
from megatron_dsmath.files.processes import process_start
from megatron_dsmath.training.rank_progress import RankProgress

MOST_OTHER_RANKS = 8  # listed in the error beside the ranks that hang
_ENTERED = ("marks", "section", "step", "topology")
_ENTRY_BYTES = 512  # within one page: a reader sees the old record or the new one, never a mixture
Heartbeat = dict[str, Any]


def heartbeat(progress: RankProgress, thread: int | None, still_seconds: float, *, answers: bool) -> Heartbeat:
    """What this process' main `thread` does now, and for how long it has made no progress.

    `answers`: whether this heartbeat answers the call of another rank (`watchdog`).
    """
    frames = _stack(sys._current_frames().get(thread or 0))
    return {
        "answers": answers,
        "marks": progress.marks,
        "section": progress.section,
        "step": progress.step,
        "detail": progress.detail,
        "topology": progress.topology,
        "still_seconds": round(still_seconds, 1),
        "at": _line_of_package(frames),
        "waits_in": _collective(frames),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
    }


def entered_section(progress: RankProgress) -> bytes:
    """The section that the main thread enters, as one short record for a single system call."""
    return json.dumps({name: getattr(progress, name) for name in _ENTERED}).encode().ljust(_ENTRY_BYTES)


def newest_heartbeat(entered: Heartbeat, beat: Heartbeat) -> Heartbeat:
    """A rank's last heartbeat, updated with the section that the rank has entered since then."""
    if entered["marks"] <= beat["marks"]:
        return beat
    return {**beat, **entered, "detail": "", "at": "its beginning", "waits_in": None}


def hang_error(
    beats: dict[int, Heartbeat], silent: Sequence[int], ranks: int, still_seconds: float, stacks: Path
) -> InternalError:
    """The error that names the ranks that hang: those without an answer or a heartbeat, else the rank furthest behind.

    Of several ranks that are equally far, the one that waits in no collective is the one that the others wait for.
    """
    missing = [rank for rank in range(ranks) if rank not in beats]
    hanging = sorted({*silent, *missing})
    if not hanging:
        behind = min((beat["step"], beat["marks"]) for beat in beats.values())
        last = [rank for rank, beat in beats.items() if (beat["step"], beat["marks"]) == behind]
        hanging = [rank for rank in last if beats[rank]["waits_in"] is None] or last
    texts = {rank: f"rank {rank} {_describe(beat)}" for rank, beat in beats.items()}
    others = [text for rank, text in texts.items() if rank not in hanging]
    texts |= {rank: f"rank {rank} never wrote a heartbeat" for rank in missing}
    texts |= {rank: f"rank {rank} no longer runs; {_describe(beats[rank])} at its last heartbeat" for rank in silent}
    return InternalError(
        "a rank hangs",
        where="; ".join(texts[rank] for rank in hanging),
        found="; ".join([f"no rank made progress for {still_seconds:.0f} s", *others[:MOST_OTHER_RANKS]]),
        expected="progress within guard.setup_timeout_seconds, step_timeout_seconds or save_timeout_seconds",
        fix=f"the Python stacks of all ranks are in {stacks}; run it again: it continues from its newest checkpoint",
    )


def _describe(beat: Heartbeat) -> str:
    coordinates = f"({beat['topology']}) " if beat["topology"] else ""
    section = {"setup": "in setup", "end": "at the end"}.get(beat["section"], f"in {beat['section']}")
    step = f" after step {beat['step']}" if beat["section"] != "setup" else ""
    detail = f", {beat['detail']}" if beat["detail"] else ""
    waits = f", waits in {beat['waits_in']}" if beat["waits_in"] else ""
    return f"{coordinates}on {beat['host']} (pid {beat['pid']}) was {section}{step}{detail}, at {beat['at']}{waits}"


def _stack(frame: FrameType | None) -> list[tuple[str, int, str]]:
    """File, line and function of every frame, innermost first."""
    frames = []
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return frames


def _line_of_package(frames: Sequence[tuple[str, int, str]]) -> str:
    """The innermost line of this package; parallel/cpu.py is left out, since every call of torch passes through it."""
    package = str(Path(__file__).parents[1])
    for file, line, function in frames:
        if file.startswith(package) and not file.endswith("/parallel/cpu.py"):
            return f"{Path(file).relative_to(package)}:{line} in {function}"
    return "an unknown line"


def _collective(frames: Sequence[tuple[str, int, str]]) -> str | None:
    """The function of torch.distributed that the innermost frames are in; None if they are not in one."""
    inner = [function for file, _, function in frames[:4] if "/torch/distributed/" in file]
    return inner[-1] if inner else None
