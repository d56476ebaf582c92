"""Text files to PREFIX.bin, PREFIX.idx and PREFIX.json: in parallel, in order, whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from megatron_dsmath.data import lines
from megatron_dsmath.data.batch_encoder import BatchEncoder, DocumentBatch, EncodedBatch, Options
from megatron_dsmath.data.dataset_writers import DatasetWriters
from megatron_dsmath.data.document_batches import document_batches
from megatron_dsmath.data.indexed.dataset import bin_path, idx_path
from megatron_dsmath.data.indexed.sidecar import Facts, sidecar_path, tokenizer_facts
from megatron_dsmath.data.input_checks import require_apart, require_usable
from megatron_dsmath.data.journal import Journal
from megatron_dsmath.data.lines import require_content
from megatron_dsmath.data.progress import Progress, Report
from megatron_dsmath.data.tokenizer import Tokenizer
from megatron_dsmath.data.worker_processes import WorkerProcesses
from megatron_dsmath.errors import DataError, UsageError


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
    require_usable(workers, bad_lines)
    _require_named(paths, prefixes)
    dataset_files = [path_of(prefix) for prefix in prefixes for path_of in (bin_path, idx_path, sidecar_path)]
    require_apart(paths, [*dataset_files, quarantine])
    input_bytes = sum(require_content(path) for path in paths)
    start = partial(BatchEncoder, Path(tokenizer), list(endings), options)
    with _starting(start, workers) as processes:
        encode = start()
        journal = Journal(Path(out), _task(encode.tokenizer, endings, options, paths))
        done = journal.read()
        batches = islice(document_batches(paths, list(endings)), done.batches, None)
        results = processes.map_in_order(batches) if processes else map(encode, batches)
        beside = [quarantine] if bad_lines == "skip" else []
        with DatasetWriters(prefixes, encode.dtype, beside, shuffle_seed, done.kept) as datasets, journal:
            datasets.count_documents(done.lengths.reshape(-1, len(prefixes)).T)
            bad_count = done.bad_lines
            for number, result in enumerate(results, start=done.batches + 1):
                bad_count += len(result.bad_rows)
                for quarantined in datasets.beside:
                    quarantined.write(b"".join(result.bad_rows))
                datasets.add_documents(result.tokens, result.lengths)
                journal.add(number, bad_count, result.lengths.T.ravel(), datasets.growing_files)
                if report_progress is not None:
                    tokens = sum(datasets.token_counts)
                    report_progress(Progress(datasets.document_count, tokens, result.read_bytes, input_bytes))
            _require_tokens(datasets, list(endings), paths, bad_count)
            datasets.set_facts([_facts(encode.tokenizer, name, options, paths, bad_count) for name in endings])
    journal.remove()
    if not beside:
        quarantine.unlink(missing_ok=True)  # of an earlier run: it would contradict the sidecar
    return TokenizeReport(
        Path(out),
        documents=datasets.document_count,
        tokens=sum(datasets.token_counts),
        tokens_of_dataset=dict(zip(map(str, prefixes), datasets.token_counts, strict=True)),
        bad_lines=bad_count,
        quarantine=quarantine if beside else None,
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


def _facts(tokenizer: Tokenizer, field: str, options: Options, paths: Sequence[Path], bad_lines: int) -> Facts:
    return {
        **tokenizer_facts(tokenizer),
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
