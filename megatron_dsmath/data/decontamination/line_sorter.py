"""Gives every line of the decontamination's input its place: kept, dropped, or set aside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_dsmath.data.atomic_files import OutputFile
from megatron_dsmath.data.decontamination.line_writer import LineWriter
from megatron_dsmath.data.decontamination.report import FileReport
from megatron_dsmath.data.decontamination.screening import Screened
from megatron_dsmath.data.decontamination.tally import Dropped, Match, Tally
from megatron_dsmath.data.documents import quarantine_row
from megatron_dsmath.data.line_batches import LineBatch


class LineSorter:
    """Writes kept lines to `out`, a row for each dropped one to `dropped`, and bad lines to `quarantine`."""

    def __init__(
        self, paths: Sequence[Path], out: OutputFile, dropped: OutputFile, quarantine: OutputFile | None
    ) -> None:
        """`paths` are the input files. Raises DependencyError when `out` asks for a package that is not installed."""
        self.files = {path: FileReport(path) for path in paths}
        self.tally = Tally()
        self.documents = 0
        self.units = 0
        self._kept = LineWriter(out)
        self._dropped = dropped
        self._quarantine = quarantine

    def sort(self, batch: LineBatch, screened: Screened) -> None:
        """Put each line of a batch where it belongs. Raises a bad line's DataError where there is no quarantine."""
        file = self.files[batch.path]
        kept = []
        for index, line in enumerate(batch.lines):
            if index in screened.bad_lines:
                if self._quarantine is None:
                    raise screened.bad_lines[index]
                self._quarantine.write(quarantine_row(batch.path, line, screened.bad_lines[index]))
                file.bad_lines += 1
            elif index in screened.matches:
                dropped = Dropped(str(batch.path), line.number, screened.matches[index])
                self.tally.add(dropped)
                self._dropped.write((json.dumps(_row(dropped), ensure_ascii=False) + "\n").encode())
                file.dropped += 1
                file.dropped_bytes += len(line.content) + 1
            else:
                kept.append(line.content + b"\n")
        self._kept.write(b"".join(kept))
        file.kept += len(kept)
        file.kept_bytes += sum(map(len, kept))
        self.documents += len(batch.lines) - len(screened.bad_lines)
        self.units += screened.unit_count

    def finish(self) -> None:
        """Bring the files to their ends."""
        self._kept.finish()
        self._dropped.sync()

    def dropped_documents(self) -> Iterator[Dropped]:
        """After `finish`: the dropped documents once more, read back."""
        with self._dropped.partial.open("rb") as rows:
            for row in map(json.loads, rows):
                yield Dropped(row["file"], row["line"], [Match(**match) for match in row["matches"]])


def _row(dropped: Dropped) -> dict[str, object]:
    return {"file": dropped.file, "line": dropped.line, "matches": [vars(match) for match in dropped.matches]}
