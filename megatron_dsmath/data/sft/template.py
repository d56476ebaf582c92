"""A conversation to pieces: texts and special tokens, each learned as a whole or not at all.

Pieces are the seams of training, and they lie where those of inference do: what is known before the model speaks is
one piece (the prompt, as a server encodes it), what it writes until it stops or calls a tool is the next, what the
tool says the one after. No token crosses a seam; docs/decisions/0022-masks-and-seams.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.loss_masks import split_turn
from megatron_dsmath.data.tokenizing.piece_encoder import EncodedTexts
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.errors import TokenizerError

INSTRUCTIONS = {
    ("cot", "en"): "Please reason step by step, and put your final answer within \\boxed{}.",
    ("cot", "zh"): "请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。",
    ("tool", "en"): "Please integrate natural language reasoning with programs to solve the problem above, "
    "and put your final answer within \\boxed{}.",
    ("tool", "zh"): "请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\\boxed{}中。",
}


def with_instruction(messages: Sequence[Message], instruction: str, language: str) -> tuple[Message, ...]:
    """The conversation with an instruction ("cot" or "tool") after its first question, unless it ends so already."""
    text = INSTRUCTIONS[instruction, language]
    place = next(number for number, message in enumerate(messages) if message.role == "user")
    question = messages[place].content
    if question.rstrip().endswith(text):
        return tuple(messages)
    asked = Message("user", f"{question}\n{text}")
    return (*messages[:place], asked, *messages[place + 1 :])


ANCHOR = ":"  # what a text continues when it is encoded for itself


class EncodedExamples(NamedTuple):
    """Examples end to end: `tokens` int32 and `is_target` bool [sum of lengths], `lengths` int64 [examples]."""

    tokens: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]

    def target_counts(self) -> npt.NDArray[np.int64]:
        """How many tokens of each example are learned: int64 [examples]."""
        learned = np.append(0, np.cumsum(self.is_target))
        counts: npt.NDArray[np.int64] = np.diff(learned[np.append(0, np.cumsum(self.lengths))])
        return counts


class ConversationEncoder:
    """A template and a tokenizer: conversations to tokens, and to prompts."""

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        letter = tokenizer.encode("a")
        # SentencePiece and its like write a space before every text, which would split a word at each seam.
        self._marks_beginnings = tokenizer.decode(letter + letter) != "aa"

    def encode(self, conversations: Sequence[Sequence[Message]]) -> EncodedExamples:
        """Conversations that end with the assistant. Raises as the template does."""
        return self.encode_pieces([self._template.pieces(messages) for messages in conversations])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What a model is given to answer a conversation that ends with the user."""
        tokens: list[int] = self.encode_pieces([prompt_pieces(self._template, messages)]).tokens.tolist()
        return tokens

    def continuation(self, text: str) -> list[int]:
        """What a tool says, or anything else that goes on where the model stopped."""
        tokens: list[int] = self._encode_texts([text], np.array([True])).tokens.tolist()
        return tokens

    def encode_pieces(self, examples: Sequence[Sequence[Piece]]) -> EncodedExamples:
        """What the template made of conversations."""
        pieces = [piece for example in examples for piece in example]
        example_pieces = np.fromiter(map(len, examples), np.int64, len(examples))
        specials = np.array([-1 if piece.special is None else piece.special for piece in pieces], np.int32)
        is_text = specials < 0
        texts = [piece.text for piece in pieces if piece.special is None]
        encoded = self._encode_texts(texts, _continues(np.repeat(np.arange(len(examples)), example_pieces)[is_text]))
        lengths = np.ones(len(pieces), np.int64)
        lengths[is_text] = encoded.lengths
        holds_text = np.repeat(is_text, lengths)
        tokens = np.empty(len(holds_text), np.int32)
        tokens[holds_text], tokens[~holds_text] = encoded.tokens, specials[~is_text]
        is_target = np.repeat(np.array([piece.is_target for piece in pieces], np.bool_), lengths)
        ends = np.append(0, np.cumsum(lengths))[np.cumsum(example_pieces)]
        return EncodedExamples(tokens, is_target, np.diff(ends, prepend=0))

    def _encode_texts(self, texts: Sequence[str], continues: npt.NDArray[np.bool_]) -> EncodedTexts:
        if not self._marks_beginnings:
            return self._tokenizer.encode_arrays(texts)
        anchor = self._tokenizer.encode(ANCHOR)
        ids = self._tokenizer.encode_batch(
            [ANCHOR + text if on else text for text, on in zip(texts, continues, strict=True)]
        )
        for number in np.flatnonzero(continues).tolist():
            if ids[number][: len(anchor)] != anchor:
                raise TokenizerError(
                    "the tokenizer does not encode a text that goes on",
                    where=self._tokenizer.path,
                    found=f"{ANCHOR + texts[number]!r:.80} does not begin with the tokens of {ANCHOR!r}",
                    expected="a tokenizer that splits before letters, blanks and backticks",
                    fix="use a byte-level tokenizer",
                )
            ids[number] = ids[number][len(anchor) :]
        return EncodedTexts.from_lists(ids)


def _continues(example_of_text: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which texts have one before them in their example, with or without special tokens in between."""
    has_one: npt.NDArray[np.bool_] = np.diff(example_of_text, prepend=-1) == 0
    return has_one


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
