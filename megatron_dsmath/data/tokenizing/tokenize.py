"""Text files to PREFIX.bin, PREFIX.idx and PREFIX.json: in parallel, in order, whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import bin_path, dtype_for, idx_path
from megatron_dsmath.data.indexed.sidecar import Metadata, sidecar_path, tokenizer_metadata
from megatron_dsmath.data.text.document_batches import document_batches, require_separate_outputs, require_valid_options
from megatron_dsmath.data.text.documents import BadLine, Document, quarantine_row
from megatron_dsmath.data.tokenizing.dataset_writers import DatasetWriters
from megatron_dsmath.data.tokenizing.journal import Journal
from megatron_dsmath.data.tokenizing.piece_encoder import EncodedTexts
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import DataError, TokenizerError, UsageError
from megatron_dsmath.files import lines
from megatron_dsmath.files.lines import require_content
from megatron_dsmath.files.progress import Progress, Report
from megatron_dsmath.files.worker_processes import WorkerProcesses


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


@dataclass(frozen=True)
class TokenizeReport:
    """What one call of `tokenize` did. Every line of the input is a document or a bad line.

    `tokens`: of all fields; `tokens_of_dataset`: of each, by its prefix.
    """

    prefix: Path
    documents: int
    tokens: int
    tokens_of_dataset: Mapping[str, int]
    bad_lines: int
    quarantine: Path | None
    input_bytes: int
    seconds: float


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
    """Tokenize the `field` of every line, or row of a .parquet file, of `files` into the dataset `out`.

    Several fields, read in one pass, are a mapping from each to what the name of its dataset has behind `out`; a line
    that lacks one of them is bad, so document n of each dataset is of the same line.

    A document is [BOS if asked] text [EOD if asked]; one without any token stays empty, as in Megatron. The output
    is the same for any number of `workers`. A bad line raises its DataError ("fail"), or goes with its reason to
    OUT.bad_lines.jsonl ("skip"). `shuffle_seed` puts the documents in a random order. `report_progress` is called
    after each batch. Raises UsageError, DataError, TokenizerError, OutputError, DependencyError; then nothing is left
    of the output. A run that was killed leaves a journal, and the next one of the same task goes on from there.
    """
    started = time.monotonic()
    endings = {field: ""} if isinstance(field, str) else field
    options = Options(append_eod, prepend_bos, eod_token, parse_special, bad_lines, shuffle_seed)
    paths, quarantine = [Path(file) for file in files], Path(f"{out}.bad_lines.jsonl")
    prefixes = [Path(f"{out}{ending}") for ending in endings.values()]
    require_valid_options(workers, bad_lines)
    _require_named(paths, prefixes)
    dataset_files = [path_of(prefix) for prefix in prefixes for path_of in (bin_path, idx_path, sidecar_path)]
    require_separate_outputs(paths, [*dataset_files, quarantine])
    input_bytes = sum(require_content(path) for path in paths)
    start = partial(BatchEncoder, Path(tokenizer), list(endings), options)
    with _starting(start, workers) as processes:
        encode = start()
        journal = Journal(Path(out), _task(encode.tokenizer, endings, options, paths))
        done = journal.read()
        batches = islice(document_batches(paths, list(endings)), done.batches, None)
        results = processes.map_in_order(batches) if processes else map(encode, batches)
        extra_files = [quarantine] if bad_lines == "skip" else []
        with DatasetWriters(prefixes, encode.dtype, extra_files, shuffle_seed, done.kept) as datasets, journal:
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
            datasets.set_metadata([_facts(encode.tokenizer, name, options, paths, bad_count) for name in endings])
    journal.remove()
    if not extra_files:
        quarantine.unlink(missing_ok=True)  # of an earlier run: it would contradict the sidecar
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


def _starting(
    start: Callable[[], BatchEncoder], workers: int
) -> AbstractContextManager[WorkerProcesses[DocumentBatch, EncodedBatch] | None]:
    """Processes that begin to load what they need; none for one worker, which is this process."""
    return WorkerProcesses(start, workers) if workers > 1 else nullcontext()


def _task(tokenizer: Tokenizer, endings: Mapping[str, str], options: Options, paths: Sequence[Path]) -> str:
    """What decides the bytes of the output, without reading the input: its files are told by size and time."""
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return json.dumps([list(endings.items()), asdict(options), tokenizer.fingerprint, files, lines.BLOCK_BYTES])


def _facts(tokenizer: Tokenizer, field: str, options: Options, paths: Sequence[Path], bad_lines: int) -> Metadata:
    return {
        **tokenizer_metadata(tokenizer),
        "bad_lines": bad_lines,
        "options": {"field": field, **asdict(options)},
        "files": [path.name for path in paths],
    }


def _require_named(paths: Sequence[Path], prefixes: Sequence[Path]) -> None:
    if not paths:
        raise UsageError("no input file was given", expected="one or more files: JSONL or Parquet")
    if len({*prefixes}) < max(len(prefixes), 1):
        raise UsageError(
            "each field needs a dataset of its own",
            where="--field",
            found=", ".join(map(str, prefixes)) or "no field",
            expected="other names",
        )


def _require_tokens(datasets: DatasetWriters, fields: Sequence[str], paths: Sequence[Path], bad_lines: int) -> None:
    for field, token_count in zip(fields, datasets.token_counts, strict=True):
        if token_count == 0:
            raise DataError(
                "the input holds no token",
                where=", ".join(map(str, paths[:3])),
                found=f"{datasets.document_count:,} documents, all empty in {field!r}, and {bad_lines:,} bad lines",
                expected="at least one document with text",
                fix="check the field; --bad-lines fail names the first bad line",
            )
