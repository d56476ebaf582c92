"""What a rank says of itself while it runs, and which rank hangs by what all of them said last."""

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

OTHERS_NAMED = 8
_ENTERED = ("marks", "section", "step", "topology")
_ENTRY_BYTES = 512  # of one page: a reader sees the old or the new
Beat = dict[str, Any]


def heartbeat(progress: RankProgress, thread: int | None, still_seconds: float, *, answers: bool) -> Beat:
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
        "at": _place(frames),
        "waits_in": _collective(frames),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
    }


def entry(progress: RankProgress) -> bytes:
    """The section that the main thread enters, as one short record that is written in one system call."""
    return json.dumps({name: getattr(progress, name) for name in _ENTERED}).encode().ljust(_ENTRY_BYTES)


def brought_up_to(entered: Beat, beat: Beat) -> Beat:
    """A rank's last heartbeat, or the section that it has entered since."""
    if entered["marks"] <= beat["marks"]:
        return beat
    return {**beat, **entered, "detail": "", "at": "its beginning", "waits_in": None}


def verdict(
    beats: dict[int, Beat], silent: Sequence[int], ranks: int, still_seconds: float, stacks: Path
) -> InternalError:
    """Who hangs: ranks that are silent or were never heard of, else the one that is furthest behind.

    Of several that are as far, one that waits in no collective is the one the others wait for.
    """
    unheard = [rank for rank in range(ranks) if rank not in beats]
    suspects = sorted({*silent, *unheard})
    if not suspects:
        behind = min((beat["step"], beat["marks"]) for beat in beats.values())
        last = [rank for rank, beat in beats.items() if (beat["step"], beat["marks"]) == behind]
        suspects = [rank for rank in last if beats[rank]["waits_in"] is None] or last
    others = [f"rank {rank} {describe(beat)}" for rank, beat in beats.items() if rank not in suspects]
    named = [f"rank {rank} {_last_word(beats.get(rank), rank in silent)}" for rank in suspects]
    return InternalError(
        "a rank hangs",
        where="; ".join(named),
        found=f"no rank got on for {still_seconds:.0f} s" + (f"; {'; '.join(others[:OTHERS_NAMED])}" if others else ""),
        expected="guard.setup_timeout_seconds, step_timeout_seconds and save_timeout_seconds say how long it may",
        fix=f"the Python stacks of every rank are in {stacks}; run it again: it goes on from its newest checkpoint",
    )


def _last_word(beat: Beat | None, is_silent: bool) -> str:
    if beat is None:
        return "was never heard of"
    return f"no longer runs; {describe(beat)} when it was last heard of" if is_silent else describe(beat)


def describe(beat: Beat) -> str:
    """Where a rank was when it last said so."""
    coordinates = f"({beat['topology']}) " if beat["topology"] else ""
    section = {"setup": "in set-up", "end": "at the end"}.get(beat["section"], f"in {beat['section']}")
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


def _place(frames: Sequence[tuple[str, int, str]]) -> str:
    """The innermost line of this package; what answers for CUDA on a CPU is within every call of torch."""
    package = str(Path(__file__).parents[1])
    for file, line, function in frames:
        if file.startswith(package) and not file.endswith("/parallel/cpu.py"):
            return f"{Path(file).relative_to(package)}:{line} in {function}"
    return "an unknown line"


def _collective(frames: Sequence[tuple[str, int, str]]) -> str | None:
    """What of torch.distributed the innermost frames are in, if they are in it."""
    inner = [function for file, _, function in frames[:4] if "/torch/distributed/" in file]
    return inner[-1] if inner else None
