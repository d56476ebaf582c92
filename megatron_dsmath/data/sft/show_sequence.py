"""One packed sequence: its tokens, which of them are learned, and the examples they are of."""

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

PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; margin: 0 0 1.5rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .3rem; }}
.learned {{ background: light-dark(#b9e6c5, #1d5b33); }}
.learned.odd {{ background: light-dark(#d8f2df, #2a7545); }}
.given {{ color: light-dark(#6b6b6b, #a0a0a0); }}
.given.odd {{ background: light-dark(#f1f1f1, #262626); }}
.special {{ outline: 1px solid currentColor; }}
</style>
<h1>{title}</h1>
<p>{summary}
<span class="learned">learned</span> <span class="given">given</span> <span class="special">special</span></p>
{documents}
<p>{padding}</p>
</html>
"""


def print_sequence(shown: SequenceView, tokenizer: Path | None, as_json: bool) -> None:
    """The sequence in colours on a terminal, with ⟦ ⟧ around what is learned in a pipe, or as JSON.

    `tokenizer`: where the one lies that the set was made with; None: where it lay then.
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
        parts = list(decode_spans(shown, document, engine))
        if not console.is_terminal:
            print(_marked(parts))
            continue
        text = Text()
        for place, stretch in enumerate(parts):
            style = ("bold green", "green")[place % 2] if stretch.is_learned else ("bright_black", "dim")[place % 2]
            text.append(stretch.text, f"{style} reverse" if stretch.is_special else style)
        console.print(text)
    print(_padding(shown))


def write_page(shown: SequenceView, tokenizer: Path | None, path: Path) -> Path:
    """The sequence as an HTML page at `path`, one element a token. Raises OutputError."""
    engine = load_set_tokenizer(shown, tokenizer)
    documents = []
    for document in shown.documents:
        spans = "".join(_span(place, part) for place, part in enumerate(decode_spans(shown, document, engine)))
        documents.append(f"<h2>{html.escape(_title(document))}</h2>\n<pre>{spans}</pre>")
    page = PAGE.format(
        title=html.escape(f"{shown.prefix.name}, sequence {shown.index:,}"),
        summary=html.escape(_summary(shown)),
        documents="\n".join(documents),
        padding=_padding(shown),
    )
    replace_text(path, page, durable=True)
    return path


def _marked(parts: Sequence[DecodedSpan]) -> str:
    text = ""
    was_learned = False
    for stretch in parts:
        text += "" if stretch.is_learned == was_learned else "⟦" if stretch.is_learned else "⟧"
        text += stretch.text
        was_learned = stretch.is_learned
    return text + "⟧" * was_learned


def _span(place: int, stretch: DecodedSpan) -> str:
    names = ["learned" if stretch.is_learned else "given", *(["odd"] if place % 2 else [])]
    names += ["special"] if stretch.is_special else []
    ids = " ".join(map(str, stretch.ids))
    return f'<span class="{" ".join(names)}" title="{ids}">{html.escape(stretch.text)}</span>'


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
        f"{sum(shown.loss_mask):,} of them learned"
    )


def _padding(shown: SequenceView) -> str:
    return f"{len(shown.tokens) - shown.token_count:,} tokens of padding"


LONGEST_CHARACTER_TOKENS = 8  # of a byte-level vocabulary: no character takes more


@dataclass(frozen=True)
class DocumentView:
    """What a sequence holds of one example: its tokens from `first_token` to before `end_token` of the sequence."""

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
    """A packed sequence. `tokens` has `sequence_length` entries, those from `token_count` on are padding.

    `loss_mask`: 1 where the token is a target. `document_starts`: where examples begin, 0 included.
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
    """Tokens that form whole characters together, nearly always one."""

    text: str
    ids: list[int]
    is_learned: bool
    is_special: bool


def load_sequence(prefix: str | Path, index: int) -> SequenceView:
    """Sequence `index` of a set, packed as its sidecar says; numbers go on through the epochs.

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


def load_set_tokenizer(shown: SequenceView, path: Path | None) -> Tokenizer:
    """The tokenizer that the set was made with: from `path`, or where it lay then. Raises TokenizerError."""
    examples = Examples(shown.prefix)
    facts = examples.facts
    tokenizer = load_tokenizer(path or facts["tokenizer_path"], facts["options"]["eod_token"])
    if tokenizer.fingerprint != tokenizer_fingerprint(examples.sidecar):
        raise TokenizerError(
            "the set was made with another tokenizer",
            where=tokenizer.path,
            found=f"fingerprint {tokenizer.fingerprint}",
            expected=f"fingerprint {tokenizer_fingerprint(examples.sidecar)}",
            fix="name the one that it was made with: --tokenizer",
        )
    return tokenizer


def decode_spans(shown: SequenceView, document: DocumentView, tokenizer: Tokenizer) -> Iterator[DecodedSpan]:
    """The tokens of a document as text; no stretch reaches over a seam."""
    special = (tokenizer.begin_of_document, tokenizer.end_of_document)
    ids: list[int] = []
    for place in range(document.first_token, document.end_token):
        token, is_learned = shown.tokens[place], bool(shown.loss_mask[place])
        ids.append(token)
        ends = place + 1 == document.end_token or shown.loss_mask[place + 1] != is_learned
        text = tokenizer.decode(ids)
        if ends or len(ids) == LONGEST_CHARACTER_TOKENS or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            is_special = token in special
            yield DecodedSpan(text or f"<{token}>" if is_special else text, ids, is_learned, is_special)
            ids = []


def _document(examples: Examples, example: int, first_token: int, end_token: int) -> DocumentView:
    labels = dict(zip(COLUMNS, examples.labels[example].tolist(), strict=True))
    kind, language, source, file = (
        examples.names(name)[labels[name]] for name in ("kind", "language", "source", "file")
    )
    topic = examples.names("topic")[labels["topic"]] if labels["topic"] >= 0 else None
    return DocumentView(example, first_token, end_token, kind, language, source, topic, file, labels["line"])
