"""The paper's decontamination: what shares a 10-gram with a benchmark, or holds a short text of it, is dropped.

DeepSeekMath, section 2.1.1. What the paper leaves open: docs/decisions/0011-decontamination-units.md.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from megatron_dsmath.data.decontamination.benchmark_texts import read_benchmark
from megatron_dsmath.data.decontamination.decontamination_report import (
    DecontaminationReport,
    Dropped,
    FileReport,
    Match,
    Tally,
    benchmark_reports,
)
from megatron_dsmath.data.decontamination.ngrams import NGRAM_UNITS, SHORTEST_UNITS
from megatron_dsmath.data.decontamination.screening import Screen, Screened, compression_of
from megatron_dsmath.data.text.document_batches import line_batches, require_separate_outputs, require_valid_options
from megatron_dsmath.data.text.documents import quarantine_row
from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.files.atomic_files import AtomicFiles, OutputFile
from megatron_dsmath.files.lines import require_content
from megatron_dsmath.files.progress import Progress, Report
from megatron_dsmath.files.worker_processes import map_in_order


class LineSorter:
    """Writes kept lines to `out`, a row for each dropped one to `dropped`, and bad lines to `quarantine`."""

    def __init__(
        self, paths: Sequence[Path], out: OutputFile, dropped: OutputFile, quarantine: OutputFile | None
    ) -> None:
        """`paths` are the input files."""
        self.files = {path: FileReport(path) for path in paths}
        self.tally = Tally()
        self.documents = 0
        self.units = 0
        self._kept = out
        self._dropped = dropped
        self._quarantine = quarantine

    def sort(self, screened: Screened) -> None:
        """Put each line of a batch where it belongs. Raises a bad line's DataError where there is no quarantine."""
        file = self.files[screened.path]
        for bad in screened.bad_lines:
            if self._quarantine is None:
                raise bad.error
            self._quarantine.write(quarantine_row(bad.path, bad.line, bad.error))
        for dropped in screened.dropped:
            self.tally.add(dropped)
            self._dropped.write((json.dumps(_row(dropped), ensure_ascii=False) + "\n").encode())
        self._kept.write(screened.kept)
        file.bad_lines += len(screened.bad_lines)
        file.dropped += len(screened.dropped)
        file.dropped_bytes += screened.dropped_bytes
        file.kept += screened.kept_count
        file.kept_bytes += screened.kept_bytes
        self.documents += screened.kept_count + len(screened.dropped)
        self.units += screened.unit_count

    def dropped_documents(self) -> Iterator[Dropped]:
        """The dropped documents so far once more, read back."""
        self._dropped.sync()
        with self._dropped.partial.open("rb") as rows:
            for row in map(json.loads, rows):
                yield Dropped(row["file"], row["line"], [Match(**match) for match in row["matches"]])


def _row(dropped: Dropped) -> dict[str, object]:
    return {"file": dropped.file, "line": dropped.line, "matches": [vars(match) for match in dropped.matches]}


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
    """Write to `out` the lines of `files`, as they are, that share no 10-gram with a text of `benchmarks`.

    The paper's "text segment" is a line here: its `field`, or several joined. A benchmark question of 3 to 9 units
    drops the documents that hold it as a whole. `benchmark_fields` names the texts of a benchmark row where
    `read_benchmark` would choose others. The outputs are the same for any number of `workers`:

    - `out`, compressed where its name ends in .gz or .zst;
    - OUT.dropped.jsonl: a row for each dropped document, with the passages it shares;
    - OUT.bad_lines.jsonl, with `bad_lines` "skip"; with "fail", a bad line raises its DataError;
    - OUT.report.json: the report.

    `report_progress` is called after each batch, and told of units as tokens. Raises UsageError, DataError,
    OutputError, DependencyError; then nothing is left of the outputs. A run that was killed begins again: one call for
    each file of a large corpus keeps what is done.
    """
    started = time.monotonic()
    paths, benchmark_paths = [Path(file) for file in files], [Path(file) for file in benchmarks]
    _require_usable(paths, benchmark_paths, workers, bad_lines)
    clean, dropped, quarantine, report_file = (
        Path(f"{out}{ending}") for ending in ("", ".dropped.jsonl", ".bad_lines.jsonl", ".report.json")
    )
    require_separate_outputs([*paths, *benchmark_paths], [clean, dropped, quarantine, report_file])
    input_bytes = sum(require_content(path) for path in paths)
    texts = [read_benchmark(path, benchmark_fields) for path in benchmark_paths]
    compress = compression_of(clean)
    screen = Screen(texts, [field] if isinstance(field, str) else field, compress)
    _require_ngrams(screen, benchmark_paths)
    batches = line_batches(paths)
    results = (
        map_in_order(partial(_itself, screen), batches, workers)
        if workers > 1
        else (screen(batch) for batch in batches)
    )
    beside = [quarantine] if bad_lines == "skip" else []
    outputs = AtomicFiles(clean, dropped, *beside, report_file)
    try:
        sorter = LineSorter(paths, outputs.files[0], outputs.files[1], outputs.files[2] if beside else None)
        with closing(results):
            for screened in results:
                sorter.sort(screened)
                if report_progress is not None:
                    report_progress(Progress(sorter.documents, sorter.units, screened.read_bytes, input_bytes))
        if not outputs.files[0].size_bytes:
            outputs.files[0].write(compress(b""))  # a compressed file of nothing is not empty
        names = [str(path) for path in benchmark_paths]
        hits, looking_false = sorter.tally.result(names, sorter.dropped_documents())
        report = DecontaminationReport(
            out=clean,
            sha256=outputs.files[0].sha256,
            dropped_documents=dropped,
            quarantine=quarantine if beside else None,
            input_bytes=input_bytes,
            looking_false=looking_false,
            seconds=time.monotonic() - started,
            files=tuple(sorter.files.values()),
            benchmarks=benchmark_reports(texts, screen.ngrams, hits, sorter.documents),
        )
        outputs.files[-1].write(report.to_json().encode())
        outputs.publish()
    finally:
        outputs.discard()
    if not beside:
        quarantine.unlink(missing_ok=True)  # of an earlier run: it would contradict the report
    return report


def _itself(screen: Screen) -> Screen:
    """How a worker starts: with the screen that it was sent."""
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
            "the benchmarks hold no text to look for",
            where=", ".join(map(str, benchmarks[:3])),
            found="only texts that are too short",
            expected=f"a text of {NGRAM_UNITS} units, or a question of {SHORTEST_UNITS}",
            fix="name the fields that hold the texts: --benchmark-fields",
        )
