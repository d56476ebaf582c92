"""The paper's run file with mistakes, and the errors of `load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_dsmath.config import load
from megatron_dsmath.errors import ConfigError, DsmathError, Refusals

PAPER_RUN = Path(__file__).parents[2] / "configs/pretrain/deepseekmath_base_7b.yaml"
RUN_FILES = sorted(path for path in PAPER_RUN.parents[1].rglob("*.yaml") if path.parent.name != "recipes")


@dataclass(frozen=True)
class RunFile:
    """A run file on disk and its text."""

    path: Path
    text: str

    def line_of(self, snippet: str) -> int:
        """The line on which `snippet` begins; the file contains it once."""
        assert self.text.count(snippet) == 1, snippet
        return self.text[: self.text.index(snippet)].count("\n") + 1

    def refusals(self, overrides: Sequence[str] = (), world_size: int | None = None) -> list[DsmathError]:
        """Every error of `load`, in its order; fails the test if there is none."""
        with pytest.raises((ConfigError, Refusals)) as caught:
            load(self.path, overrides, world_size)
        return list(caught.value.errors) if isinstance(caught.value, Refusals) else [caught.value]

    def refusal(self, overrides: Sequence[str] = (), world_size: int | None = None) -> DsmathError:
        """The only error of `load`."""
        (error,) = self.refusals(overrides, world_size)
        return error


def seeded(folder: Path, *edits: tuple[str, str]) -> RunFile:
    """The paper's run file in `folder`, with each `(old, new)` applied to a text that it contains once."""
    text = PAPER_RUN.read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, f"{PAPER_RUN} contains {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return RunFile(path, text)
