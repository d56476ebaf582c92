"""Checksums that a wrong bit changes, and who erred where two computations differ."""

from __future__ import annotations

from random import Random

import pytest
import torch

from megatron_dsmath.parallel.exchanges import Result, checksum, first_difference

WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}


def of(*tensors: torch.Tensor) -> list[int]:
    numbers: list[int] = checksum(tensors).tolist()
    return numbers


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("first", [0, 1])
def test_any_one_bit_changes_the_checksum(dtype: torch.dtype, first: int) -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(1)).to(dtype)[first:]
    before, draw = of(values), Random(1)
    assert of(values.clone()) == before
    for _ in range(100):
        place, bit = draw.randrange(len(values)), draw.randrange(8 * dtype.itemsize)
        words = values.clone().view(WORDS[dtype])
        words[place] ^= (-1 if bit == 8 * dtype.itemsize - 1 else 1) << bit
        assert of(words.view(dtype)) != before


def test_changed_signs_do_not_cancel() -> None:
    """Each sign is the top bit of a word, and two of them add up to nothing."""
    values = torch.arange(1.0, 9.0, dtype=torch.float64)
    changed = values.clone()
    changed[[1, 4]] *= -1
    assert of(changed) != of(values)


def test_values_that_are_none_have_a_checksum_too() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf")])
    assert of(values) == of(values.clone()) != of(torch.tensor([2.0, float("nan"), float("inf")]))
    assert of(values, torch.ones(2)) == of(values, torch.ones(2)) != of(values)


def test_the_first_difference_tells_the_rank_that_erred_from_those_it_told() -> None:
    right = {("send handed on", 0, 1): Result(True, (1, 1)), ("recv received", 0, 1): Result(False, (2, 2))}
    erred = right | {("send handed on", 0, 1): Result(True, (1, 3)), ("recv received", 0, 1): Result(False, (4, 2))}
    told = right | {("recv received", 0, 1): Result(False, (4, 2))}
    assert first_difference(right, dict(reversed(right.items()))) is None
    assert first_difference(erred, right) == ("send handed on, number 1", True)
    assert first_difference(told, right) == ("recv received, number 1", False)
    assert first_difference(right, right | {("send handed on", 0, 2): Result(True, (1, 1))}) is not None
