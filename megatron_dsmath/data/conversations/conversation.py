"""A conversation: who said what, and what kind of reasoning it teaches. The canon is OpenAI's `messages`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from megatron_dsmath.data.conversations.masks import split_turn
from megatron_dsmath.data.conversations.rows import Row

KINDS = ("cot", "pot", "tool")  # chain of thought, program of thought, tool-integrated (paper, section 3.1)
LANGUAGES = ("en", "zh")
ROLES = ("system", "user", "assistant")
TOOL = "tool"  # a role of rows only: what a tool said becomes part of the assistant's turn

_HAN = re.compile("[\u3400-\u9fff]")
_LATIN_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # a command of LaTeX is no word
_PROGRAM = re.compile(r"^[ \t]*```(?:python|py)\b", re.MULTILINE)


class Message(NamedTuple):
    """One turn. `role` is one of ROLES."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Turns in the order in which they were said: a system's or none, then a user's and an assistant's in turn.

    `kind` is one of KINDS, `language` one of LANGUAGES, `topic` what the row says of its subject, if it does.
    """

    messages: tuple[Message, ...]
    kind: str
    language: str
    topic: str | None


def fold_tool_messages(messages: Sequence[Message], row: Row) -> list[Message]:
    """Put what tools said into the assistant's turn, as an ```output block, as the paper's harness does.

    Raises DataError for a tool that nobody called, or that nobody answers.
    """
    folded: list[Message] = []
    after_tool = False
    for message in messages:
        if message.role == TOOL:
            if not folded or folded[-1].role != "assistant":
                row.refuse("a tool speaks that nobody called", _roles(messages), "a tool after an assistant")
            block = f"{folded[-1].content.rstrip()}\n```output\n{message.content.strip()}\n```\n"
            folded[-1] = Message("assistant", block)
        elif after_tool and message.role == "assistant":
            folded[-1] = Message("assistant", folded[-1].content + message.content)
        else:
            folded.append(message)
        after_tool = message.role == TOOL
    if after_tool:
        row.refuse("a tool has the last word", _roles(messages), "an assistant who goes on")
    return folded


def require_turns(messages: Sequence[Message], row: Row) -> None:
    """Raise DataError unless a user and an assistant speak in turn, after a system or none."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        row.refuse("no assistant speaks", _roles(messages), "an answer to learn from")
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        row.refuse("the turns do not alternate", _roles(messages), "[system,] user, assistant, user, assistant, ...")


def kind_of(messages: Sequence[Message]) -> str:
    """The kind of reasoning that the assistant's text shows: tool output, else a program, else neither."""
    answers = [message.content for message in messages if message.role == "assistant"]
    if any(not run.is_target for answer in answers for run in split_turn(answer)):
        return "tool"
    return "pot" if any(_PROGRAM.search(answer) for answer in answers) else "cot"


def language_of(messages: Sequence[Message]) -> str:
    """zh where the users wrote more Chinese characters than Latin words, else en."""
    text = "\n".join(message.content for message in messages if message.role == "user")
    return "zh" if len(_HAN.findall(text)) > len(_LATIN_WORD.findall(text)) else "en"


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message.role for message in messages[:12]) or "no message"
