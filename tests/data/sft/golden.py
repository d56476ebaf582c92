"""The hand-written conversations of tests/golden, and their tokens as the `tokenizers` library alone gives them.

`python -m tests.data.sft.golden TOKENIZER_FOLDER` writes tests/golden/conversations.tokens.txt again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

FOLDER = Path(__file__).parents[2] / "golden"
WRITTEN, TOKENS = FOLDER / "conversations.txt", FOLDER / "conversations.tokens.txt"
BEGIN, END = "⟨bos⟩", "⟨eos⟩"
DEEPSEEK = {BEGIN: "<｜begin▁of▁sentence｜>", END: "<｜end▁of▁sentence｜>"}
HEADER = """\
The same conversations, token by token: | between tokens, ⟦ and ⟧ around what is learned, ↵ for a line break,
hexadecimal for a token that is part of a character. Written by tests/data/sft/golden.py from the marks in
conversations.txt and the vocabulary of DeepSeek LLM, with nothing of this package.
"""


class Written(NamedTuple):
    """One conversation of the file: a row, and its text with marks."""

    title: str
    row: dict[str, Any]
    marked: str


class Part(NamedTuple):
    """A text, or a special token by its sign, and whether its tokens are targets."""

    text: str
    is_target: bool


def conversations() -> list[Written]:
    """All conversations of the file."""
    _, *entries = re.split(r"^=== ", WRITTEN.read_bytes().decode(), flags=re.MULTILINE)
    return [_entry(entry) for entry in entries]


def parts(marked: str) -> Iterator[Part]:
    """The texts between the marks, and the special tokens."""
    is_target = False
    for word in re.split(f"([⟦⟧]|{BEGIN}|{END})", marked):
        if word in ("⟦", "⟧"):
            is_target = word == "⟦"
        elif word:
            yield Part(word, is_target)


def expected_tokens(marked: str, engine: tokenizers.Tokenizer) -> list[tuple[int, bool]]:
    """Each token and whether it is a target. `engine` must encode literals of special tokens as text."""
    return [
        (identifier, part.is_target)
        for part in parts(marked)
        for identifier in (
            [engine.token_to_id(DEEPSEEK[part.text])]
            if part.text in DEEPSEEK
            else engine.encode(part.text, add_special_tokens=False).ids
        )
    ]


def shown(tokens: list[tuple[int, bool]], engine: tokenizers.Tokenizer) -> str:
    """The tokens in the form of tests/golden."""
    signs = {engine.token_to_id(name): sign for sign, name in DEEPSEEK.items()}
    line = ""
    was_target = False
    for identifier, is_target in tokens:
        if is_target != was_target:
            line += "⟦" if is_target else "⟧"
        elif line:
            line += "|"
        line += signs.get(identifier) or _text(engine.id_to_token(identifier))
        was_target = is_target
    return line + "⟧" * was_target


def token_file(engine: tokenizers.Tokenizer) -> str:
    """The content of tests/golden/conversations.tokens.txt."""
    entries = [f"=== {one.title}\n{shown(expected_tokens(one.marked, engine), engine)}\n" for one in conversations()]
    return HEADER + "\n" + "".join(entries)


def _entry(entry: str) -> Written:
    title, row, rest = entry.split("\n", 2)
    dashes, marked = rest.split("\n", 1)
    assert dashes == "---", title
    return Written(title, json.loads(row), marked.removesuffix("\n").replace("␍", "\r"))


def _text(token: str) -> str:
    """A token of a byte-level vocabulary as text."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    content = bytes(letters[letter] for letter in token)
    try:
        return content.decode().replace("\n", "↵").replace("\r", "␍")
    except UnicodeDecodeError:
        return content.hex(" ")


if __name__ == "__main__":
    library = tokenizers.Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
    library.encode_special_tokens = True
    TOKENS.write_bytes(token_file(library).encode())
