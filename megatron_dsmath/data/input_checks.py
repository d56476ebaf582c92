"""What every pass over files refuses before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.errors import OutputError, UsageError


def require_usable(workers: int, bad_lines: str) -> None:
    """Refuse what `--workers` and `--bad-lines` cannot be. Raises UsageError."""
    if workers < 1:
        raise UsageError("the number of workers is wrong", where="--workers", found=workers, expected="1 or more")
    if bad_lines not in ("fail", "skip"):
        raise UsageError(
            "bad lines are treated in one of two ways",
            where="--bad-lines",
            found=repr(bad_lines),
            expected="fail or skip",
        )


def require_apart(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """No output may overwrite an input: `--out corpus` with an input corpus.json would. Raises OutputError."""
    taken = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in taken:
            raise OutputError(
                "an output would overwrite an input",
                where=output,
                found="the same file",
                expected="another name",
                fix="choose another --out",
            )
