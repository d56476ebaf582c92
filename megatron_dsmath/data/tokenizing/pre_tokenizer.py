"""The cuts of a sequence of Hugging Face pre-tokenizers, computed for all characters of a text at once.

The library applies one regular expression after another to every piece, which reaches 0.5 MB/s for DeepSeek's
pre-tokenizers. Their patterns depend only on the sets to which a character belongs, so that the cuts can be computed
with arrays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.tokenizing.piece_encoder import Codes, code_points

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

Flags = npt.NDArray[np.bool_]
Cut = Callable[[Flags, Flags, Flags], None]  # arguments: members of the set, spaces, cuts

CODE_POINTS = 0x110000
SURROGATES_START = 0xD800  # 0x800 code points that cannot occur in a text
MAX_STEPS = 6  # with the spaces and the added tokens: eight bits
SET = r"(\[[^\[\]\\&]+\]|\\[pP]\{\w+\})"  # [...] without nested classes, or \p{...}
SPACE = r"\s"


class PreTokenizerSplitter:
    """The `Splitter` (see piece_encoder) of a sequence of pre-tokenizers."""

    def __init__(self, spaces: Flags, steps: Sequence[tuple[Cut, Flags]]) -> None:
        """`steps`: the operation of each pre-tokenizer and its set. `spaces` and the sets: [code points]."""
        self._sets = spaces.astype(np.uint8)  # the sets of each character as bits; the lowest bit: spaces
        self._steps: list[tuple[Cut, np.uint8]] = []
        for number, (cut, members) in enumerate(steps, start=1):
            set_bit = np.uint8(1 << number)
            self._sets[members] |= set_bit
            self._steps.append((cut, set_bit))

    def mark_cuts(self, codes: Codes, cuts: Flags) -> None:
        """Mark in `cuts` [characters + 1] where pieces begin; no pattern matches across an existing mark."""
        sets = self._sets.take(codes)
        spaces = (sets & 1).astype(np.bool_)
        for cut, set_bit in self._steps:
            cut((sets & set_bit).astype(np.bool_), spaces, cuts)

    def next_cut(self, text: str, start: int) -> int:
        """The position after the next line feed, which is always a piece."""
        return text.find("\n", start) + 1 or len(text)


def build_splitter(pre_tokenizer: PreTokenizer | None, isolated: str) -> PreTokenizerSplitter | None:
    r"""The splitter equivalent to `pre_tokenizer`, or None if it is not of the supported form.

    The supported form is a sequence of up to `MAX_STEPS` patterns `[set]` (first, and with the line feed), `[set]+`,
    `\s?[set]+` and `\s+$`, each isolated, and of single digits; then bytes without a pattern. The characters in
    `isolated` are added tokens of the vocabulary: each is cut out before the patterns are applied.
    """
    description = {} if pre_tokenizer is None else json.loads(pre_tokenizer.__getstate__())
    *parts, last = description.get("pretokenizers") or [{}]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    if last | bytes_only != last or len(parts) > MAX_STEPS:
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
    """The operation of one pre-tokenizer and its set; None if it is not supported."""
    from tokenizers import pre_tokenizers

    if part == {"type": "Digits", "individual_digits": True}:
        return _isolate_each, characters.isolated_by(pre_tokenizers.Digits(individual_digits=True))
    if part | {"type": "Split", "behavior": "Isolated", "invert": False} != part:
        return None
    pattern = part["pattern"].get("Regex", "")
    if pattern == r"\s+$":
        return _isolate_spaces_at_end, characters.of_set(SPACE)
    for cut, form in PATTERN_OF_CUT.items():
        if match := re.fullmatch(form, pattern):
            return cut, characters.of_set(match[1])
    return None


# In the next four functions, `inner[i]` is the cut between the characters i and i + 1.


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
    r"""`\s+$`: the spaces at the end of each piece are a piece (`$` also matches at a line feed; no piece has one)."""
    begins = np.flatnonzero(spaces[1:] & ~spaces[:-1] & ~cuts[1:-1]) + 1
    if not begins.size:
        return
    ends = np.flatnonzero(np.append(~spaces, True) | cuts)
    ends_of_runs = ends[np.searchsorted(ends, begins, "right")]
    cuts[begins[cuts[ends_of_runs]]] = True


PATTERN_OF_CUT: dict[Cut, str] = {
    _isolate_each: SET,
    _isolate_runs: SET + r"\+",
    _isolate_runs_with_space: r"\\s\?" + SET + r"\+",
}


class _Characters:
    """Gets the members of character sets from the library, because Python may have another version of Unicode."""

    def __init__(self) -> None:
        starts = [start for start in range(0, CODE_POINTS, 0x800) if start != SURROGATES_START]
        self._texts = ["".join(map(chr, range(start, start + 0x800))) for start in starts]

    def of_set(self, pattern: str) -> Flags:
        """The characters that match `pattern`, found by letting the library delete them: [code points]."""
        from tokenizers import Regex, normalizers

        erase = normalizers.Replace(Regex(pattern), "")
        members = np.zeros(CODE_POINTS, np.bool_)
        for text in self._texts:
            members[code_points(text)] = True
            members[code_points(erase.normalize_str(text))] = False
        return members

    def isolated_by(self, pre_tokenizer: PreTokenizer) -> Flags:
        """The characters that are a piece by themselves in any context: [code points]."""
        alone = [
            text[begin:end]
            for text in self._texts
            for _, (begin, end) in pre_tokenizer.pre_tokenize_str(text)
            if end - begin == 1
        ]
        # A character that was only left over between two others is now joined with the letters around it.
        pieces = pre_tokenizer.pre_tokenize_str("a" + "a".join(alone) + "a")
        return _flags(alone[begin // 2] for _, (begin, end) in pieces if begin % 2 and end - begin == 1)


def _flags(characters: Iterable[str]) -> Flags:
    flags = np.zeros(CODE_POINTS, np.bool_)
    flags[[ord(character) for character in characters]] = True
    return flags
