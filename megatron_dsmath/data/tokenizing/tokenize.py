"""The tokenize command: text files to PREFIX.bin, PREFIX.idx and PREFIX.json, with several processes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import bin_path, dtype_for, idx_path
from megatron_dsmath.data.indexed.sidecar import sidecar_path, tokenizer_metadata
from megatron_dsmath.data.text.document_batches import (
    DocumentBatch,
    document_batches,
    require_separate_outputs,
    require_valid_options,
)
from megatron_dsmath.data.text.documents import Document, quarantine_row
from megatron_dsmath.data.tokenizing.dataset_writers import DatasetWriters, open_datasets
from megatron_dsmath.data.tokenizing.journal import Journal
from megatron_dsmath.data.tokenizing.piece_encoder import EncodedTexts
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import DataError, TokenizerError, UsageError
from megatron_dsmath.files.lines import BLOCK_BYTES, require_content
from megatron_dsmath.files.progress import Progress, Report
from megatron_dsmath.files.worker_processes import WorkerProcesses


@dataclass(frozen=True)
class TokenizeReport:
    """The result of one call of `tokenize`. Every line of the input is a document or a bad line.

    `tokens`: total of all fields; `tokens_of_dataset`: per dataset, by its prefix.
    """

    prefix: Path
    documents: int
    tokens: int
    tokens_of_dataset: Mapping[str, int]
    bad_lines: int
    quarantine: Path | None
    input_bytes: int
    seconds: float


@dataclass(frozen=True)
class Options:
    """The options that determine the tokens, together with the texts and the tokenizer. The sidecar records them."""

    append_eod: bool
    prepend_bos: bool
    eod_token: str | None
    parse_special: bool
    bad_lines: str
    shuffle_seed: int | None


def tokenize(
    files: Sequence[str | Path],
    tokenizer: str | Path,
    out: str | Path,
    *,
    field: str | Mapping[str, str] = "text",
    workers: int = 1,
    append_eod: bool = True,
    prepend_bos: bool = False,
    eod_token: str | None = None,
    parse_special: bool = False,
    bad_lines: str = "fail",
    shuffle_seed: int | None = None,
    report_progress: Report | None = None,
) -> TokenizeReport:
    """Tokenize the `field` of every line of `files`, or of every row of a .parquet file, into the dataset `out`.

    Several fields are read in one pass: give a mapping from each field to the suffix of its dataset after `out`. A
    line without one of the fields is a bad line, so that document n of every dataset comes from the same line.

    A document is [BOS if requested] text [EOD if requested]; a text without tokens is an empty document, as in
    Megatron. The output does not depend on the number of `workers`. A bad line raises its DataError ("fail"), or is
    written with the reason to OUT.bad_lines.jsonl ("skip"). `shuffle_seed` puts the documents in a random order.
    `report_progress` is called after each batch. Raises UsageError, DataError, TokenizerError, OutputError or
    DependencyError, and then leaves no output. A run that was killed leaves a journal, from which the next run of the
    same task continues.
    """
    started = time.monotonic()
    endings = {field: ""} if isinstance(field, str) else field
    options = Options(append_eod, prepend_bos, eod_token, parse_special, bad_lines, shuffle_seed)
    paths, quarantine = [Path(file) for file in files], Path(f"{out}.bad_lines.jsonl")
    prefixes = [Path(f"{out}{ending}") for ending in endings.values()]
    require_valid_options(workers, bad_lines)
    _require_inputs_and_outputs(paths, prefixes)
    dataset_files = [path_of(prefix) for prefix in prefixes for path_of in (bin_path, idx_path, sidecar_path)]
    require_separate_outputs(paths, [*dataset_files, quarantine])
    input_bytes = sum(require_content(path) for path in paths)
    start = partial(BatchEncoder, Path(tokenizer), list(endings), options)
    with ExitStack() as stack:
        # Several workers begin to load the tokenizer; one worker is this process.
        processes = stack.enter_context(WorkerProcesses(start, workers)) if workers > 1 else None
        encode = start()
        journal = Journal(Path(out), _describe_task(encode.tokenizer, endings, options, paths))
        done = journal.read()
        batches = islice(document_batches(paths, list(endings)), done.batches, None)
        results = processes.map_in_order(batches) if processes else map(encode, batches)
        extra_files = [quarantine] if bad_lines == "skip" else []
        with open_datasets(prefixes, encode.dtype, extra_files, shuffle_seed, done.partial_files) as datasets, journal:
            datasets.restore_documents(done.lengths.reshape(-1, len(prefixes)).T)
            bad_count = done.bad_lines
            for number, result in enumerate(results, start=done.batches + 1):
                bad_count += len(result.bad_rows)
                for quarantined in datasets.extra_files:
                    quarantined.write(b"".join(result.bad_rows))
                datasets.add_documents(result.tokens, result.lengths)
                journal.add(number, bad_count, result.lengths.T.ravel(), datasets.growing_files)
                if report_progress is not None:
                    tokens = sum(datasets.token_counts)
                    report_progress(Progress(datasets.document_count, tokens, result.read_bytes, input_bytes))
            _require_tokens(datasets, list(endings), paths, bad_count)
            for writer, name in zip(datasets.writers, endings, strict=True):
                writer.metadata = {
                    **tokenizer_metadata(encode.tokenizer),
                    "bad_lines": bad_count,
                    "options": {"field": name, **asdict(options)},
                    "files": [path.name for path in paths],
                }
    journal.remove()
    if not extra_files:
        quarantine.unlink(missing_ok=True)  # an earlier run's file would contradict the sidecar
    return TokenizeReport(
        Path(out),
        documents=datasets.document_count,
        tokens=sum(datasets.token_counts),
        tokens_of_dataset=dict(zip(map(str, prefixes), datasets.token_counts, strict=True)),
        bad_lines=bad_count,
        quarantine=quarantine if extra_files else None,
        input_bytes=input_bytes,
        seconds=time.monotonic() - started,
    )


class EncodedBatch(NamedTuple):
    """The documents of a batch: concatenated `tokens` of each field, `lengths` [fields, documents], bad lines."""

    read_bytes: int
    tokens: list[npt.NDArray[np.integer]]
    lengths: npt.NDArray[np.int64]
    bad_rows: list[bytes]


class BatchEncoder:
    """Encodes the `fields` of each line of a batch. Raises the DataError of a bad line unless bad lines are skipped."""

    def __init__(self, tokenizer: Path, fields: Sequence[str], options: Options) -> None:
        """Load the tokenizer. Raises TokenizerError if it cannot be loaded or has no BOS that is to be prepended."""
        self.tokenizer = load_tokenizer(tokenizer, options.eod_token, parse_special=options.parse_special)
        self.dtype = dtype_for(self.tokenizer.vocabulary_size)
        self._fields = fields
        self._skip_bad_lines = options.bad_lines == "skip"
        begin = self.tokenizer.begin_of_document if options.prepend_bos else None
        if options.prepend_bos and begin is None:
            raise TokenizerError(
                "the tokenizer has no token that begins a document",
                where=self.tokenizer.path,
                found="no BOS token",
                expected="a BOS token, to prepend it",
                fix="leave out --prepend-bos",
            )
        self._before = [] if begin is None else [begin]
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
        encoded = [self._add_bos_and_eod(self.tokenizer.encode_arrays(column)) for column in columns]
        tokens = [field.tokens.astype(self.dtype, copy=False) for field in encoded]
        return EncodedBatch(batch.read_bytes, tokens, np.stack([field.lengths for field in encoded]), bad_rows)

    def _add_bos_and_eod(self, encoded: EncodedTexts) -> EncodedTexts:
        """Add the requested BOS and EOD to every text; a document without tokens stays empty."""
        marked = (encoded.lengths > 0) | bool(self._before)
        lengths = encoded.lengths + marked * (len(self._before) + len(self._after))
        ends = np.cumsum(lengths)
        tokens = np.empty(int(lengths.sum()), encoded.tokens.dtype)
        is_text = np.ones(len(tokens), np.bool_)
        for special, positions in ((self._before, (ends - lengths)[marked]), (self._after, ends[marked] - 1)):
            if special:
                tokens[positions], is_text[positions] = special[0], False
        tokens[is_text] = encoded.tokens
        return EncodedTexts(tokens, lengths)


def _describe_task(tokenizer: Tokenizer, endings: Mapping[str, str], options: Options, paths: Sequence[Path]) -> str:
    """Everything that determines the output; each input file is identified by its size and modification time."""
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return json.dumps([list(endings.items()), asdict(options), tokenizer.fingerprint, files, BLOCK_BYTES])


def _require_inputs_and_outputs(paths: Sequence[Path], prefixes: Sequence[Path]) -> None:
    if not paths:
        raise UsageError("no input file was given", expected="one or more files: JSONL or Parquet")
    if len({*prefixes}) < max(len(prefixes), 1):
        raise UsageError(
            "each field needs a dataset of its own",
            where="--field",
            found=", ".join(map(str, prefixes)) or "no field",
            expected="a different name for each field",
        )


def _require_tokens(datasets: DatasetWriters, fields: Sequence[str], paths: Sequence[Path], bad_lines: int) -> None:
    for field, token_count in zip(fields, datasets.token_counts, strict=True):
        if token_count == 0:
            raise DataError(
                "the input contains no tokens",
                where=", ".join(map(str, paths[:3])),
                found=f"{datasets.document_count:,} documents, all empty in {field!r}, and {bad_lines:,} bad lines",
                expected="at least one document with text",
                fix="check the field; --bad-lines fail shows the first bad line",
            )
