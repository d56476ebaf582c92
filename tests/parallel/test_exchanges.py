"""Checksums change with every bit, and the first difference names the rank that made an error."""

from __future__ import annotations

from random import Random

import pytest
import torch

from megatron_dsmath.parallel.exchanges import Exchange, checksum, first_difference

WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}


def checksum_of(*tensors: torch.Tensor) -> list[int]:
    numbers: list[int] = checksum(tensors).tolist()
    return numbers


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("first", [0, 1])
def test_any_single_bit_changes_the_checksum(dtype: torch.dtype, first: int) -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(1)).to(dtype)[first:]
    before, draw = checksum_of(values), Random(1)
    assert checksum_of(values.clone()) == before
    for _ in range(100):
        index, bit = draw.randrange(len(values)), draw.randrange(8 * dtype.itemsize)
        words = values.clone().view(WORDS[dtype])
        words[index] ^= (-1 if bit == 8 * dtype.itemsize - 1 else 1) << bit
        assert checksum_of(words.view(dtype)) != before


def test_changed_signs_do_not_cancel() -> None:
    """Each sign is the top bit of a word, and two of them cancel in a sum."""
    values = torch.arange(1.0, 9.0, dtype=torch.float64)
    changed = values.clone()
    changed[[1, 4]] *= -1
    assert checksum_of(changed) != checksum_of(values)


def test_nan_and_infinity_have_a_checksum() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf")])
    assert (
        checksum_of(values)
        == checksum_of(values.clone())
        != checksum_of(torch.tensor([2.0, float("nan"), float("inf")]))
    )
    assert checksum_of(values, torch.ones(2)) == checksum_of(values, torch.ones(2)) != checksum_of(values)


def test_the_first_difference_separates_the_rank_with_the_error_from_the_others() -> None:
    right = {("send sent", 0, 1): Exchange(True, (1, 1)), ("recv received", 0, 1): Exchange(False, (2, 2))}
    wrong = right | {("send sent", 0, 1): Exchange(True, (1, 3)), ("recv received", 0, 1): Exchange(False, (4, 2))}
    affected = right | {("recv received", 0, 1): Exchange(False, (4, 2))}
    assert first_difference(right, dict(reversed(right.items()))) is None
    assert first_difference(wrong, right) == ("send sent, number 1", True)
    assert first_difference(affected, right) == ("recv received, number 1", False)
    assert first_difference(right, right | {("send sent", 0, 2): Exchange(True, (1, 1))}) is not None
