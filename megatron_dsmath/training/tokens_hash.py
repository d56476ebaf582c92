"""The ledger's hash where the model is: `data.ledger.step_hash` in torch, of tokens as they enter the forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from megatron_dsmath.data.audit.ledger import GOLDEN, StepHash, position_keys
from megatron_dsmath.data.mixture.permutation import mix
from megatron_dsmath.errors import InternalError
from megatron_dsmath.parallel.collectives import all_reduce_sum, gather_objects
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.state import State


def sample_hashes(tokens: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """`data.ledger.step_hash.sample_hashes` of int64 [n, length] and int64 [n], as int64 [n]: modulo 2^64."""
    keys = torch.from_numpy(position_keys(tokens.size(1)).view(np.int64)).to(tokens.device)
    words = (tokens * keys).sum(1) + samples * _signed(GOLDEN)
    words = (words ^ _shifted(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _shifted(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ _shifted(words, 31)


def hash_of_step(batches: Sequence[DeviceBatch], topology: Topology) -> StepHash:
    """The hash of a step from every rank's microbatches, on every rank.

    Ranks that share a microbatch (tensor and pipeline parallel) must have read the same: raises InternalError, naming
    those that did not. One sum over all ranks does both, see `_weight`.
    """
    hashes = torch.cat([sample_hashes(batch.tokens, batch.samples) for batch in batches])
    samples = torch.cat([batch.samples for batch in batches])
    total = hashes.sum()
    speaks = topology.tensor_rank == 0 and topology.is_first_stage
    own = torch.stack([total * speaks, (hashes * samples).sum() * speaks, total * _weight(topology)])
    total_sum, moment_sum, disagreement = all_reduce_sum(own).tolist()
    if disagreement:
        raise _disagreement(gather_objects((topology.data_rank, total.item()), topology))
    return StepHash(total_sum % 2**64, moment_sum % 2**64)


def record(job: Job, state: State, tokens: StepHash) -> None:
    """The ledger's row of the step that led to `state`; rank 0 writes it."""
    if job.topology.rank == 0:
        samples = job.run.schedule.sequences_per_step
        version = len(job.batches.plan.versions) - 1
        job.ledger.append(state.step, version, state.next_sample - samples, samples, tokens)


def _weight(topology: Topology) -> int:
    """What a rank's hash is multiplied by in a sum that is 0 when all copies of each microbatch agree.

    Random odd numbers, but for the first copy's, which makes each data-parallel rank's copies add up to 0. They differ
    from one data-parallel rank to the next, so that ranks which trade their slices are seen too.
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
        found=f"other tokens on rank {', '.join(odd)}",
        expected="the same on every tensor- and pipeline-parallel rank of a data-parallel rank",
        fix="run it again: it goes on from its newest checkpoint; if the same rank fails again, look at its machine",
    )


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift to the right that fills with zeros; torch's fills with the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
