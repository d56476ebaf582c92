"""A tokenizer's own chat template, in Jinja: rendered in a sandbox, its marks told from what people wrote.

The template is rendered twice: with the messages, and with a mark in the place of each. What stands between the marks
is the template's own, and only there are the names of special tokens special tokens. Both renderings must agree, so a
template that does more with a content than to write it, or to strip its blanks, is refused and not guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.loss_masks import split_turn
from megatron_dsmath.data.sft.template import DeepSeekMathTemplate, Piece, Template
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.errors import DependencyError, TokenizerError, UsageError

_MARK = re.compile("\x02message ([0-9]+)\x03")
_GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own, and only a hint to it


class JinjaTemplate:
    """A chat template with the special tokens of a tokenizer."""

    def __init__(self, source: str, tokenizer: Tokenizer, where: Path) -> None:
        """Compile `source`. Raises TokenizerError where it is no Jinja, or the tokenizer's special tokens are unknown.

        Only a Hugging Face tokenizer names its special tokens.
        """
        self.jinja, self._where = source, where
        self._special = _special_tokens(tokenizer)
        self._split = re.compile(f"({'|'.join(map(re.escape, sorted(self._special, key=len, reverse=True)))})")
        ids = {identifier: name for name, identifier in self._special.items()}
        begin = tokenizer.begin_of_document
        self._names = {
            "bos_token": "" if begin is None else ids.get(begin, ""),
            "eos_token": ids.get(tokenizer.end_of_document, ""),
        }
        self._template = self._compile(source)

    @cached_property
    def end_of_answer(self) -> int:
        """See `Template`. Raises as `pieces`."""
        pieces = self.pieces([Message("user", "?"), Message("assistant", "!")])
        return next(piece.special for piece in reversed(pieces) if piece.special is not None and piece.is_target)

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """See `Template`. Raises TokenizerError where the template does not say where an answer begins or ends."""
        skeleton = self._render(_marked(messages), False)
        parts = _MARK.split(skeleton)
        if parts[1::2] != [str(number) for number in range(len(messages))]:
            self._refuse("it leaves out a message, or writes one twice", f"messages {', '.join(parts[1::2])}")
        contents = self._contents(messages, parts[0::2])
        pieces: list[Piece] = []
        unsaid = parts[0]
        written = len(parts[0])  # of the skeleton
        for number, (message, content) in enumerate(zip(messages, contents, strict=True)):
            after = parts[2 * number + 2]
            written += len(f"\x02message {number}\x03")
            if message.role == "assistant":
                before = self._before_answer(messages[:number], skeleton, written)
                pieces += self._own(unsaid.removesuffix(before))
                pieces += self._own(before, is_target=True)
                pieces += [Piece(run.text, None, run.is_target) for run in split_turn(content)]
                end, unsaid = self._end_of_turn(after)
                pieces += self._own(end, is_target=True)
            else:
                pieces += self._own(unsaid)
                pieces.append(Piece(content, None, False))
                unsaid = after
            written += len(parts[2 * number + 2])
        return _joined([*pieces, *self._own(unsaid)])

    def _contents(self, messages: Sequence[Message], own: Sequence[str]) -> list[str]:
        """What the template writes of each message: all of it, or all but the blanks around it."""
        rendered = self._render(messages, False)
        for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
            if own[0] + "".join(content + text for content, text in zip(contents, own[1:], strict=True)) == rendered:
                return contents
        self._refuse("it changes what a message says", f"{rendered!r:.200}")

    def _before_answer(self, messages: Sequence[Message], skeleton: str, mark_end: int) -> str:
        """What stands between the prompt that asks for an answer and the answer: the model writes it."""
        prompt = self._render(_marked(messages), True)
        before = _MARK.sub("", skeleton[len(prompt) : mark_end])
        if not skeleton.startswith(prompt) or _MARK.search(skeleton[len(prompt) : mark_end]) is None:
            self._refuse("its generation prompt is not how it begins an answer", f"{prompt!r:.200}")
        return before

    def _end_of_turn(self, after: str) -> tuple[str, str]:
        """The template's own text through the token that ends an answer, and what comes behind it."""
        match = self._split.search(after)
        if match is None:
            self._refuse("no special token ends an answer, so the model would never stop", f"{after!r:.200}")
        return after[: match.end()], after[match.end() :]

    def _own(self, text: str, is_target: bool = False) -> Iterator[Piece]:
        """Text of the template, its special tokens told from the rest."""
        for part in self._split.split(text):
            if part in self._special:
                yield Piece("", self._special[part], is_target)
            elif part:
                yield Piece(part, None, is_target)

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

        # As transformers sets it up (utils/chat_template_utils.py), for which such templates are written.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            return environment.from_string(_GENERATION_TAGS.sub("", source))
        except TemplateError as error:
            self._refuse("it is no Jinja", error)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [message._asdict() for message in messages]
        try:
            return str(
                self._template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self._names)
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


def open_template(name: str, tokenizer: Tokenizer) -> Template:
    """A template by its name in `Options`. Raises TokenizerError, UsageError, DependencyError."""
    if name == "deepseekmath":
        return DeepSeekMathTemplate(tokenizer)
    if name == "tokenizer":
        source, where = chat_template_of(tokenizer)
        return JinjaTemplate(source, tokenizer, where)
    path = Path(name)
    try:
        return JinjaTemplate(path.read_text(encoding="utf-8"), tokenizer, path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the template cannot be read",
            where=f"--template {name}",
            found=error,
            expected="deepseekmath, tokenizer, or a file of Jinja",
        ) from error


def chat_template_of(tokenizer: Tokenizer) -> tuple[str, Path]:
    """The Jinja source that comes with a tokenizer, and the file it stands in. Raises TokenizerError without one."""
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
        fix="use --template deepseekmath, or name a file of Jinja",
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


def _marked(messages: Sequence[Message]) -> list[Message]:
    return [message._replace(content=f"\x02message {number}\x03") for number, message in enumerate(messages)]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Texts that stand together and are learned alike as one, as a server or the model would write them."""
    joined = list(pieces[:1])
    for piece in pieces[1:]:
        last = joined[-1]
        if last.special is None and piece.special is None and last.is_target == piece.is_target:
            joined[-1] = last._replace(text=last.text + piece.text)
        else:
            joined.append(piece)
    return joined
