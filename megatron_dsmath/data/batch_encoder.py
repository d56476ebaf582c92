"""What a worker of the tokenizing tool does: a batch of lines to the tokens of its documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.documents import BadLine, Document, quarantine_row
from megatron_dsmath.data.indexed.dataset import dtype_for
from megatron_dsmath.data.pieces.encoded_texts import EncodedTexts
from megatron_dsmath.data.tokenizer import load_tokenizer
from megatron_dsmath.errors import TokenizerError


class DocumentBatch(Protocol):
    """Lines of a text file, or rows of a table; `read_bytes` are those of all files up to its end."""

    @property
    def read_bytes(self) -> int: ...  # noqa: D102

    def documents(self, fields: Sequence[str]) -> Iterator[Document | BadLine]:
        """What each line is, with the texts of `fields`."""


@dataclass(frozen=True)
class Options:
    """What decides the tokens, next to the texts and the tokenizer. The sidecar keeps it."""

    append_eod: bool
    prepend_bos: bool
    eod_token: str | None
    parse_special: bool
    bad_lines: str
    shuffle_seed: int | None


class EncodedBatch(NamedTuple):
    """Documents of a batch: `tokens` for each field, end to end; `lengths` [fields, documents]; rows of bad lines."""

    read_bytes: int
    tokens: list[npt.NDArray[np.integer]]
    lengths: npt.NDArray[np.int64]
    bad_rows: list[bytes]


class BatchEncoder:
    """Encodes the `fields` of each line of a batch. Raises the DataError of a bad line that may not be skipped."""

    def __init__(self, tokenizer: Path, fields: Sequence[str], options: Options) -> None:
        """Load the tokenizer. Raises TokenizerError."""
        self.tokenizer = load_tokenizer(tokenizer, options.eod_token, parse_special=options.parse_special)
        self.dtype = dtype_for(self.tokenizer.vocabulary_size)
        self._fields = fields
        self._skip_bad_lines = options.bad_lines == "skip"
        self._before = self._beginning() if options.prepend_bos else []
        self._after = [self.tokenizer.end_of_document] if options.append_eod else []

    def __call__(self, batch: DocumentBatch) -> EncodedBatch:
        """The tokens of one batch."""
        texts: list[tuple[str, ...]] = []
        bad_rows = []
        for document in batch.documents(self._fields):
            if isinstance(document, Document):
                texts.append(document.texts)
            elif self._skip_bad_lines:
                bad_rows.append(quarantine_row(document.path, document.line, document.error))
            else:
                raise document.error
        columns = [*zip(*texts, strict=True)] or [()] * len(self._fields)
        encoded = [self._as_documents(self.tokenizer.encode_arrays(column)) for column in columns]
        tokens = [field.tokens.astype(self.dtype, copy=False) for field in encoded]
        return EncodedBatch(batch.read_bytes, tokens, np.stack([field.lengths for field in encoded]), bad_rows)

    def _as_documents(self, encoded: EncodedTexts) -> EncodedTexts:
        """Every text with its BOS and EOD, where they are asked for; one that comes to no token stays empty."""
        marked = (encoded.lengths > 0) | bool(self._before)
        lengths = encoded.lengths + marked * (len(self._before) + len(self._after))
        ends = np.cumsum(lengths)
        tokens = np.empty(int(lengths.sum()), encoded.tokens.dtype)
        is_text = np.ones(len(tokens), np.bool_)
        for marks, places in ((self._before, (ends - lengths)[marked]), (self._after, ends[marked] - 1)):
            if marks:
                tokens[places], is_text[places] = marks[0], False
        tokens[is_text] = encoded.tokens
        return EncodedTexts(tokens, lengths)

    def _beginning(self) -> list[int]:
        if self.tokenizer.begin_of_document is None:
            raise TokenizerError(
                "the tokenizer has no token that begins a document",
                where=self.tokenizer.path,
                found="no BOS token",
                expected="one, to prepend it",
                fix="leave out --prepend-bos",
            )
        return [self.tokenizer.begin_of_document]
