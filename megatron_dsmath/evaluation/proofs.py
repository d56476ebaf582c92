"""Check proofs with the user's checker. Without a checker there is no verdict."""

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

_LAST_BYTES = 64 << 10  # of a checker's output, whose last line is the verdict
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR")  # no key of a cloud or a service reaches a checker


class ProofCheck(NamedTuple):
    """The result of checking a proof."""

    is_proved: bool
    note: Literal["", "no answer", "timeout", "error"]
    """error: the checker itself failed. With any note the proof counts as not proved."""
    message: str
    """The checker's message, or the reason why the checker did not run."""


def check_proofs(pairs: Sequence[tuple[str, str]], proofs: Proofs) -> list[ProofCheck]:
    """Check (statement, proof) pairs, several at once; results in order. `proofs.checker` must not be None."""
    with ThreadPoolExecutor(proofs.at_once) as threads:
        return list(threads.map(lambda pair: _check(pair[0], pair[1], proofs), pairs))


def _check(statement: str, proof: str, proofs: Proofs) -> ProofCheck:
    if not proof.strip():
        return ProofCheck(False, "no answer", "no proof")
    for word in proofs.refused_words:
        if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", proof):
            return ProofCheck(False, "", f"the proof contains {word}")
    return _run_checker(json.dumps({"statement": statement, "proof": proof}).encode() + b"\n", proofs)


def _run_checker(request: bytes, proofs: Proofs) -> ProofCheck:
    """Run the checker with the request on standard input; its exit code and its last line must agree."""
    assert proofs.checker is not None
    with tempfile.TemporaryFile() as standard_input, tempfile.TemporaryFile() as output:
        standard_input.write(request)
        standard_input.seek(0)
        process = subprocess.Popen(
            proofs.checker,
            stdin=standard_input,
            stdout=output,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
        try:
            _set_limits(process.pid, proofs)
            code = process.wait(proofs.timeout_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
        output.seek(max(0, output.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = output.read().decode("utf-8", "replace").strip().splitlines()
    if code is None:
        return ProofCheck(False, "timeout", "the checker took too long")
    return _verdict(code, lines[-1] if lines else "")


def _verdict(code: int, line: str) -> ProofCheck:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    is_proved = reply.get("proved") if isinstance(reply, dict) else None
    if (code, is_proved) not in ((0, True), (1, False)):
        return ProofCheck(False, "error", f"the checker ended with exit code {code} and the line {line:.200}")
    return ProofCheck(bool(is_proved), "", str(reply.get("message", "")))


def _set_limits(process_id: int, proofs: Proofs) -> None:
    """Limit the process and each process that it starts."""
    limits = (
        (resource.RLIMIT_DATA, proofs.memory_mib << 20),
        (resource.RLIMIT_CPU, math.ceil(proofs.timeout_seconds) * (os.cpu_count() or 1)),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, limit in limits:
        with contextlib.suppress(ProcessLookupError):  # it may have ended already
            resource.prlimit(process_id, kind, (limit, limit))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the checker and the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
