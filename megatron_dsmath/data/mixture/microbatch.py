"""The batch type of mixtures and conversations: sequences that one rank computes together, as numpy arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.mixture.permutation import IntArray

PADDING = -1  # sample or group number of padding, which has no effect on the loss


class Microbatch(NamedTuple):
    """Sequences with their loss mask and the groups to which their loss belongs."""

    tokens: IntArray  # int64 [microbatch, sequence_length + 1]; inputs: all but the last; targets: all but the first
    loss_mask: npt.NDArray[np.bool_]  # [microbatch, sequence_length]: whether the target is part of the loss
    groups: npt.NDArray[np.int32]
    """The groups of each target as indices into `RunBatches.group_names`; PADDING where the mask is false.

    [microbatch, sequence_length, groups per target], or [microbatch, 1, groups per target] if all targets of a
    sequence belong to the same groups.
    """
    document_starts: list[IntArray]  # per sequence int64, ascending from 0; padding belongs to the last document
    samples: IntArray  # int64 [microbatch]: the numbers of the sequences in the run or in the validation set

    def without_targets(self) -> Microbatch:
        """Return the same sequences without any target in the loss."""
        return self._replace(
            loss_mask=np.zeros_like(self.loss_mask), groups=np.full_like(self.groups, np.int32(PADDING))
        )
