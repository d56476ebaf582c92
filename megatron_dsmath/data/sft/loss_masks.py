"""The loss mask of an assistant's turn: what the assistant wrote is a target, what a tool returned is not.

The output of a tool is a fenced block within the turn:

    ```output      <- the fence and the word are targets: the model calls the tool here and stops
    18             <- the text after that word is not
    ```            <- nor is the closing fence with its newline

The mask depends on the fences alone. A block ends at a line of backticks, at least as many as opened it. A fence with a
word inside a block opens a nested block, so fences that a tool prints or a program quotes belong to the outer block.
`output` starts a tool's output only where no other block is open. docs/decisions/0022-masks-and-seams.md.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r"[ \t]*(?P<ticks>`{3,})[ \t]*(?P<word>[^\s`]*)[^`\n]*\n?")
_MISPLACED = re.compile(r"```output\s*\Z")
OUTPUT = "output"


class Span(NamedTuple):
    """A text, or one special token with an empty text, of which all tokens or none are targets of the loss."""

    text: str
    is_target: bool
    special: int | None = None


class FenceError(ValueError):
    """A fence is never closed, or the fence of an output does not begin its line, so the mask is not known."""


def mask_tool_output(text: str) -> list[Span]:
    """Split the text of an assistant into spans, alternately targets and tool output, that add up to the text.

    Raises FenceError with the line of the text.
    """
    if "```" not in text:
        return [Span(text, True)]
    spans: list[Span] = []
    open_blocks: list[tuple[int, int]] = []  # (backticks, line) of each open block, the outermost first
    in_output, start, position = False, 0, 0
    for number, line in enumerate(_LINE.findall(text), 1):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            if not open_blocks and _MISPLACED.search(line):
                raise FenceError(f"line {number}: the fence of a tool's output does not begin its line")
        elif not open_blocks or len(fence["ticks"]) >= open_blocks[-1][0]:
            if not fence["word"] and open_blocks:
                open_blocks.pop()
                if in_output and not open_blocks:
                    end = position + len(line)
                    spans.append(Span(text[start:end], False))
                    in_output, start = False, end
            else:
                if not open_blocks and fence["word"] == OUTPUT:
                    word_end = position + fence.end("word")
                    spans.append(Span(text[start:word_end], True))
                    in_output, start = True, word_end
                open_blocks.append((len(fence["ticks"]), number))
        position += len(line)
    if open_blocks:
        raise FenceError(f"line {open_blocks[0][1]}: the fence never closes")
    if start < len(text):
        spans.append(Span(text[start:], True))
    return spans
