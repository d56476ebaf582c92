"""JSONL files to PREFIX.bin, PREFIX.idx and PREFIX.json: in parallel, in order, whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data import line_batches
from megatron_dsmath.data.atomic_files import OutputFile
from megatron_dsmath.data.documents import parse_document, quarantine_row
from megatron_dsmath.data.indexed.dataset import IndexedWriter, bin_path, dtype_for, idx_path
from megatron_dsmath.data.indexed.sidecar import Facts, sidecar_path
from megatron_dsmath.data.journal import Journal
from megatron_dsmath.data.line_batches import LineBatch
from megatron_dsmath.data.lines import Line, require_content
from megatron_dsmath.data.pieces.encoder import EncodedTexts
from megatron_dsmath.data.progress import Progress, Report
from megatron_dsmath.data.shuffle import shuffling
from megatron_dsmath.data.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.data.worker_processes import map_in_order
from megatron_dsmath.errors import DataError, OutputError, TokenizerError, UsageError


@dataclass(frozen=True)
class TokenizeReport:
    """What one call of `tokenize` did. Every line of the input is a document or a bad line."""

    prefix: Path
    documents: int
    tokens: int
    bad_lines: int
    quarantine: Path | None
    input_bytes: int
    seconds: float


@dataclass(frozen=True)
class _Options:
    """What decides the tokens, next to the texts and the tokenizer. The sidecar keeps it."""

    field: str
    append_eod: bool
    prepend_bos: bool
    eod_token: str | None
    parse_special: bool
    bad_lines: str
    shuffle_seed: int | None


class _Encoded(NamedTuple):
    batch: LineBatch
    tokens: npt.NDArray[np.integer]
    lengths: npt.NDArray[np.int64]
    bad_lines: list[tuple[Line, DataError]]


def tokenize(
    files: Sequence[str | Path],
    tokenizer: str | Path,
    out: str | Path,
    *,
    field: str = "text",
    workers: int = 1,
    append_eod: bool = True,
    prepend_bos: bool = False,
    eod_token: str | None = None,
    parse_special: bool = False,
    bad_lines: str = "fail",
    shuffle_seed: int | None = None,
    report_progress: Report | None = None,
) -> TokenizeReport:
    """Tokenize the `field` of every line of `files` into the dataset `out`.

    A document is [BOS if asked] text [EOD if asked]; one without any token stays empty, as in Megatron. The output
    is the same for any number of `workers`. A bad line raises its DataError ("fail"), or goes with its reason to
    OUT.bad_lines.jsonl ("skip"). `shuffle_seed` puts the documents in a random order. `report_progress` is called
    after each batch. Raises UsageError, DataError, TokenizerError, OutputError; then nothing is left of the output.
    A run that was killed leaves a journal, and the next one of the same task goes on from there.
    """
    started = time.monotonic()
    options = _Options(field, append_eod, prepend_bos, eod_token, parse_special, bad_lines, shuffle_seed)
    paths, prefix, quarantine = [Path(file) for file in files], Path(out), Path(f"{out}.bad_lines.jsonl")
    _require_usable(options, workers, paths)
    _require_apart(paths, (bin_path(prefix), idx_path(prefix), sidecar_path(prefix), quarantine))
    input_bytes = sum(require_content(path) for path in paths)
    start = partial(_Encoder, Path(tokenizer), options)
    encode = start()  # here too, so that a tokenizer that does not load is refused before a worker or file is there
    journal = Journal(prefix, _task(encode.tokenizer, options, paths))
    done = journal.read()
    batches = islice(line_batches.line_batches(paths), done.batches, None)
    results = map_in_order(start, batches, workers) if workers > 1 else (encode(batch) for batch in batches)
    beside = [quarantine] if bad_lines == "skip" else []
    with IndexedWriter(prefix, encode.dtype, beside, done.kept) as writer, journal, closing(results):
        with shuffling(writer, prefix, shuffle_seed, done.kept) as target:
            target.count_documents(done.lengths)
            bad_count = done.bad_lines
            growing = list(dict.fromkeys([*writer.beside, *target.growing_files]))
            for number, result in enumerate(results, start=done.batches + 1):
                bad_count += _set_aside(result, writer.beside)
                target.add_documents(result.tokens, result.lengths)
                journal.add(number, bad_count, result.lengths, growing)
                if report_progress is not None:
                    read_bytes = result.batch.read_bytes
                    report_progress(Progress(target.document_count, target.token_count, read_bytes, input_bytes))
            _require_tokens(target, paths, bad_count)
        writer.facts = _facts(encode.tokenizer, options, paths, bad_count)
    journal.remove()
    if not beside:
        quarantine.unlink(missing_ok=True)  # of an earlier run: it would contradict the sidecar
    return TokenizeReport(
        prefix,
        documents=writer.document_count,
        tokens=writer.token_count,
        bad_lines=bad_count,
        quarantine=quarantine if beside else None,
        input_bytes=input_bytes,
        seconds=time.monotonic() - started,
    )


class _Encoder:
    """What a worker does: lines to tokens."""

    def __init__(self, tokenizer: Path, options: _Options) -> None:
        self.tokenizer = load_tokenizer(tokenizer, options.eod_token, parse_special=options.parse_special)
        self._options = options
        self.dtype = dtype_for(self.tokenizer.vocabulary_size)
        self._before = self._beginning() if options.prepend_bos else []
        self._after = [self.tokenizer.end_of_document] if options.append_eod else []

    def __call__(self, batch: LineBatch) -> _Encoded:
        texts, bad_lines = [], []
        for line in batch.lines:
            try:
                texts.append(parse_document(batch.path, line, [self._options.field]).texts[0])
            except DataError as error:
                bad_lines.append((line, error))
        tokens, lengths = self._as_documents(self.tokenizer.encode_arrays(texts))
        return _Encoded(batch._replace(lines=[]), tokens.astype(self.dtype), lengths, bad_lines)

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


def _set_aside(result: _Encoded, quarantine: Sequence[OutputFile]) -> int:
    """Write the bad lines to the quarantine, or raise the first where there is none; how many they were."""
    for line, error in result.bad_lines:
        if not quarantine:
            raise error
        quarantine[0].write(quarantine_row(result.batch.path, line, error))
    return len(result.bad_lines)


def _task(tokenizer: Tokenizer, options: _Options, paths: Sequence[Path]) -> str:
    """What decides the bytes of the output, without reading the input: its files are told by size and time."""
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return json.dumps(
        [asdict(options), tokenizer.fingerprint, files, line_batches.BATCH_BYTES, line_batches.BATCH_LINES]
    )


def _facts(tokenizer: Tokenizer, options: _Options, paths: Sequence[Path], bad_lines: int) -> Facts:
    return {
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer": {
            "name": f"{tokenizer.path.resolve().parent.name}/{tokenizer.path.name}",
            "fingerprint": tokenizer.fingerprint,
            "end_of_document": tokenizer.end_of_document,
            "begin_of_document": tokenizer.begin_of_document,
        },
        "bad_lines": bad_lines,
        "options": asdict(options),
        "files": [path.name for path in paths],
    }


def _require_usable(options: _Options, workers: int, paths: Sequence[Path]) -> None:
    if not paths:
        raise UsageError("no input file was given", expected="one or more JSONL files")
    if workers < 1:
        raise UsageError("the number of workers is wrong", where="--workers", found=workers, expected="1 or more")
    if options.bad_lines not in ("fail", "skip"):
        raise UsageError(
            "bad lines are treated in one of two ways",
            where="--bad-lines",
            found=repr(options.bad_lines),
            expected="fail or skip",
        )


def _require_apart(paths: Sequence[Path], outputs: Sequence[Path]) -> None:
    """No output may overwrite an input: `--out corpus` with an input corpus.json would."""
    inputs = {path.resolve() for path in paths}
    for output in outputs:
        if output.resolve() in inputs:
            raise OutputError(
                "an output would overwrite an input",
                where=output,
                found="the same file",
                expected="another name",
                fix="choose another --out",
            )


def _require_tokens(writer: IndexedWriter, paths: Sequence[Path], bad_lines: int) -> None:
    if writer.token_count == 0:
        raise DataError(
            "the input holds no token",
            where=", ".join(map(str, paths[:3])),
            found=f"{writer.document_count:,} documents, all empty, and {bad_lines:,} bad lines",
            expected="at least one document with text",
            fix="check the field; --bad-lines fail names the first bad line",
        )
