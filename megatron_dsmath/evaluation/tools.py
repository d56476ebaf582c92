"""The programs in a model's text, and what it is told of them. Source: DeepSeek-Math, evaluation/infer/."""

from __future__ import annotations

from typing import Literal

from megatron_dsmath.evaluation.sandbox.outcome import Outcome

CALL = "```output"  # what a model writes to have its programs run
_BEGIN, _END = "```python", "```"
NO_PROGRAM = "no program to run"


def programs_so_far(text: str) -> str | None:
    """All programs of a text that ends with one, as one; None where it does not.

    Of all but the last, lines that print are left out: the model has seen that (run_tool_integrated_eval.py).
    """
    text = text.rstrip()
    if not text.endswith(_END):
        return None
    blocks = [block.partition(_END)[0].strip() for block in text.split(_BEGIN)[1:] if _END in block]
    blocks = [block for block in blocks if block]
    if not blocks:
        return None
    kept = [line for block in blocks[:-1] for line in block.split("\n") if _is_kept(line)]
    return "\n".join([*kept, blocks[-1]])


def answering_program(text: str, kind: Literal["solution", "answer"]) -> str | None:
    """The program that a whole output is, made to print its answer; None where there is none (run_pal_eval.py).

    solution: a function of that name. answer: a block that sets it, then one with the imports it needs.
    """
    if kind == "solution":
        return f"{text}\n\nprint(solution())\n" if text.strip() else None
    parts = text.split(_END)
    return f"{parts[3]}\n\n{parts[1]}\n\nprint(answer)\n" if len(parts) == 5 else None


def tested_program(question: str, text: str, kind: Literal["continued", "whole"]) -> str | None:
    """The program that an output is, to be run with tests; None where there is none.

    continued: what the output adds to the question, which is the beginning of the program. whole: the output alone.
    """
    if not text.strip():
        return None
    return f"{question}{text}\n" if kind == "continued" else f"{text}\n"


def told(outcome: Outcome | None, limit_characters: int) -> str:
    """What stands in an output block, its middle left out where it is long; None: there was nothing to run."""
    if outcome is None:
        return NO_PROGRAM
    printed = outcome.stdout.strip() if outcome.verdict == "ok" else ""
    message = _shortened(outcome.error or outcome.verdict, limit_characters)
    return (
        _shortened(printed, limit_characters) or f"Runtime errors: {'' if outcome.verdict == 'ok' else message}".strip()
    )


def _is_kept(line: str) -> bool:
    return "print(" not in line or line.startswith(("    ", "import", "def "))


def _shortened(text: str, limit_characters: int) -> str:
    half = limit_characters // 2
    return text if len(text) <= limit_characters else f"{text[:half]}...{text[-half:]}"
