"""Gives every line of the decontamination's input its place: kept, dropped, or set aside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_dsmath.data.atomic_files import OutputFile
from megatron_dsmath.data.decontamination.report import FileReport
from megatron_dsmath.data.decontamination.screening import Screened
from megatron_dsmath.data.decontamination.tally import Dropped, Match, Tally
from megatron_dsmath.data.documents import quarantine_row


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
