"""`dsmath sft build`: encode files of conversations into a set of examples, with several processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import bin_path, dtype_for, idx_path
from megatron_dsmath.data.indexed.sidecar import Metadata, sidecar_path, tokenizer_metadata
from megatron_dsmath.data.sft.conversation import KINDS, LANGUAGES
from megatron_dsmath.data.sft.example_encoder import OUTCOMES, TOO_LONG, BatchEncoder, BatchExamples, Options
from megatron_dsmath.data.sft.examples import COLUMNS, NO_TOPIC, Examples, ExampleWriter, labels_path, targets_path
from megatron_dsmath.data.sft.packing import POLICIES
from megatron_dsmath.data.sft.set_report import SetReport, report_set
from megatron_dsmath.data.sft.sources import ConversationSource, SourceFile, list_source_files
from megatron_dsmath.data.sft.template import chat_template
from megatron_dsmath.data.text.document_batches import (
    conversation_row_batches,
    require_separate_outputs,
    require_valid_options,
)
from megatron_dsmath.data.text.documents import quarantine_row
from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.files.atomic_files import OutputFile
from megatron_dsmath.files.lines import require_content
from megatron_dsmath.files.progress import Progress, Report
from megatron_dsmath.files.worker_processes import map_in_order


def build(
    sources: Sequence[ConversationSource],
    tokenizer: str | Path,
    out: str | Path,
    options: Options,
    *,
    workers: int = 1,
    expected_examples: int | None = None,
    report_progress: Report | None = None,
) -> SetReport:
    """Build the set `out` from all rows of `sources`. The number of `workers` does not change the files.

    A bad row raises DataError ("fail"), or is written with its reason to OUT.bad_lines.jsonl ("skip").
    `expected_examples`: the number for the report to compare with. Raises UsageError, DataError, TokenizerError,
    OutputError, DependencyError, and then leaves no output. A killed build leaves files that end in .partial, which no
    reader opens; the next build of the same prefix replaces them and writes the same bytes as an undisturbed one.
    """
    started = time.monotonic()
    require_valid_options(workers, options.bad_lines)
    _require_known(options)
    skip = options.bad_lines == "skip"
    files = list_source_files(sources, skip_bad_rows=skip)
    paths, prefix, quarantine = [file.path for file in files], Path(out), Path(f"{out}.bad_lines.jsonl")
    outputs = [bin_path(prefix), idx_path(prefix), sidecar_path(prefix), targets_path(prefix), labels_path(prefix)]
    require_separate_outputs(paths, [*outputs, quarantine])
    input_bytes = sum(require_content(path) for path in paths)
    start = partial(BatchEncoder, Path(tokenizer), options, tuple(sources), tuple(files))
    worker = start()  # in this process too, to refuse a tokenizer that does not load before anything is started
    batches = conversation_row_batches(paths)
    results = map_in_order(start, batches, workers) if workers > 1 else (worker(batch) for batch in batches)
    counts = BuildCounts(len(sources))
    with ExampleWriter(prefix, dtype_for(worker.tokenizer.vocabulary_size), quarantine if skip else None) as writer:
        with closing(results):
            for result in results:
                counts.add(result, writer.quarantine)
                writer.add(result.examples, counts.labels(result))
                if report_progress is not None:
                    read_bytes = result.read_bytes
                    report_progress(Progress(writer.example_count, writer.token_count, read_bytes, input_bytes))
        if not writer.example_count:
            raise DataError(
                "the input has no examples",
                where=", ".join(map(str, paths[:3])),
                found=f"{sum(counts.bad_lines):,} bad lines, {counts.dropped:,} examples dropped",
                expected="at least one conversation that fits",
                fix="--bad-lines fail names the first bad line; a longer --sequence-length drops fewer",
            )
        writer.metadata = {
            **tokenizer_metadata(worker.tokenizer),
            "bad_lines": sum(counts.bad_lines),
            "files": [path.name for path in paths],
        }
        writer.conversations = {
            "options": asdict(options),
            "tokenizer_path": str(tokenizer),
            **counts.metadata(sources, files, expected_examples),
            "chat_template": chat_template(worker.template, options.eod_token),
            "end_of_answer": worker.template.end_of_answer,
        }
    if not skip:  # a quarantine file of an earlier build, or of a killed one, contradicts the sidecar
        quarantine.unlink(missing_ok=True)
        OutputFile.partial_path(quarantine).unlink(missing_ok=True)
    return report_set(Examples(prefix), seconds=time.monotonic() - started)


def _require_known(options: Options) -> None:
    for flag, found, expected, is_right in (
        ("--sequence-length", options.sequence_length, "2 or more", options.sequence_length >= 2),
        ("--packing", options.packing, ", ".join(POLICIES), options.packing in POLICIES),
        ("--too-long", options.too_long, ", ".join(TOO_LONG), options.too_long in TOO_LONG),
    ):
        if not is_right:
            raise UsageError("the value of a flag is wrong", where=flag, found=repr(found), expected=expected)


class BuildCounts:
    """Bad lines and outcomes of examples that do not fit, by source, and the topics so far."""

    def __init__(self, sources: int) -> None:
        self.bad_lines = [0] * sources
        self._outcomes: list[Counter[str]] = [Counter() for _ in range(sources)]
        self._topics: dict[str, int] = {}

    @property
    def dropped(self) -> int:
        """The number of conversations that became no example."""
        return sum(counts["too_long"] + counts["without_target"] for counts in self._outcomes)

    def add(self, result: BatchExamples, quarantine: OutputFile | None) -> None:
        """Count a batch, and write its bad lines to the quarantine file. Without one, raise the first error."""
        for line, error in result.bad_lines:
            if quarantine is None:
                raise error
            quarantine.write(quarantine_row(result.path, line, error))
        self.bad_lines[result.file.source] += len(result.bad_lines)
        self._outcomes[result.file.source] += result.dropped

    def labels(self, result: BatchExamples) -> npt.NDArray[np.int32]:
        """The labels of a batch, with topics numbered in order of appearance."""
        numbers = [
            NO_TOPIC if topic is None else self._topics.setdefault(topic, len(self._topics)) for topic in result.topics
        ]
        result.labels[:, COLUMNS.index("topic")] = numbers
        return result.labels

    def metadata(
        self, sources: Sequence[ConversationSource], files: Sequence[SourceFile], expected_examples: int | None
    ) -> Metadata:
        """The metadata of sources and files for the sidecar."""
        names = {
            "kind": KINDS,
            "language": LANGUAGES,
            "source": [source.name for source in sources],
            "topic": list(self._topics),
            "file": [str(file.path) for file in files],
        }
        return {
            "names": names,
            "formats": [file.format for file in files],
            "instructions": [source.instruction for source in sources],
            "passes_per_epoch": [source.passes_per_epoch for source in sources],
            "expected_examples": expected_examples,
            "expected_by_source": [source.expected_examples for source in sources],
            "bad_lines": self.bad_lines,
            **{outcome: [counts[outcome] for counts in self._outcomes] for outcome in OUTCOMES},
        }
