"""Proofs, judged by a checker that the user names. Without one there is no verdict."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from megatron_dsmath.evaluation.protocol import Proofs

_LAST_BYTES = 64 << 10  # of what a checker prints: its verdict is the last line
_HANDED_ON = ("PATH", "HOME", "LANG", "TMPDIR")  # no key of a cloud or a service reaches a checker


class Checked(NamedTuple):
    """What became of a proof."""

    is_proved: bool
    note: Literal["", "no answer", "timeout", "error"]
    """error: the checker itself failed, so nobody knows; the proof counts as none."""
    message: str
    """The checker's, or ours on why it was not asked."""


def check_all(pairs: Sequence[tuple[str, str]], proofs: Proofs) -> list[Checked]:
    """Whether each proof proves its statement, for (statement, proof) pairs; in their order. Needs a checker."""
    with ThreadPoolExecutor(proofs.at_once) as threads:
        return list(threads.map(lambda pair: _check(pair[0], pair[1], proofs), pairs))


def _check(statement: str, proof: str, proofs: Proofs) -> Checked:
    if not proof.strip():
        return Checked(False, "no answer", "no proof")
    for word in proofs.refused_words:
        if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", proof):
            return Checked(False, "", f"the proof says {word}")
    return _asked(json.dumps({"statement": statement, "proof": proof}).encode() + b"\n", proofs)


def _asked(request: bytes, proofs: Proofs) -> Checked:
    """The request on standard input, the verdict in the exit code and the last line: both must say the same."""
    assert proofs.checker is not None
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(request)
        given.seek(0)
        process = subprocess.Popen(
            proofs.checker,
            stdin=given,
            stdout=printed,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _HANDED_ON if name in os.environ},
            start_new_session=True,
        )
        try:
            _limit(process.pid, proofs)
            code = process.wait(proofs.timeout_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = printed.read().decode("utf-8", "replace").strip().splitlines()
    if code is None:
        return Checked(False, "timeout", "the checker took too long")
    return _verdict(code, lines[-1] if lines else "")


def _verdict(code: int, line: str) -> Checked:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    is_proved = said.get("proved") if isinstance(said, dict) else None
    if (code, is_proved) not in ((0, True), (1, False)):
        return Checked(False, "error", f"the checker left with exit code {code} and the line {line:.200}")
    return Checked(bool(is_proved), "", str(said.get("message", "")))


def _limit(process: int, proofs: Proofs) -> None:
    """Of this process and each that it starts."""
    limits = (
        (resource.RLIMIT_DATA, proofs.memory_mib << 20),
        (resource.RLIMIT_CPU, math.ceil(proofs.timeout_seconds) * (os.cpu_count() or 1)),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, most in limits:
        with contextlib.suppress(ProcessLookupError):  # it may have answered already
            resource.prlimit(process, kind, (most, most))


def _end(process: subprocess.Popen[bytes]) -> None:
    """The checker, and what it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
