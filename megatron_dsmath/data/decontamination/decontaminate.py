"""The paper's decontamination: drop documents that share a 10-gram, or a whole short question, with a benchmark.

DeepSeekMath, section 2.1.1. What the paper leaves open: docs/decisions/0011-decontamination-units.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

from megatron_dsmath.data.decontamination.benchmark_texts import read_benchmark
from megatron_dsmath.data.decontamination.decontamination_report import (
    DecontaminationReport,
    DropCounter,
    FileReport,
    benchmark_reports,
)
from megatron_dsmath.data.decontamination.ngrams import NGRAM_UNITS, SHORTEST_UNITS
from megatron_dsmath.data.decontamination.screening import Screen, ScreenedBatch, select_compression
from megatron_dsmath.data.text.document_batches import line_batches, require_separate_outputs, require_valid_options
from megatron_dsmath.data.text.documents import quarantine_row
from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.files.atomic_files import AtomicFiles, OutputFile
from megatron_dsmath.files.lines import require_content
from megatron_dsmath.files.progress import Progress, Report
from megatron_dsmath.files.worker_processes import map_in_order


def decontaminate(
    files: Sequence[str | Path],
    benchmarks: Sequence[str | Path],
    out: str | Path,
    *,
    field: str | Sequence[str] = "text",
    workers: int = 1,
    bad_lines: str = "fail",
    benchmark_fields: Sequence[str] | None = None,
    report_progress: Report | None = None,
) -> DecontaminationReport:
    """Write the lines of `files` that share no 10-gram with a text of `benchmarks` to `out`, unchanged.

    The paper's "text segment" is one line: its `field`, or several fields joined. A benchmark question of 3 to 9 units
    drops the documents that contain all of it. `benchmark_fields` replaces the fields that `read_benchmark` chooses.
    The outputs are the same for any number of `workers`:

    - `out`, compressed if its name ends in .gz or .zst;
    - OUT.dropped.jsonl: one row per dropped document, with the passages it shares;
    - OUT.bad_lines.jsonl, with `bad_lines` "skip"; with "fail", a bad line raises its DataError;
    - OUT.report.json: the report, see `decontamination_report`.

    `report_progress` is called after each batch and counts units as tokens. Raises UsageError, DataError, OutputError
    and DependencyError, and then removes the unfinished outputs. A killed call starts again from the beginning, so
    call it once per file of a large corpus.
    """
    paths, benchmark_paths = [Path(file) for file in files], [Path(file) for file in benchmarks]
    _require_usable(paths, benchmark_paths, workers, bad_lines)
    clean, dropped, quarantine, report_file = (
        Path(f"{out}{ending}") for ending in ("", ".dropped.jsonl", ".bad_lines.jsonl", ".report.json")
    )
    require_separate_outputs([*paths, *benchmark_paths], [clean, dropped, quarantine, report_file])
    input_bytes = sum(require_content(path) for path in paths)
    texts = [read_benchmark(path, benchmark_fields) for path in benchmark_paths]
    compress = select_compression(clean)
    screen = Screen(texts, [field] if isinstance(field, str) else field, compress)
    _require_ngrams(screen, benchmark_paths)
    batches = line_batches(paths)
    results = (
        map_in_order(partial(_same, screen), batches, workers) if workers > 1 else (screen(batch) for batch in batches)
    )
    quarantines = [quarantine] if bad_lines == "skip" else []
    outputs = AtomicFiles(clean, dropped, *quarantines, report_file)
    try:
        writer = OutputWriter(paths, outputs.files[0], outputs.files[1], outputs.files[2] if quarantines else None)
        with closing(results):
            for screened in results:
                writer.write(screened)
                if report_progress is not None:
                    report_progress(Progress(writer.documents, writer.units, screened.read_bytes, input_bytes))
        if not outputs.files[0].size_bytes:
            outputs.files[0].write(compress(b""))  # an empty .gz or .zst file still has a header
        report = DecontaminationReport(
            out=clean,
            sha256=outputs.files[0].sha256,
            dropped_documents=dropped,
            quarantine=quarantine if quarantines else None,
            input_bytes=input_bytes,
            files=tuple(writer.files.values()),
            benchmarks=benchmark_reports(texts, screen.ngrams, writer.drop_counter, writer.documents),
        )
        outputs.files[-1].write(report.to_json().encode())
        outputs.publish()
    finally:
        outputs.discard()
    if not quarantines:
        quarantine.unlink(missing_ok=True)  # one of an earlier call would contradict the report
    return report


def _same(screen: Screen) -> Screen:
    """Start a worker with the screen that was sent to it."""
    return screen


def _require_usable(paths: Sequence[Path], benchmarks: Sequence[Path], workers: int, bad_lines: str) -> None:
    for name, given in (("input file", paths), ("benchmark file", benchmarks)):
        if not given:
            raise UsageError(f"no {name} was given", expected="one or more JSONL files")
        for path, count in Counter(path.resolve() for path in given).items():
            if count > 1:
                raise UsageError(f"the same {name} is named twice", where=path, found=f"{count} times", expected="once")
    require_valid_options(workers, bad_lines)


def _require_ngrams(screen: Screen, benchmarks: Sequence[Path]) -> None:
    if not any(len(table.hashes) for table in screen.ngrams.tables.values()):
        raise DataError(
            "the benchmarks have no text to compare with",
            where=", ".join(map(str, benchmarks[:3])),
            found="only texts that are too short",
            expected=f"a text of {NGRAM_UNITS} units, or a question of {SHORTEST_UNITS}",
            fix="name the fields that contain the texts: --benchmark-fields",
        )


class OutputWriter:
    """Writes kept lines to `out`, one row per dropped document to `dropped`, and bad lines to `quarantine`."""

    def __init__(
        self, paths: Sequence[Path], out: OutputFile, dropped: OutputFile, quarantine: OutputFile | None
    ) -> None:
        """`paths` are the input files."""
        self.files = {path: FileReport(path) for path in paths}
        self.drop_counter = DropCounter()
        self.documents = 0
        self.units = 0
        self._kept = out
        self._dropped = dropped
        self._quarantine = quarantine

    def write(self, batch: ScreenedBatch) -> None:
        """Write and count the lines of a batch. Without a quarantine, a bad line raises its DataError."""
        file = self.files[batch.path]
        for bad in batch.bad_lines:
            if self._quarantine is None:
                raise bad.error
            self._quarantine.write(quarantine_row(bad.path, bad.line, bad.error))
        for document in batch.dropped:
            self.drop_counter.add(document)
            self._dropped.write((json.dumps(asdict(document), ensure_ascii=False) + "\n").encode())
        self._kept.write(batch.kept)
        file.bad_lines += len(batch.bad_lines)
        file.dropped += len(batch.dropped)
        file.dropped_bytes += batch.dropped_bytes
        file.kept += batch.kept_count
        file.kept_bytes += batch.kept_bytes
        self.documents += batch.kept_count + len(batch.dropped)
        self.units += batch.unit_count
