"""The hash of a step's tokens in torch, computed from the tokens that enter the model (`data.audit.ledger`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from megatron_dsmath.data.audit.ledger import GOLDEN, StepHash, position_keys
from megatron_dsmath.data.mixture.permutation import mix
from megatron_dsmath.errors import InternalError
from megatron_dsmath.parallel.collectives import gather_objects
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.parallel.topology import Topology


def sample_hashes(tokens: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """`data.audit.ledger.sample_hashes` of int64 [n, length] and int64 [n], modulo 2^64: int64 [n]."""
    keys = torch.from_numpy(position_keys(tokens.size(1)).view(np.int64)).to(tokens.device)
    words = (tokens * keys).sum(1) + samples * _signed(GOLDEN)
    words = (words ^ _shifted(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _shifted(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ _shifted(words, 31)


def hash_words(batches: Sequence[DeviceBatch], topology: Topology) -> torch.Tensor:
    """This rank's terms of the hash: int64 [3]. Their sums over all ranks modulo 2^64 go to `agreed_hash`."""
    total, moment = _total_and_moment(batches)
    counts = topology.tensor_rank == 0 and topology.is_first_stage
    return torch.stack([total * counts, moment * counts, total * _weight(topology)])


def agreed_hash(sums: Sequence[int], batches: Sequence[DeviceBatch], topology: Topology) -> StepHash:
    """The hash of a step, from the `sums` over all ranks of `hash_words`.

    Ranks that share a microbatch (tensor and pipeline parallel) must have the same tokens. Raises InternalError on all
    ranks, which names the ranks that have others.
    """
    total, moment, disagreement = sums
    if disagreement:
        own_total, _ = _total_and_moment(batches)
        raise _disagreement(gather_objects((topology.data_rank, own_total.item()), topology))
    return StepHash(total, moment)


def _total_and_moment(batches: Sequence[DeviceBatch]) -> tuple[torch.Tensor, torch.Tensor]:
    hashes = torch.cat([sample_hashes(batch.tokens, batch.samples) for batch in batches])
    samples = torch.cat([batch.samples for batch in batches])
    return hashes.sum(), (hashes * samples).sum()


def _weight(topology: Topology) -> int:
    """The factor of a rank's hash in a sum that is 0 where all copies of each microbatch are equal.

    The factors are random odd numbers, except that of the first copy, which makes the factors of a data-parallel rank
    add up to 0. They differ between data-parallel ranks, so that exchanged microbatches are found too.
    """
    copies = topology.tensor_size * topology.pipeline_size
    copy = topology.pipeline_rank * topology.tensor_size + topology.tensor_rank
    weights = mix(np.arange(copies, dtype=np.uint64) + np.uint64(copies * topology.data_rank)) | np.uint64(1)
    weights[:1] = -weights[1:].sum(keepdims=True)
    return int(weights[copy : copy + 1].view(np.int64)[0])


def _disagreement(hashes: Sequence[tuple[int, int]]) -> InternalError:
    """The error that names the ranks whose hash is not the most common one of their data-parallel rank."""
    common = {data_rank: Counter(total for other, total in hashes if other == data_rank) for data_rank, _ in hashes}
    odd = [
        str(rank) for rank, (data_rank, total) in enumerate(hashes) if total != common[data_rank].most_common(1)[0][0]
    ]
    return InternalError(
        "ranks that share a microbatch read different tokens",
        found=f"different tokens on rank {', '.join(odd)}",
        expected="the same tokens on every tensor- and pipeline-parallel rank of a data-parallel rank",
        fix="run it again: it continues from its newest checkpoint; if the same rank fails again, check its machine",
    )


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right and fill with zeros; torch fills with the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
