"""Chat templates and their encoding: a conversation becomes spans, and the spans become tokens with a loss mask.

Each span is encoded by itself, so no token crosses the end of a span. The spans are those of inference: the prompt as a
server encodes it, the text that the model writes until it stops or calls a tool, the output of the tool.
docs/decisions/0022-masks-and-seams.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.loss_masks import Span, mask_tool_output
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
# The chat_template in the tokenizer_config.json of deepseek-math-7b-rl.
DEEPSEEKMATH_JINJA = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ANCHOR = ":"  # written before a text that continues another, where the tokenizer marks the beginning of a text


def add_instruction(messages: Sequence[Message], instruction: str, language: str) -> tuple[Message, ...]:
    """The conversation with an instruction ("cot" or "tool") after its first question, unless it is already there."""
    text = INSTRUCTIONS[instruction, language]
    index = next(index for index, message in enumerate(messages) if message.role == "user")
    question = messages[index].content
    if question.rstrip().endswith(text):
        return tuple(messages)
    return (*messages[:index], Message("user", f"{question}\n{text}"), *messages[index + 1 :])


class Template(Protocol):
    """A chat template."""

    @property
    def jinja(self) -> str:
        """The template in Jinja, as a `chat_template`. `eos_token` is the tokenizer's end of document."""

    @property
    def end_of_answer(self) -> int:
        """The token that ends an answer."""

    def spans(self, messages: Sequence[Message]) -> list[Span]:
        """A conversation that ends with the assistant. Adjacent texts differ in `is_target`."""


class DeepSeekMathTemplate:
    """`<bos>User: {question}\\n\\nAssistant: {answer}<eos>User: ...`, with a system message and a blank line before it.

    The model writes the space after "Assistant:", so it is a target. There is no BOS where the tokenizer has none.
    Source: DeepSeek-Math, README; chat_template in the tokenizer_config.json of deepseek-math-7b-rl.
    """

    jinja = DEEPSEEKMATH_JINJA

    def __init__(self, tokenizer: Tokenizer) -> None:
        begin, self.end_of_answer = tokenizer.begin_of_document, tokenizer.end_of_document
        self._beginning = [] if begin is None else [Span("", False, begin)]

    def spans(self, messages: Sequence[Message]) -> list[Span]:
        """See `Template`."""
        spans = list(self._beginning)
        prompt = ""
        for message in messages:
            if message.role == "assistant":
                first, *others = mask_tool_output(message.content)
                spans += [Span(f"{prompt}Assistant:", False), first._replace(text=f" {first.text}"), *others]
                spans.append(Span("", True, self.end_of_answer))
                prompt = ""
            else:
                prompt += f"User: {message.content}\n\n" if message.role == "user" else f"{message.content}\n\n"
        return spans


def chat_template(template: Template, end_token: str | None) -> str:
    """The Jinja template that is stored with a model.

    `end_token`: the token that ends an answer, where it is not the tokenizer's. The template then sets `eos_token`
    itself, because programs that render it pass the tokenizer's.
    """
    return template.jinja if end_token is None else f"{{% set eos_token = {json.dumps(end_token)} %}}{template.jinja}"


def prompt_spans(template: Template, messages: Sequence[Message]) -> list[Span]:
    """A conversation that ends with the user, through the text that asks for an answer. No span is a target."""
    spans = template.spans([*messages, Message("assistant", ".")])
    while not spans[-1].is_target:
        spans.pop()
    while spans[-1].is_target:
        spans.pop()
    return [span._replace(is_target=False) for span in spans]


class EncodedExamples(NamedTuple):
    """Examples end to end: `tokens` int32 and `is_target` bool [sum of lengths], `lengths` int64 [examples]."""

    tokens: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]

    def target_counts(self) -> npt.NDArray[np.int64]:
        """The number of targets in each example: int64 [examples]."""
        targets = np.append(0, np.cumsum(self.is_target))
        counts: npt.NDArray[np.int64] = np.diff(targets[np.append(0, np.cumsum(self.lengths))])
        return counts


class ConversationEncoder:
    """Encodes conversations and prompts with a template and a tokenizer."""

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        letter = tokenizer.encode("a")
        # SentencePiece writes a space before every text, which would add one at the start of each span.
        self._marks_beginnings = tokenizer.decode(letter + letter) != "aa"

    def encode(self, conversations: Sequence[Sequence[Message]]) -> EncodedExamples:
        """Encode conversations that end with the assistant. Raises as the template does."""
        return self.encode_spans([self._template.spans(messages) for messages in conversations])

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens a model is given to answer a conversation that ends with the user."""
        tokens: list[int] = self.encode_spans([prompt_spans(self._template, messages)]).tokens.tolist()
        return tokens

    def encode_continuation(self, text: str) -> list[int]:
        """The tokens of a text that follows what the model wrote, such as the output of a tool."""
        tokens: list[int] = self._encode_texts([text], np.array([True])).tokens.tolist()
        return tokens

    def encode_spans(self, examples: Sequence[Sequence[Span]]) -> EncodedExamples:
        """Encode conversations that the template has made into spans."""
        spans = [span for example in examples for span in example]
        spans_of_example = np.fromiter(map(len, examples), np.int64, len(examples))
        specials = np.array([-1 if span.special is None else span.special for span in spans], np.int32)
        is_text = specials < 0
        texts = [span.text for span in spans if span.special is None]
        example_of_text = np.repeat(np.arange(len(examples)), spans_of_example)[is_text]
        encoded = self._encode_texts(texts, np.diff(example_of_text, prepend=-1) == 0)
        lengths = np.ones(len(spans), np.int64)
        lengths[is_text] = encoded.lengths
        holds_text = np.repeat(is_text, lengths)
        tokens = np.empty(len(holds_text), np.int32)
        tokens[holds_text], tokens[~holds_text] = encoded.tokens, specials[~is_text]
        is_target = np.repeat(np.array([span.is_target for span in spans], np.bool_), lengths)
        ends = np.append(0, np.cumsum(lengths))[np.cumsum(spans_of_example)]
        return EncodedExamples(tokens, is_target, np.diff(ends, prepend=0))

    def _encode_texts(self, texts: Sequence[str], continues: npt.NDArray[np.bool_]) -> EncodedTexts:
        """Encode each text; `continues`: whether it follows another text of its example, bool [texts]."""
        if not self._marks_beginnings:
            return self._tokenizer.encode_arrays(texts)
        anchor = self._tokenizer.encode(ANCHOR)
        ids = self._tokenizer.encode_batch(
            [ANCHOR + text if follows else text for text, follows in zip(texts, continues, strict=True)]
        )
        for index in np.flatnonzero(continues).tolist():
            if ids[index][: len(anchor)] != anchor:
                raise TokenizerError(
                    "the tokenizer cannot encode a text that continues another",
                    where=self._tokenizer.path,
                    found=f"{ANCHOR + texts[index]!r:.80} does not begin with the tokens of {ANCHOR!r}",
                    expected="a tokenizer that splits before letters, blanks and backticks",
                    fix="use a byte-level tokenizer",
                )
            ids[index] = ids[index][len(anchor) :]
        return EncodedTexts.from_lists(ids)
