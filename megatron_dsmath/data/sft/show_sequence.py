"""`dsmath sft show`: one packed sequence with its loss mask, as text, JSON or an HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.data.indexed.sidecar import tokenizer_fingerprint
from megatron_dsmath.data.sft.examples import COLUMNS, Examples
from megatron_dsmath.data.sft.packing import PackedExamples
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import TokenizerError, UsageError
from megatron_dsmath.files.atomic_files import replace_text

LONGEST_CHARACTER_TOKENS = 8  # a character has no more tokens in a byte-level vocabulary


@dataclass(frozen=True)
class DocumentView:
    """The part of an example that a sequence holds: tokens `first_token` up to, without, `end_token`."""

    example: int
    first_token: int
    end_token: int
    kind: str
    language: str
    source: str
    topic: str | None
    file: str
    line: int


@dataclass(frozen=True)
class SequenceView:
    """A packed sequence. `tokens` has `sequence_length` entries, padding from `token_count` on.

    `loss_mask`: 1 where the token is a target. `document_starts`: where examples begin, from 0.
    """

    prefix: Path
    index: int
    epoch: int
    sequence: int
    token_count: int
    tokens: list[int]
    loss_mask: list[int]
    document_starts: list[int]
    documents: list[DocumentView]


class DecodedSpan(NamedTuple):
    """Tokens that form complete characters together, nearly always one token."""

    text: str
    ids: list[int]
    is_target: bool
    is_special: bool


def load_sequence(prefix: str | Path, index: int) -> SequenceView:
    """Sequence `index` of a set, counted through all epochs and packed with the options in its sidecar.

    Raises UsageError, DataError.
    """
    if index < 0:
        raise UsageError("there is no such sequence", where="--index", found=index, expected="0 or more")
    examples = Examples(prefix)
    options = examples.facts["options"]
    packed = PackedExamples(examples, options["sequence_length"], options["seed"], options["packing"])
    epoch, number = packed.locate(index)
    sequence = packed.read(index)
    length = packed.sequence_length
    token_count = min(length, sequence.token_count)
    starts = sequence.document_starts.tolist()
    bounds = zip(sequence.examples.tolist(), starts, [*starts[1:], token_count], strict=True)
    return SequenceView(
        prefix=examples.prefix,
        index=index,
        epoch=epoch,
        sequence=number,
        token_count=token_count,
        tokens=sequence.tokens[:length].tolist(),
        loss_mask=[0, *sequence.loss_mask[:-1].astype(int).tolist()],
        document_starts=starts,
        documents=[_document(examples, *bound) for bound in bounds],
    )


def _document(examples: Examples, example: int, first_token: int, end_token: int) -> DocumentView:
    labels = dict(zip(COLUMNS, examples.labels[example].tolist(), strict=True))
    kind, language, source, file = (
        examples.names(name)[labels[name]] for name in ("kind", "language", "source", "file")
    )
    topic = examples.names("topic")[labels["topic"]] if labels["topic"] >= 0 else None
    return DocumentView(example, first_token, end_token, kind, language, source, topic, file, labels["line"])


def print_sequence(shown: SequenceView, tokenizer: Path | None, as_json: bool) -> None:
    """Print the sequence: in colours on a terminal, with ⟦ ⟧ around targets in a pipe, or as JSON.

    `tokenizer`: the path of the set's tokenizer; None for the path when the set was built.
    """
    if as_json:
        print(json.dumps(asdict(shown), default=str, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    engine = load_set_tokenizer(shown, tokenizer)
    console = Console(highlight=False, soft_wrap=True)
    print(_summary(shown))
    for document in shown.documents:
        print(f"--- {_title(document)}")
        spans = list(decode_spans(shown, document, engine))
        if not console.is_terminal:
            print(_marked(spans))
            continue
        text = Text()
        for index, span in enumerate(spans):
            style = ("bold green", "green")[index % 2] if span.is_target else ("bright_black", "dim")[index % 2]
            text.append(span.text, f"{style} reverse" if span.is_special else style)
        console.print(text)
    print(_padding(shown))


def write_page(shown: SequenceView, tokenizer: Path | None, path: Path) -> Path:
    """Write the sequence as an HTML page with one element per token. Raises OutputError."""
    engine = load_set_tokenizer(shown, tokenizer)
    documents = []
    for document in shown.documents:
        elements = "".join(_span(index, span) for index, span in enumerate(decode_spans(shown, document, engine)))
        documents.append(f"<h2>{html.escape(_title(document))}</h2>\n<pre>{elements}</pre>")
    page = PAGE.format(
        title=html.escape(f"{shown.prefix.name}, sequence {shown.index:,}"),
        summary=html.escape(_summary(shown)),
        documents="\n".join(documents),
        padding=_padding(shown),
    )
    replace_text(path, page, durable=True)
    return path


def load_set_tokenizer(shown: SequenceView, path: Path | None) -> Tokenizer:
    """Load the set's tokenizer from `path`, or from its path when the set was built. Raises TokenizerError."""
    examples = Examples(shown.prefix)
    facts = examples.facts
    tokenizer = load_tokenizer(path or facts["tokenizer_path"], facts["options"]["eod_token"])
    if tokenizer.fingerprint != tokenizer_fingerprint(examples.sidecar):
        raise TokenizerError(
            "the set was built with another tokenizer",
            where=tokenizer.path,
            found=f"fingerprint {tokenizer.fingerprint}",
            expected=f"fingerprint {tokenizer_fingerprint(examples.sidecar)}",
            fix="give the tokenizer of the set: --tokenizer",
        )
    return tokenizer


def decode_spans(shown: SequenceView, document: DocumentView, tokenizer: Tokenizer) -> Iterator[DecodedSpan]:
    """The tokens of a document as text. No span crosses a change of the loss mask."""
    special = (tokenizer.begin_of_document, tokenizer.end_of_document)
    ids: list[int] = []
    for position in range(document.first_token, document.end_token):
        token, is_target = shown.tokens[position], bool(shown.loss_mask[position])
        ids.append(token)
        ends = position + 1 == document.end_token or shown.loss_mask[position + 1] != is_target
        text = tokenizer.decode(ids)
        if ends or len(ids) == LONGEST_CHARACTER_TOKENS or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            is_special = token in special
            yield DecodedSpan(text or f"<{token}>" if is_special else text, ids, is_target, is_special)
            ids = []


def _marked(spans: Sequence[DecodedSpan]) -> str:
    text = ""
    was_target = False
    for span in spans:
        text += "" if span.is_target == was_target else "⟦" if span.is_target else "⟧"
        text += span.text
        was_target = span.is_target
    return text + "⟧" * was_target


def _span(index: int, span: DecodedSpan) -> str:
    names = ["target" if span.is_target else "context", *(["odd"] if index % 2 else [])]
    names += ["special"] if span.is_special else []
    ids = " ".join(map(str, span.ids))
    return f'<span class="{" ".join(names)}" title="{ids}">{html.escape(span.text)}</span>'


def _title(document: DocumentView) -> str:
    topic = f", {document.topic}" if document.topic else ""
    return (
        f"{document.file}:{document.line}, {document.source}, {document.kind}, {document.language}{topic}, "
        f"tokens {document.first_token:,} to {document.end_token - 1:,}"
    )


def _summary(shown: SequenceView) -> str:
    return (
        f"sequence {shown.index:,}: number {shown.sequence:,} of epoch {shown.epoch:,}, "
        f"{len(shown.documents)} examples, {shown.token_count:,} of {len(shown.tokens):,} tokens, "
        f"{sum(shown.loss_mask):,} of them targets"
    )


def _padding(shown: SequenceView) -> str:
    return f"{len(shown.tokens) - shown.token_count:,} tokens of padding"


PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; margin: 0 0 1.5rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .3rem; }}
.target {{ background: light-dark(#b9e6c5, #1d5b33); }}
.target.odd {{ background: light-dark(#d8f2df, #2a7545); }}
.context {{ color: light-dark(#6b6b6b, #a0a0a0); }}
.context.odd {{ background: light-dark(#f1f1f1, #262626); }}
.special {{ outline: 1px solid currentColor; }}
</style>
<h1>{title}</h1>
<p>{summary}
<span class="target">target</span> <span class="context">context</span> <span class="special">special</span></p>
{documents}
<p>{padding}</p>
</html>
"""
