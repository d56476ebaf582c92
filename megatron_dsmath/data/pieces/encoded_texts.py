"""The ids of many texts, as two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class EncodedTexts(NamedTuple):
    """Ids of texts end to end: `tokens` [sum of lengths], `lengths` [texts]."""

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def from_lists(cls, ids: Sequence[Sequence[int]]) -> EncodedTexts:
        """Of the ids of each text."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return cls(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths)

    def to_lists(self) -> list[list[int]]:
        """The ids of each text."""
        ids = self.tokens.tolist()
        ends = np.cumsum(self.lengths).tolist()
        return [ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
