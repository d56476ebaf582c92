"""Which documents of a corpus are held out for validation: a few evenly spaced runs of whole documents.

Few runs leave the training stream in few pieces, so that a token's place in it stays arithmetic.
"""

from __future__ import annotations

from megatron_dsmath.data.mixture.permutation import random_words

RUNS = 8


def held_out_runs(documents: int, share: float, *label: object, at_least: int = 1) -> list[range]:
    """The runs of document numbers, in order, that hold `share` (0 to below 0.5) of `documents`, `at_least` so many.

    Runs lie at one distance from each other, up to a document; `label` decides where the first begins.
    """
    held_out = min(documents, max(at_least, round(share * documents))) if share else 0
    if held_out == 0:
        return []
    runs = min(RUNS, held_out)
    room = documents // runs - -(-held_out // runs)
    first = int(random_words(*label, "held_out")[0]) % (room + 1)
    starts = [first + run * documents // runs for run in range(runs)]
    sizes = [(run + 1) * held_out // runs - run * held_out // runs for run in range(runs)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
