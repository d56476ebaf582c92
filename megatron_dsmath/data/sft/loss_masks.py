"""What of an assistant's turn is learned: all it wrote itself, and nothing that a tool put into it.

A tool's output stands in the turn as a fenced block:

    ```output      <- the fence and the word are learned: so the tool is called, and the model stops
    18             <- from the end of that word on nothing is,
    ```            <- through the closing fence and its newline

It is found by the structure of the fences alone. A block ends at a line of backticks, at least as many as opened it;
a fence with a word inside a block opens one more, so what is printed between fences, or quoted in a program, belongs to
the block around it. The word counts only where no other block is open.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r"[ \t]*(?P<ticks>`{3,})[ \t]*(?P<word>[^\s`]*)[^`\n]*\n?")
_MISPLACED = re.compile(r"```output\s*\Z")
OUTPUT = "output"


class Run(NamedTuple):
    """Text that is learned as a whole, or not at all."""

    text: str
    is_target: bool


class UnsoundFence(ValueError):
    """A fence that never closes, or a tool's output that does not begin its line: who wrote what cannot be told."""


def split_turn(text: str) -> list[Run]:
    """An assistant's text as runs, alternately learned and not; together they are the text.

    Raises UnsoundFence, which names the line of the text.
    """
    if "```" not in text:
        return [Run(text, True)]
    runs: list[Run] = []
    open_blocks: list[tuple[int, int]] = []  # backticks and line of each open block, the outermost first
    in_output, start, position = False, 0, 0
    for number, line in enumerate(_LINE.findall(text), 1):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            if not open_blocks and _MISPLACED.search(line):
                raise UnsoundFence(f"line {number}: the fence of a tool's output does not begin its line")
        elif not open_blocks or len(fence["ticks"]) >= open_blocks[-1][0]:
            if not fence["word"] and open_blocks:
                open_blocks.pop()
                if in_output and not open_blocks:
                    end = position + len(line)
                    runs.append(Run(text[start:end], False))
                    in_output, start = False, end
            else:
                if not open_blocks and fence["word"] == OUTPUT:
                    word_end = position + fence.end("word")
                    runs.append(Run(text[start:word_end], True))
                    in_output, start = True, word_end
                open_blocks.append((len(fence["ticks"]), number))
        position += len(line)
    if open_blocks:
        raise UnsoundFence(f"line {open_blocks[0][1]}: the fence never closes")
    if start < len(text):
        runs.append(Run(text[start:], True))
    return runs
