"""What comes back from the workers of `sft build`, counted and numbered in the order of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.conversations.batch_encoding import FATES, BatchExamples, Options
from megatron_dsmath.data.conversations.conversation import KINDS, LANGUAGES
from megatron_dsmath.data.conversations.examples import COLUMNS, NO_TOPIC, ExampleWriter
from megatron_dsmath.data.conversations.sources import Source, SourceFile
from megatron_dsmath.data.documents import quarantine_row
from megatron_dsmath.data.indexed.sidecar import Facts


class Tally:
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
        sources: Sequence[Source],
        files: Sequence[SourceFile],
        options: Options,
        tokenizer: str | Path,
        expected_examples: int | None,
    ) -> Facts:
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
