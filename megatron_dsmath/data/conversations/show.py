"""One packed sequence: its tokens, which of them are learned, and the examples they are of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.data.conversations.examples import COLUMNS, Examples
from megatron_dsmath.data.conversations.packed import PackedExamples
from megatron_dsmath.data.indexed.sidecar import tokenizer_fingerprint
from megatron_dsmath.data.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import TokenizerError, UsageError

LONGEST_CHARACTER_TOKENS = 8  # of a byte-level vocabulary: no character takes more


@dataclass(frozen=True)
class ShownDocument:
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
class ShownSequence:
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
    documents: list[ShownDocument]


class Stretch(NamedTuple):
    """Tokens that form whole characters together, nearly always one."""

    text: str
    ids: list[int]
    is_learned: bool
    is_special: bool


def shown_sequence(prefix: str | Path, index: int) -> ShownSequence:
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
    return ShownSequence(
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


def tokenizer_of(shown: ShownSequence, path: Path | None) -> Tokenizer:
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


def stretches(shown: ShownSequence, document: ShownDocument, tokenizer: Tokenizer) -> Iterator[Stretch]:
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
            yield Stretch(text or f"<{token}>" if is_special else text, ids, is_learned, is_special)
            ids = []


def _document(examples: Examples, example: int, first_token: int, end_token: int) -> ShownDocument:
    labels = dict(zip(COLUMNS, examples.labels[example].tolist(), strict=True))
    kind, language, source, file = (
        examples.names(name)[labels[name]] for name in ("kind", "language", "source", "file")
    )
    topic = examples.names("topic")[labels["topic"]] if labels["topic"] >= 0 else None
    return ShownDocument(example, first_token, end_token, kind, language, source, topic, file, labels["line"])
