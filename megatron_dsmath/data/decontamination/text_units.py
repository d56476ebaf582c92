"""Splits text into the units that decontamination compares: words, numbers, LaTeX commands and Han characters.

The definition of a unit and its reasons: docs/decisions/0011-decontamination-units.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SEPARATOR, LETTER, DIGIT, HAN, BACKSLASH = range(5)
EXCERPT_UNITS = 8  # before and after a passage
EXCERPT_CHARACTERS = 200  # limit for these units
BLOCK_CHARACTERS = 1 << 16  # split at once: the arrays fit in the processor's cache

# Commands that change only the layout: spaces, sizes of brackets, styles and fonts. They are not units.
LAYOUT_COMMANDS = r"""
    \quad \qquad \enspace \thinspace \hspace \vspace \hfill \limits \nolimits \displaystyle \textstyle \scriptstyle
    \left \right \middle \big \bigg \bigl \bigr \biggl \biggr
    \text \textbf \textit \textrm \textsf \texttt \textnormal \mbox \hbox \rm \bf \it
    \mathrm \mathbf \mathit \mathsf \mathtt \mathbb \mathcal \mathfrak \boldsymbol \bm \operatorname
"""
SAME_COMMANDS = {r"\dfrac": r"\frac", r"\tfrac": r"\frac"}

# Chinese punctuation that NFKC would rewrite. Replacing it by blanks gives the same units and avoids slow NFKC.
_WIDE_SEPARATORS = "，：；？！（）－／～…\u3000\xa0"
_THOUSANDS_COMMA = re.compile(r",(?<=[0-9],)(?:\\!)?(?=[0-9]{3}(?![0-9]))")
_CUT = re.compile(r"[\s\u3400-\u9fff]")  # no unit continues across such a character
_HASH_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_KIND_SHIFT = 24  # code points have 21 bits


class Units(NamedTuple):
    """The units of several texts, one text after another.

    Unit i is `text[starts[i]:ends[i]]`; `hashes[i]` is its 64-bit hash with case folded. Text t has the units
    `firsts[t]` to `firsts[t + 1] - 1`.
    """

    text: str
    starts: Positions
    ends: Positions
    hashes: Hashes
    firsts: Positions

    def words(self, first: int, count: int) -> list[str]:
        """Return `count` units from unit `first` on in the form in which they are compared."""
        spans = zip(self.starts[first : first + count], self.ends[first : first + count], strict=True)
        words = [self.text[start:end].casefold() for start, end in spans]
        return [SAME_COMMANDS.get(word, word) for word in words]

    def texts_of(self, units: npt.ArrayLike) -> Positions:
        """Return the text number of each of `units`."""
        return np.searchsorted(self.firsts, units, "right") - 1

    def stops_of(self, units: npt.ArrayLike) -> Positions:
        """Return, for each of `units`, the first unit after its text."""
        return self.firsts[self.texts_of(units) + 1]

    def excerpt(self, first: int, count: int) -> str:
        """Return `count` units from unit `first` on in brackets ⟦ ⟧, with the text around them, on one line."""
        text = int(self.texts_of(first))
        begin = self.starts[max(first - EXCERPT_UNITS, int(self.firsts[text]))]
        end = self.ends[min(first + count + EXCERPT_UNITS, int(self.firsts[text + 1])) - 1]
        start, stop = self.starts[first], self.ends[first + count - 1]
        before, after = self.text[begin:start][-EXCERPT_CHARACTERS:], self.text[stop:end][:EXCERPT_CHARACTERS]
        within = self.text[start:stop]
        if len(within) > 2 * EXCERPT_CHARACTERS:
            within = f"{within[: 2 * EXCERPT_CHARACTERS]} …"
        return " ".join(f"{before}⟦{within}⟧{after}".split())


def split_units(texts: Sequence[str]) -> Units:
    """Split `texts` into units: words, numbers, LaTeX commands and single Han characters.

    Extra memory: 24 bytes per unit, and about 100 bytes per character of one block of 65,536 characters.
    """
    normalised = [normalise(text) for text in texts]
    text = "\n".join(normalised)
    blocks = [_split_block(offset, block) for offset, block in _blocks(text)]
    starts, ends, hashes = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    begins = np.cumsum([0, *(len(part) + 1 for part in normalised)])
    return Units(text, starts, ends, hashes, np.searchsorted(starts, begins))


def normalise(text: str) -> str:
    """Return `text` in Unicode's form NFKC, without thousands separators."""
    if not text.isascii():
        for separator in _WIDE_SEPARATORS:
            text = text.replace(separator, " ")
        if not unicodedata.is_normalized("NFKC", text):
            text = unicodedata.normalize("NFKC", _tables().runs_of_marks.sub(_without_excess_marks, text))
    return _THOUSANDS_COMMA.sub("", text.replace("{,}", ","))


def _without_excess_marks(run: re.Match[str]) -> str:
    """Keep at most 30 marks per letter (Unicode's Stream-Safe Text Format): NFKC sorts them in quadratic time."""
    kept, marks = [], 0
    for character in run[0]:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= 30:
            kept.append(character)
    return "".join(kept)


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield blocks of `text` with their offsets, cut between units; a unit of over 65,536 characters may be cut."""
    start = 0
    while start + BLOCK_CHARACTERS < len(text):
        stop = start + BLOCK_CHARACTERS
        cut = _CUT.search(text, stop, stop + BLOCK_CHARACTERS)
        stop = cut.start() if cut else stop + BLOCK_CHARACTERS
        yield start, text[start:stop]
        start = stop
    yield start, text[start:]


def _split_block(offset: int, block: str) -> tuple[Positions, Positions, Hashes]:
    """Return starts and ends (in the text, where `block` begins at `offset`) and hashes of the units of `block`."""
    starts, ends, hashes, commands = _split_all(block)
    if len(commands):
        layout, same = _special_commands()
        command_hashes = hashes.take(commands)
        for other, one in same.items():
            hashes[commands[command_hashes == other]] = one
        is_unit = np.ones(len(starts), bool)
        is_unit[commands] = layout.take(np.searchsorted(layout, command_hashes), mode="clip") != command_hashes
        kept = np.flatnonzero(is_unit)
        starts, ends, hashes = starts.take(kept), ends.take(kept), hashes.take(kept)
    return starts + offset, ends + offset, hashes


def _split_all(block: str) -> tuple[Positions, Positions, Hashes, Positions]:
    """Return starts, ends and hashes of the units of `block`, with layout commands, and the indices of all commands.

    The hash of a unit is a polynomial of its characters, computed from one running sum over the block and then mixed.
    """
    tables = _tables()
    characters = tables.characters.take(np.frombuffer(block.encode("utf-32-le"), np.uint32))
    padded = np.zeros(len(characters) + 2, np.uint8)  # a separator at each end
    kinds = padded[1:-1]
    kinds[:] = characters >> np.uint32(_KIND_SHIFT)
    backslashes = np.flatnonzero(kinds == BACKSLASH)
    commands = backslashes[_opens_command(backslashes) & (padded.take(backslashes + 2) == LETTER)]
    kinds[backslashes] = SEPARATOR
    kinds[commands] = LETTER
    points = np.flatnonzero(characters == ord("."))
    kinds[points[(padded.take(points) == DIGIT) & (padded.take(points + 2) == DIGIT)]] = DIGIT

    changes = padded[1:] != padded[:-1]
    changes[:-1] |= kinds == HAN
    changes[commands] = True
    edges = np.flatnonzero(changes)
    before_units = np.flatnonzero(kinds.take(edges[:-1]) != SEPARATOR)
    starts, ends = edges.take(before_units), edges.take(before_units + 1)

    sums = np.zeros(len(characters) + 1, np.uint64)
    np.cumsum(characters * tables.powers[: len(characters)], out=sums[1:])
    hashes = (sums.take(ends) - sums.take(starts)) * tables.inverse_powers.take(starts)
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(32)
    return starts, ends, hashes, np.searchsorted(starts, commands)


def _opens_command(backslashes: Positions) -> Flags:
    """Exclude every second backslash of a run: in LaTeX, `\\\\` is a line break."""
    is_first = np.diff(backslashes, prepend=-2) != 1
    first_of_run = np.maximum.accumulate(np.where(is_first, backslashes, 0))
    is_even: Flags = (backslashes - first_of_run) % 2 == 0
    return is_even


@lru_cache(maxsize=1)
def _special_commands() -> tuple[Hashes, dict[int, int]]:
    """Return the hashes of layout commands, ascending, and a map from the hash of a command to that of its synonym."""
    layout, same = _split_all(LAYOUT_COMMANDS)[2], _split_all(" ".join(chain.from_iterable(SAME_COMMANDS.items())))[2]
    return np.sort(layout), dict(zip(same[::2].tolist(), same[1::2].tolist(), strict=True))


class _Tables(NamedTuple):
    characters: npt.NDArray[np.uint32]  # per code point: its kind, shifted, and its case-folded form
    powers: Hashes
    inverse_powers: Hashes
    runs_of_marks: re.Pattern[str]  # more than 30 characters, each a mark or in plane 1


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    """Build the tables on first use, in about 0.1 s."""
    characters = np.arange(0x110000, dtype=np.uint32)
    characters[0x20000:0x40000] |= HAN << _KIND_SHIFT  # planes 2 and 3; higher planes have no letters
    marks = []
    for code in range(0x20000):
        character = chr(code)
        folded = character.casefold()
        characters[code] = _kind(character) << _KIND_SHIFT | (ord(folded) if len(folded) == 1 else code)
        if code < 0x10000 and unicodedata.combining(character):
            marks.append(character)
    mark = f"[{''.join(marks)}\U00010000-\U0001ffff]"  # one range for plane 1: listing its marks would be slow
    runs_of_marks = re.compile(f"{mark}{mark}{{30,}}")  # `mark` first: re searches fast for a fixed first character
    return _Tables(characters, _powers(_HASH_BASE), _powers(pow(_HASH_BASE, -1, 1 << 64)), runs_of_marks)


def _kind(character: str) -> int:
    if character == "\\":
        return BACKSLASH
    if character in "々〇" or ("\u3400" <= character <= "\u9fff" and character.isalpha()):
        return HAN
    category = unicodedata.category(character)
    if category == "Nd":
        return DIGIT
    if category == "Mn" and "VARIATION SELECTOR" in unicodedata.name(character, ""):
        return SEPARATOR  # it changes only the appearance of a character
    return LETTER if category[0] in "LMN" else SEPARATOR  # letters, marks, and numerals that are letters


def _powers(base: int) -> Hashes:
    powers = np.full(2 * BLOCK_CHARACTERS + 1, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)
