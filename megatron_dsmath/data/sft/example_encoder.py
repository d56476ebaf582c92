"""The encoder of `sft build`: rows of a file become examples with loss masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.sft.conversation import KINDS, LANGUAGES, Conversation, parse_row
from megatron_dsmath.data.sft.examples import COLUMNS, NO_TOPIC
from megatron_dsmath.data.sft.formats import read_conversation
from megatron_dsmath.data.sft.jinja_template import open_template
from megatron_dsmath.data.sft.loss_masks import Span
from megatron_dsmath.data.sft.sources import ConversationSource, SourceFile
from megatron_dsmath.data.sft.template import ConversationEncoder, EncodedExamples, add_instruction
from megatron_dsmath.data.text.document_batches import LineBatch, TableBatch, TableRow
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import DataError, TokenizerError
from megatron_dsmath.files.lines import Line

TOO_LONG = ("drop", "truncate", "fail")
OUTCOMES = ("truncated", "too_long", "without_target")


@dataclass(frozen=True)
class Options:
    """The options of a set, which are stored in its sidecar.

    `template`: "deepseekmath", "tokenizer" for the template of the tokenizer, or a Jinja file. `too_long`: what is done
    with an example longer than `sequence_length` tokens, one of TOO_LONG. `packing` and `seed` are used by the report
    and by `sft show`.
    """

    sequence_length: int = 4096
    template: str = "deepseekmath"
    too_long: str = "drop"
    bad_lines: str = "fail"
    packing: str = "next-fit"
    seed: int = 0
    eod_token: str | None = None


class BatchExamples(NamedTuple):
    """The examples of a batch. `labels`: int32 [examples, COLUMNS], without the numbers of `topics`.

    `dropped` counts the examples that are longer than a sequence, by OUTCOMES.
    """

    path: Path
    read_bytes: int
    file: SourceFile
    examples: EncodedExamples
    labels: npt.NDArray[np.int32]
    topics: list[str | None]
    bad_lines: list[tuple[Line, DataError]]
    dropped: Counter[str]


class BatchEncoder:
    """Encodes the rows of one file at a time."""

    def __init__(
        self, tokenizer: Path, options: Options, sources: Sequence[ConversationSource], files: Sequence[SourceFile]
    ) -> None:
        self.tokenizer = load_tokenizer(tokenizer, options.eod_token)
        self.template = open_template(options.template, self.tokenizer)
        self._encoder = ConversationEncoder(self.template, self.tokenizer)
        self._options, self._sources = options, sources
        self._files = {file.path: file for file in files}

    def __call__(self, batch: LineBatch | TableBatch) -> BatchExamples:
        """Encode the rows of a batch. Raises DataError for an example that is too long under `too_long="fail"`."""
        file = self._files[batch.path]
        lines, conversations, spans, bad_lines = [], [], [], []
        for row in batch.rows:
            try:
                conversation = self._read(file, row)
                spans.append(self._write(conversation, file, row.number))
            except DataError as error:
                bad_lines.append((row if isinstance(row, Line) else row.line(), error))
            else:
                conversations.append(conversation)
                lines.append(row.number)
        encoded = self._encoder.encode_spans(spans)
        examples, kept, dropped = self._fit(encoded, file, lines)
        fitting = [(conversations[index], lines[index]) for index in np.flatnonzero(kept).tolist()]
        labels = np.array(
            [
                (KINDS.index(one.kind), LANGUAGES.index(one.language), file.source, NO_TOPIC, file.number, line, 0)
                for one, line in fitting
            ],
            np.int32,
        ).reshape(-1, len(COLUMNS))
        labels[:, COLUMNS.index("target_tokens")] = examples.target_counts()
        topics = [one.topic for one, _ in fitting]
        return BatchExamples(batch.path, batch.read_bytes, file, examples, labels, topics, bad_lines, dropped)

    def _read(self, file: SourceFile, row: Line | TableRow) -> Conversation:
        source = self._sources[file.source]
        conversation = read_conversation(
            parse_row(file.path, row),
            file.format,
            is_detected=file.format_is_detected,
            kind=source.kind,
            language=source.language,
        )
        if source.instruction is None:
            return conversation
        return conversation._replace(
            messages=add_instruction(conversation.messages, source.instruction, conversation.language)
        )

    def _write(self, conversation: Conversation, file: SourceFile, line: int) -> list[Span]:
        try:
            return self.template.spans(conversation.messages)
        except TokenizerError as error:
            where = f"{file.path}:{line}"
            raise DataError(
                error.what, where=where, found=error.found, expected=error.expected, fix=error.fix
            ) from None

    def _fit(
        self, encoded: EncodedExamples, file: SourceFile, lines: Sequence[int]
    ) -> tuple[EncodedExamples, npt.NDArray[np.bool_], Counter[str]]:
        """The examples that fit into a sequence, which of all they are, and counts of the others by outcome."""
        limit, policy = self._options.sequence_length, self._options.too_long
        is_long = encoded.lengths > limit
        if not is_long.any():
            return encoded, np.ones(len(lines), np.bool_), Counter()
        if policy == "fail":
            first = int(np.argmax(is_long))
            raise DataError(
                "an example is longer than a sequence",
                where=f"{file.path}:{lines[first]}",
                found=f"{encoded.lengths[first]:,} tokens",
                expected=f"at most {limit:,}",
                fix="--too-long drop or truncate, or a longer --sequence-length",
            )
        starts = np.cumsum(encoded.lengths) - encoded.lengths
        is_within = np.arange(len(encoded.tokens)) - np.repeat(starts, encoded.lengths) < limit
        within = encoded._replace(is_target=encoded.is_target & is_within)
        kept = ~is_long | (within.target_counts() > 0) if policy == "truncate" else ~is_long
        dropped = "without_target" if policy == "truncate" else "too_long"
        outcomes = {"truncated": is_long & kept, dropped: is_long & ~kept}
        of_kept = np.repeat(kept, encoded.lengths) & is_within
        fitting = EncodedExamples(
            encoded.tokens[of_kept], encoded.is_target[of_kept], np.minimum(encoded.lengths, limit)[kept]
        )
        return fitting, kept, Counter({outcome: int(rows.sum()) for outcome, rows in outcomes.items() if rows.any()})
