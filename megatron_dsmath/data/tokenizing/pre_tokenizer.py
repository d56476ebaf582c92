"""Where a chain of Hugging Face pre-tokenizers cuts a text, worked out for all of its characters at once.

The library runs one regular expression after another over every piece, and so reaches 0.5 MB/s on DeepSeek's chain.
Each pattern of that chain asks of a character only to which sets it belongs, so the cuts follow from arrays of sets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

Codes = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]
Cut = Callable[[Flags, Flags, Flags], None]  # of set, spaces and cuts

CODE_POINTS = 0x110000
SURROGATES_START = 0xD800  # 0x800 code points that no text may hold
STEPS = 6  # and the spaces and the added tokens: eight bits
ONE_SET = r"(\[[^\[\]\\&]+\]|\\[pP]\{\w+\})"  # [...] without classes within, or \p{...}
SPACE = r"\s"


class PreTokenizerSplitter:
    """The cuts of one chain: a `Splitter` (see piece_encoder)."""

    def __init__(self, spaces: Flags, steps: Sequence[tuple[Cut, Flags]]) -> None:
        """`steps`: what each does, and the set it does it to. `spaces` and the sets: [code points]."""
        self._sets = spaces.astype(np.uint8)  # a character's sets as bits; the lowest: is it a space
        self._steps: list[tuple[Cut, np.uint8]] = []
        for number, (cut, members) in enumerate(steps, start=1):
            set_bit = np.uint8(1 << number)
            self._sets[members] |= set_bit
            self._steps.append((cut, set_bit))

    def mark_cuts(self, codes: Codes, cuts: Flags) -> None:
        """Mark in `cuts` [characters + 1] where pieces begin; no pattern looks beyond what is marked already."""
        sets = self._sets.take(codes)
        spaces = (sets & 1).astype(np.bool_)
        for cut, set_bit in self._steps:
            cut((sets & set_bit).astype(np.bool_), spaces, cuts)

    def next_cut(self, text: str, start: int) -> int:
        """Behind the next line feed, which is always a piece."""
        return text.find("\n", start) + 1 or len(text)


def build_splitter(pre_tokenizer: PreTokenizer | None, isolated: str) -> PreTokenizerSplitter | None:
    r"""The chain that `pre_tokenizer` is, or None where it is not of the family that is proved equal to the library.

    That is a sequence, up to `STEPS` long, of `[set]` (first, and with the line feed), `[set]+`, `\s?[set]+` and
    `\s+$`, each isolated, and of single digits; then of bytes without a pattern. Each character of `isolated`, an added
    token of the vocabulary, is cut out before the chain sees the text.
    """
    description = {} if pre_tokenizer is None else json.loads(pre_tokenizer.__getstate__())
    *parts, last = description.get("pretokenizers") or [{}]
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    if last | bytes_alone != last or len(parts) > STEPS:
        return None
    characters = _Characters()
    known = [_step(part, characters) for part in parts]
    steps = [step for step in known if step is not None]
    if not steps or len(steps) < len(known) or steps[0][0] is not _isolate_each or not steps[0][1][ord("\n")]:
        return None
    added = _flags(isolated)
    others = [(cut, members & ~added) for cut, members in steps]
    return PreTokenizerSplitter(characters.of_set(SPACE) & ~added, [(_isolate_each, added), *others])


def _step(part: dict[str, Any], characters: _Characters) -> tuple[Cut, Flags] | None:
    """What one pre-tokenizer of the chain does, and the set it does it to; None for one that is not known here."""
    from tokenizers import pre_tokenizers

    if part == {"type": "Digits", "individual_digits": True}:
        return _isolate_each, characters.cut_out_by(pre_tokenizers.Digits(individual_digits=True))
    if part | {"type": "Split", "behavior": "Isolated", "invert": False} != part:
        return None
    pattern = part["pattern"].get("Regex", "")
    if pattern == r"\s+$":
        return _isolate_spaces_at_end, characters.of_set(SPACE)
    for cut, shape in CUT_OF_SHAPE.items():
        if match := re.fullmatch(shape, pattern):
            return cut, characters.of_set(match[1])
    return None


# In these, `inner[i]` is the cut between the characters i and i + 1.


def _isolate_each(members: Flags, spaces: Flags, cuts: Flags) -> None:
    """`[set]`: every member is a piece."""
    inner = cuts[1:-1]
    inner |= members[1:]
    inner |= members[:-1]


def _isolate_runs(members: Flags, spaces: Flags, cuts: Flags) -> None:
    """`[set]+`: every run of members is a piece."""
    cuts[1:-1] |= members[1:] != members[:-1]


def _isolate_runs_with_space(members: Flags, spaces: Flags, cuts: Flags) -> None:
    r"""`\s?[set]+`: every run of members is a piece, together with one space before it in the same piece."""
    inner = cuts[1:-1]
    changes = members[1:] != members[:-1]
    after_space = changes & members[1:] & spaces[:-1] & ~inner
    inner |= changes ^ after_space
    cuts[:-2] |= after_space


def _isolate_spaces_at_end(members: Flags, spaces: Flags, cuts: Flags) -> None:
    r"""`\s+$`: the spaces at the end of each piece are a piece (no piece holds a line feed that `$` would stop at)."""
    begins = np.flatnonzero(spaces[1:] & ~spaces[:-1] & ~cuts[1:-1]) + 1
    if not begins.size:
        return
    ends = np.flatnonzero(np.append(~spaces, True) | cuts)
    ends_of_runs = ends[np.searchsorted(ends, begins, "right")]
    cuts[begins[cuts[ends_of_runs]]] = True


CUT_OF_SHAPE: dict[Cut, str] = {
    _isolate_each: ONE_SET,
    _isolate_runs: ONE_SET + r"\+",
    _isolate_runs_with_space: r"\\s\?" + ONE_SET + r"\+",
}


class _Characters:
    """Asks the library which characters a set holds: its edition of Unicode is what counts, not Python's."""

    def __init__(self) -> None:
        starts = [start for start in range(0, CODE_POINTS, 0x800) if start != SURROGATES_START]
        self._texts = ["".join(map(chr, range(start, start + 0x800))) for start in starts]

    def of_set(self, one_set: str) -> Flags:
        """Those that are gone when the library erases the set: [code points]."""
        from tokenizers import Regex, normalizers

        erase = normalizers.Replace(Regex(one_set), "")
        members = np.zeros(CODE_POINTS, np.bool_)
        for text in self._texts:
            members[_codes(text)] = True
            members[_codes(erase.normalize_str(text))] = False
        return members

    def cut_out_by(self, pre_tokenizer: PreTokenizer) -> Flags:
        """Those that the pre-tokenizer makes pieces of their own wherever they stand: [code points]."""
        alone = [
            text[begin:end]
            for text in self._texts
            for _, (begin, end) in pre_tokenizer.pre_tokenize_str(text)
            if end - begin == 1
        ]
        # One that was only left over between two others is joined to the letters that are put around it now.
        pieces = pre_tokenizer.pre_tokenize_str("a" + "a".join(alone) + "a")
        return _flags(alone[begin // 2] for _, (begin, end) in pieces if begin % 2 and end - begin == 1)


def _flags(characters: Iterable[str]) -> Flags:
    flags = np.zeros(CODE_POINTS, np.bool_)
    flags[[ord(character) for character in characters]] = True
    return flags


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
