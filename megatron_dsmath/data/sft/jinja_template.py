"""A chat template in Jinja, from a tokenizer or a file, rendered in a sandbox.

The template is rendered twice: with the messages, and with a marker in place of each message. The text between the
markers is the template's, and special tokens are looked for only there. Both renderings must agree, so a template that
changes a message, other than by stripping its blanks, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.loss_masks import Span, mask_tool_output
from megatron_dsmath.data.sft.template import DeepSeekMathTemplate, Template
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.errors import DependencyError, TokenizerError, UsageError

_MARKER = re.compile("\x02message ([0-9]+)\x03")
_GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # an extension of transformers, without output


def open_template(name: str, tokenizer: Tokenizer) -> Template:
    """Open a template by its name in `Options`. Raises TokenizerError, UsageError, DependencyError."""
    if name == "deepseekmath":
        return DeepSeekMathTemplate(tokenizer)
    if name == "tokenizer":
        source, where = read_chat_template(tokenizer)
        return JinjaTemplate(source, tokenizer, where)
    path = Path(name)
    try:
        return JinjaTemplate(path.read_text(encoding="utf-8"), tokenizer, path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the template cannot be read",
            where=f"--template {name}",
            found=error,
            expected="deepseekmath, tokenizer, or a Jinja file",
        ) from error


class JinjaTemplate:
    """A Jinja template with the special tokens of a tokenizer."""

    def __init__(self, source: str, tokenizer: Tokenizer, where: Path) -> None:
        """Compile `source`, which is from the file `where`.

        Raises TokenizerError where it is not Jinja, or the tokenizer does not name its special tokens: only those of
        Hugging Face do.
        """
        self.jinja, self._where = source, where
        self._special = _special_tokens(tokenizer)
        self._split = re.compile(f"({'|'.join(map(re.escape, sorted(self._special, key=len, reverse=True)))})")
        names = {identifier: name for name, identifier in self._special.items()}
        begin = tokenizer.begin_of_document
        self._variables = {
            "bos_token": "" if begin is None else names.get(begin, ""),
            "eos_token": names.get(tokenizer.end_of_document, ""),
        }
        self._template = self._compile(source)

    @cached_property
    def end_of_answer(self) -> int:
        """See `Template`. Raises as `spans`."""
        spans = self.spans([Message("user", "?"), Message("assistant", "!")])
        return next(span.special for span in reversed(spans) if span.special is not None and span.is_target)

    def spans(self, messages: Sequence[Message]) -> list[Span]:
        """See `Template`. Raises TokenizerError where the template does not show where an answer begins or ends."""
        marked = self._render(_with_markers(messages), False)
        parts = _MARKER.split(marked)
        if parts[1::2] != [str(number) for number in range(len(messages))]:
            self._refuse("it leaves out a message, or writes one twice", f"messages {', '.join(parts[1::2])}")
        template_texts = parts[0::2]
        contents = self._contents(messages, template_texts)
        spans: list[Span] = []
        pending = template_texts[0]  # text of the template that is not in a span yet
        position = len(pending)  # in `marked`
        for index, (message, content) in enumerate(zip(messages, contents, strict=True)):
            after = template_texts[index + 1]
            position += len(f"\x02message {index}\x03")
            if message.role == "assistant":
                before = self._before_answer(messages[:index], marked, position)
                spans += self._template_spans(pending.removesuffix(before))
                spans += self._template_spans(before, is_target=True)
                spans += mask_tool_output(content)
                end, pending = self._end_of_turn(after)
                spans += self._template_spans(end, is_target=True)
            else:
                spans += self._template_spans(pending)
                spans.append(Span(content, False))
                pending = after
            position += len(after)
        return _joined([*spans, *self._template_spans(pending)])

    def _contents(self, messages: Sequence[Message], template_texts: Sequence[str]) -> list[str]:
        """What the template writes of each message: all of it, or all but the blanks around it."""
        rendered = self._render(messages, False)
        first, *others = template_texts
        for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
            if first + "".join(content + text for content, text in zip(contents, others, strict=True)) == rendered:
                return contents
        self._refuse("it changes a message", f"{rendered!r:.200}")

    def _before_answer(self, messages: Sequence[Message], marked: str, marker_end: int) -> str:
        """The template's text between the generation prompt and the answer, which the model has to write."""
        prompt = self._render(_with_markers(messages), True)
        before = marked[len(prompt) : marker_end]
        if not marked.startswith(prompt) or _MARKER.search(before) is None:
            self._refuse("its generation prompt is not how it begins an answer", f"{prompt!r:.200}")
        return _MARKER.sub("", before)

    def _end_of_turn(self, after: str) -> tuple[str, str]:
        """The template's text through the token that ends an answer, and the text behind it."""
        match = self._split.search(after)
        if match is None:
            self._refuse("no special token ends an answer, so the model would never stop", f"{after!r:.200}")
        return after[: match.end()], after[match.end() :]

    def _template_spans(self, text: str, is_target: bool = False) -> Iterator[Span]:
        """A text of the template as texts and special tokens."""
        for part in self._split.split(text):
            if part in self._special:
                yield Span("", is_target, self._special[part])
            elif part:
                yield Span(part, is_target)

    def _compile(self, source: str) -> Any:
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise DependencyError(
                "a tokenizer's chat template needs the package jinja2",
                found="it is not installed",
                expected="jinja2",
                fix="pip install jinja2, or use --template deepseekmath",
            ) from error

        def raise_exception(message: str) -> NoReturn:
            raise TemplateError(message)

        # The settings of transformers (utils/chat_template_utils.py), for which such templates are written.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            return environment.from_string(_GENERATION_TAGS.sub("", source))
        except TemplateError as error:
            self._refuse("it is not Jinja", error)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [message._asdict() for message in messages]
        try:
            return str(
                self._template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self._variables)
            )
        except Exception as error:  # a template may fail in any way a program can
            self._refuse("it fails on a conversation", f"{type(error).__name__}: {error}")

    def _refuse(self, what: str, found: object) -> NoReturn:
        raise TokenizerError(
            f"the chat template cannot be used: {what}",
            where=self._where,
            found=found,
            expected="a template that writes each message once, and a special token after each answer",
            fix="correct it, or use --template deepseekmath",
        ) from None


def read_chat_template(tokenizer: Tokenizer) -> tuple[str, Path]:
    """The Jinja source beside a tokenizer, and its file. Raises TokenizerError where there is none."""
    beside = tokenizer.path.with_name("chat_template.jinja")
    config = tokenizer.path.with_name("tokenizer_config.json")
    try:
        if beside.is_file():
            return beside.read_text(encoding="utf-8"), beside
        source = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise _no_template(config, error) from error
    if isinstance(source, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        raise _no_template(config, "no chat_template")
    return source, config


def _no_template(where: Path, found: object) -> TokenizerError:
    return TokenizerError(
        "the tokenizer has no chat template",
        where=where,
        found=found,
        expected="chat_template in a tokenizer_config.json, or chat_template.jinja",
        fix="use --template deepseekmath, or name a Jinja file",
    )


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The id of each special token by its name."""
    entries: Any = []
    if tokenizer.path.suffix == ".json":
        entries = json.loads(tokenizer.path.read_bytes()).get("added_tokens", [])
    named = {str(entry["content"]): int(entry["id"]) for entry in entries if entry.get("special")}
    if not named:
        raise TokenizerError(
            "the tokenizer does not name its special tokens",
            where=tokenizer.path,
            found="none",
            expected="added_tokens in a tokenizer.json, some of them special",
            fix="use --template deepseekmath",
        )
    return named


def _with_markers(messages: Sequence[Message]) -> list[Message]:
    return [message._replace(content=f"\x02message {number}\x03") for number, message in enumerate(messages)]


def _joined(spans: Sequence[Span]) -> list[Span]:
    """The spans with adjacent texts of the same `is_target` as one, as a server or the model would write them."""
    joined = list(spans[:1])
    for span in spans[1:]:
        last = joined[-1]
        if last.special is None and span.special is None and last.is_target == span.is_target:
            joined[-1] = last._replace(text=last.text + span.text)
        else:
            joined.append(span)
    return joined
