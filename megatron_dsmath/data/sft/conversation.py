"""Conversations in the form of OpenAI's `messages`, and the rows of files that they are read from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from megatron_dsmath.data.sft.loss_masks import mask_tool_output
from megatron_dsmath.data.text.document_batches import TableRow
from megatron_dsmath.data.text.documents import decode_line, refuse_constant
from megatron_dsmath.errors import DataError
from megatron_dsmath.files.lines import LINE_LIMIT_BYTES, Line

KINDS = ("cot", "pot", "tool")  # chain of thought, program of thought, tool-integrated (paper, section 3.1)
LANGUAGES = ("en", "zh")
ROLES = ("system", "user", "assistant")
TOOL = "tool"  # a role in rows only: the output of a tool becomes part of the assistant's turn

_HAN = re.compile("[\u3400-\u9fff]")
_LATIN_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # LaTeX commands are not words
_PROGRAM = re.compile(r"^[ \t]*```(?:python|py)\b", re.MULTILINE)


class Message(NamedTuple):
    """One turn. `role` is one of ROLES."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Turns in order: optionally a system message, then a user and an assistant in turn.

    `kind` is one of KINDS, `language` one of LANGUAGES, `topic` the subject if the row names one.
    """

    messages: tuple[Message, ...]
    kind: str
    language: str
    topic: str | None


def fold_tool_messages(messages: Sequence[Message], row: Row) -> list[Message]:
    """Move the messages of tools into the assistant's turn as ```output blocks, as the paper's harness does.

    Raises DataError where no assistant is before a tool message, or none after it.
    """
    folded: list[Message] = []
    after_tool = False
    for message in messages:
        if message.role == TOOL:
            if not folded or folded[-1].role != "assistant":
                row.refuse("a tool message does not follow an assistant", _roles(messages), "a tool after an assistant")
            block = f"{folded[-1].content.rstrip()}\n```output\n{message.content.strip()}\n```\n"
            folded[-1] = Message("assistant", block)
        elif after_tool and message.role == "assistant":
            folded[-1] = Message("assistant", folded[-1].content + message.content)
        else:
            folded.append(message)
        after_tool = message.role == TOOL
    if after_tool:
        row.refuse("a tool message is last", _roles(messages), "an assistant after the tool")
    return folded


def require_turns(messages: Sequence[Message], row: Row) -> None:
    """Raise DataError unless a user and an assistant alternate, after at most one system message."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        row.refuse("there is no assistant message", _roles(messages), "an answer to learn from")
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        row.refuse("the turns do not alternate", _roles(messages), "[system,] user, assistant, user, assistant, ...")


def detect_kind(messages: Sequence[Message]) -> str:
    """The kind of reasoning: "tool" where an answer has tool output, else "pot" where it has a program, else "cot"."""
    answers = [message.content for message in messages if message.role == "assistant"]
    if any(not run.is_target for answer in answers for run in mask_tool_output(answer)):
        return "tool"
    return "pot" if any(_PROGRAM.search(answer) for answer in answers) else "cot"


def detect_language(messages: Sequence[Message]) -> str:
    """zh where the user messages have more Chinese characters than Latin words, else en."""
    text = "\n".join(message.content for message in messages if message.role == "user")
    return "zh" if len(_HAN.findall(text)) > len(_LATIN_WORD.findall(text)) else "en"


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message.role for message in messages[:12]) or "no message"


FIX = "correct the row, or set such rows aside: --bad-lines skip"


@dataclass(frozen=True)
class Row:
    """The fields of one row. `where`: its file and line."""

    fields: dict[str, Any]
    where: str

    def text(self, name: str) -> str:
        """A field that must be text and not empty. Raises DataError."""
        if name not in self.fields:
            self.refuse("the field is missing", ", ".join(map(repr, self.fields)) or "no field", repr(name))
        return self.checked(self.fields[name], name)

    def text_or_none(self, name: str) -> str | None:
        """A field that is text, or None where it is missing, null or empty. Raises DataError."""
        value = self.fields.get(name)
        return None if value is None or value == "" else self.checked(value, name)

    def texts(self, name: str) -> list[str]:
        """A field that is text, or a list of texts. Raises DataError."""
        value = self.fields.get(name)
        items = value if isinstance(value, list) else [value]
        return [self.checked(item, name) for item in items]

    def items(self, name: str) -> list[Any]:
        """A field that must be a list and not empty. Raises DataError."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not value:
            self.refuse("the field is not a list, or empty", f"{name!r} is {_shown(value)}", "a list")
        return value

    def checked(self, value: object, name: str) -> str:
        """`value` as text that is not empty and has a form in UTF-8. `name`: its name in the DataError."""
        if not isinstance(value, str):
            self.refuse("the content is not text", f"{name!r} is {_shown(value)}", "text")
        if not value.strip():
            self.refuse("the content is empty", f"{name!r} is {_shown(value)}", "text")
        try:
            size_bytes = len(value.encode())
        except UnicodeEncodeError as error:
            found = f"\\u{ord(value[error.start]):04x} at character {error.start + 1:,} of {name!r}"
            self.refuse("the text holds a lone surrogate", found, "text that UTF-8 can carry")
        if size_bytes > LINE_LIMIT_BYTES:
            self.refuse("the text is too long", f"{size_bytes:,} bytes", f"at most {LINE_LIMIT_BYTES:,} bytes")
        return value

    def refuse(self, what: str, found: object, expected: str, fix: str = FIX) -> NoReturn:
        """Raise a DataError for this row."""
        raise DataError(what, where=self.where, found=found, expected=expected, fix=fix) from None


def parse_row(path: Path, line: Line | TableRow) -> Row:
    """The row on a line of JSONL, or of a Parquet table. Raises DataError with file and line.

    A line of JSONL is one JSON object (RFC 8259) in UTF-8, without repeated fields in any object.
    """
    if isinstance(line, TableRow):
        return Row(line.fields, f"{path}:{line.number}")
    row = Row({}, f"{path}:{line.number}")
    value = decode_line(path, line, _DECODER)
    if not isinstance(value, dict):
        row.refuse("the line is not a JSON object", _shown(value), "an object")
    return Row(value, row.where)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=refuse_constant)


def _shown(value: object) -> str:
    try:
        return f"{json.dumps(value, ensure_ascii=True):.60}"
    except RecursionError:
        return "a deeply nested value"
