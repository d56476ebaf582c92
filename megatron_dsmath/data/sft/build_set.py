"""Files of conversations to a set of examples: in parallel, in order, whole or not at all."""

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
from megatron_dsmath.data.sft.example_encoder import FATES, TOO_LONG, BatchEncoder, BatchExamples, Options
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
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.files.atomic_files import OutputFile
from megatron_dsmath.files.lines import require_content
from megatron_dsmath.files.progress import Progress, Report
from megatron_dsmath.files.worker_processes import map_in_order


class BuildCounts:
    """Of each source its bad lines and what became of examples that do not fit; the topics met so far."""

    def __init__(self, sources: int) -> None:
        self.bad_lines = [0] * sources
        self._fates: list[Counter[str]] = [Counter() for _ in range(sources)]
        self._topics: dict[str, int] = {}

    @property
    def dropped(self) -> int:
        """How many conversations became no example."""
        return sum(counts["too_long"] + counts["without_target"] for counts in self._fates)

    def set_aside(self, result: BatchExamples, writer: ExampleWriter) -> None:
        """Count what is no example; a bad line goes to the quarantine, or raises where there is none."""
        for line, error in result.bad_lines:
            if writer.quarantine is None:
                raise error
            writer.quarantine.write(quarantine_row(result.path, line, error))
        self.bad_lines[result.file.source] += len(result.bad_lines)
        self._fates[result.file.source] += result.dropped

    def labels(self, result: BatchExamples) -> npt.NDArray[np.int32]:
        """The labels with their topics numbered in the order in which they were met."""
        numbers = [
            NO_TOPIC if topic is None else self._topics.setdefault(topic, len(self._topics)) for topic in result.topics
        ]
        result.labels[:, COLUMNS.index("topic")] = numbers
        return result.labels

    def facts(
        self,
        sources: Sequence[ConversationSource],
        files: Sequence[SourceFile],
        options: Options,
        tokenizer: str | Path,
        expected_examples: int | None,
    ) -> Metadata:
        """What the sidecar says of the conversations."""
        names = {
            "kind": KINDS,
            "language": LANGUAGES,
            "source": [source.name for source in sources],
            "topic": list(self._topics),
            "file": [str(file.path) for file in files],
        }
        return {
            "options": asdict(options),
            "tokenizer_path": str(tokenizer),
            "names": names,
            "formats": [file.format for file in files],
            "instructions": [source.instruction for source in sources],
            "passes_per_epoch": [source.passes_per_epoch for source in sources],
            "expected_examples": expected_examples,
            "expected_by_source": [source.expected_examples for source in sources],
            "bad_lines": self.bad_lines,
            **{fate: [counts[fate] for counts in self._fates] for fate in FATES},
        }


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
    """Build the set `out` from every row of `sources`; the same for any number of `workers`.

    A bad row raises its DataError ("fail"), or goes with its reason to OUT.bad_lines.jsonl ("skip").
    `expected_examples`: what the report compares the set with. Raises UsageError, DataError, TokenizerError,
    OutputError, DependencyError; then nothing is left of the output. A build that was killed leaves files that end in
    .partial, which no reader opens; the next one to the same prefix begins anew in their place, and ends with the same
    bytes.
    """
    started = time.monotonic()
    require_valid_options(workers, options.bad_lines)
    _require_known(options)
    files = list_source_files(sources, skip_bad_rows=options.bad_lines == "skip")
    paths, prefix, quarantine = [file.path for file in files], Path(out), Path(f"{out}.bad_lines.jsonl")
    outputs = [bin_path(prefix), idx_path(prefix), sidecar_path(prefix), targets_path(prefix), labels_path(prefix)]
    require_separate_outputs(paths, [*outputs, quarantine])
    input_bytes = sum(require_content(path) for path in paths)
    start = partial(BatchEncoder, Path(tokenizer), options, tuple(sources), tuple(files))
    worker = start()  # here too, so that a tokenizer that does not load is refused before a process or file is there
    written = {
        "chat_template": chat_template(worker.template, options.eod_token),
        "end_of_answer": worker.template.end_of_answer,
    }
    batches = conversation_row_batches(paths)
    results = map_in_order(start, batches, workers) if workers > 1 else (worker(batch) for batch in batches)
    tally = BuildCounts(len(sources))
    skip = options.bad_lines == "skip"
    with ExampleWriter(prefix, dtype_for(worker.tokenizer.vocabulary_size), quarantine if skip else None) as writer:
        with closing(results):
            for result in results:
                tally.set_aside(result, writer)
                writer.add(result.examples, tally.labels(result))
                if report_progress is not None:
                    read_bytes = result.read_bytes
                    report_progress(Progress(writer.example_count, writer.token_count, read_bytes, input_bytes))
        if not writer.example_count:
            raise DataError(
                "the input holds no example",
                where=", ".join(map(str, paths[:3])),
                found=f"{sum(tally.bad_lines):,} bad lines, {tally.dropped:,} examples dropped",
                expected="at least one conversation that fits",
                fix="--bad-lines fail names the first bad line; a longer --sequence-length drops fewer",
            )
        writer.facts = _facts(worker.tokenizer, paths, sum(tally.bad_lines))
        writer.group = tally.facts(sources, files, options, tokenizer, expected_examples) | written
    if not skip:  # of an earlier build, or of one that was killed: it would contradict the sidecar
        quarantine.unlink(missing_ok=True)
        OutputFile.partial_path(quarantine).unlink(missing_ok=True)
    return report_set(Examples(prefix), seconds=time.monotonic() - started)


def _facts(tokenizer: Tokenizer, paths: Sequence[Path], bad_lines: int) -> Metadata:
    return {
        **tokenizer_metadata(tokenizer),
        "bad_lines": bad_lines,
        "files": [path.name for path in paths],
    }


def _require_known(options: Options) -> None:
    for flag, found, expected, is_right in (
        ("--sequence-length", options.sequence_length, "2 or more", options.sequence_length >= 2),
        ("--packing", options.packing, ", ".join(POLICIES), options.packing in POLICIES),
        ("--too-long", options.too_long, ", ".join(TOO_LONG), options.too_long in TOO_LONG),
    ):
        if not is_right:
            raise UsageError("a flag has a wrong value", where=flag, found=repr(found), expected=expected)
