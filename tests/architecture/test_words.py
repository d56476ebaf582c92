"""The texts of the package and of the pages use the field's terms (docs/style.md). The test lists the offenders."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHRASES = ("goes on", "go on", "stands", "nobody", "anew", "tells", "a set of one's own", "is no number")
MOST_USES = 9
NAMES = (
    "_be_a_rank",
    "_have_the_last_word",
    "named_where_it_runs_out",
    "brought_up_to",
    "witness",
    "stations",
    "Examiner",
    "Standing",
)
# Pages that keep the words of their time, and the one that lists these phrases as examples.
EXCEPT = ("docs/decisions/", "docs/lab_book.md", "docs/style.md")


def texts() -> dict[str, str]:
    files = [
        *(ROOT / "megatron_dsmath").rglob("*.py"),
        *(ROOT / "megatron_dsmath").rglob("*.yaml"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.md"),
    ]
    named = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    return {name: text for name, text in named.items() if not name.startswith(EXCEPT)}


def uses(phrase: str) -> list[str]:
    pattern = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)".replace(r"\ ", r"\s+"), re.IGNORECASE)
    return [name for name, text in texts().items() for _ in pattern.finditer(text)]


def test_phrases_that_a_reader_must_guess_are_rare() -> None:
    found = {phrase: uses(phrase) for phrase in PHRASES}
    assert {phrase: names for phrase, names in found.items() if len(names) > MOST_USES} == {}


def test_names_that_must_be_read_in_context_are_gone() -> None:
    found = {name: uses(name) for name in NAMES}
    assert {name: names for name, names in found.items() if names} == {}
