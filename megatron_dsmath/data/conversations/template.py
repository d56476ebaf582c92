"""A conversation to pieces: texts and special tokens, each learned as a whole or not at all.

Pieces are the seams of training, and they lie where those of inference do: what is known before the model speaks is
one piece (the prompt, as a server encodes it), what it writes until it stops or calls a tool is the next, what the
tool says the one after. No token crosses a seam; docs/decisions/0022-masks-and-seams.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from megatron_dsmath.data.conversations.conversation import Message
from megatron_dsmath.data.conversations.masks import split_turn
from megatron_dsmath.data.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A text, or one `special` token, whose text is then empty."""

    text: str
    special: int | None
    is_target: bool


class Template(Protocol):
    """How conversations are written."""

    @property
    def jinja(self) -> str:
        """The same in Jinja, as a `chat_template` that others render; its `eos_token` is what `Tokenizer` ends with."""

    @property
    def end_of_answer(self) -> int:
        """The token that ends an answer: where it comes, a model has said all."""

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """A conversation that ends with the assistant. Texts that stand together differ in `is_target`."""


# The same in Jinja: chat_template in the tokenizer_config.json of deepseek-math-7b-rl.
DEEPSEEKMATH_JINJA = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class DeepSeekMathTemplate:
    """`<bos>User: {question}\\n\\nAssistant: {answer}<eos>User: ...`; a system's text comes first, with a blank line.

    The space after "Assistant:" is the model's to write, so it is learned. A tokenizer without BOS gives none.
    Source: DeepSeek-Math, README; chat_template in the tokenizer_config.json of deepseek-math-7b-rl.
    """

    jinja = DEEPSEEKMATH_JINJA

    def __init__(self, tokenizer: Tokenizer) -> None:
        begin, self.end_of_answer = tokenizer.begin_of_document, tokenizer.end_of_document
        self._beginning = [] if begin is None else [Piece("", begin, False)]

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """See `Template`."""
        pieces = list(self._beginning)
        unsaid = ""
        for message in messages:
            if message.role == "assistant":
                pieces.append(Piece(f"{unsaid}Assistant:", None, False))
                first, *others = split_turn(message.content)
                pieces.append(Piece(f" {first.text}", None, True))
                pieces += [Piece(run.text, None, run.is_target) for run in others]
                pieces.append(Piece("", self.end_of_answer, True))
                unsaid = ""
            else:
                unsaid += f"User: {message.content}\n\n" if message.role == "user" else f"{message.content}\n\n"
        return pieces


def chat_template(template: Template, end_token: str | None) -> str:
    """The Jinja that travels with a model; `end_token`: what ends an answer where the tokenizer itself says otherwise.

    Then the template says it, since whoever renders it takes the tokenizer's word for `eos_token`.
    """
    return template.jinja if end_token is None else f"{{% set eos_token = {json.dumps(end_token)} %}}{template.jinja}"


def prompt_pieces(template: Template, messages: Sequence[Message]) -> list[Piece]:
    """A conversation that ends with the user, up to where the assistant speaks: no piece is a target."""
    pieces = template.pieces([*messages, Message("assistant", ".")])
    while not pieces[-1].is_target:
        pieces.pop()
    while pieces[-1].is_target:
        pieces.pop()
    return [piece._replace(is_target=False) for piece in pieces]
