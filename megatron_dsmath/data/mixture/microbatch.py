"""The sequences that one rank computes at once, as numpy arrays: the one batch type of mixtures and conversations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.mixture.permutation import IntArray

PADDING = -1  # the number of a sample, or of a group, that counts for nothing


class Microbatch(NamedTuple):
    """Some sequences, with their targets and the groups their loss belongs to."""

    tokens: IntArray
    """int64 [microbatch, sequence_length + 1]; inputs are all but the last, targets all but the first."""
    loss_mask: npt.NDArray[np.bool_]
    """Whether the target counts in the loss: [microbatch, sequence_length]."""
    groups: npt.NDArray[np.int32]
    """The groups of each target, as indices into `RunBatches.group_names`; PADDING where nothing is learned.

    [microbatch, sequence_length, groups of each], or [microbatch, 1, groups of each] where all targets of a sequence
    belong to the same groups.
    """
    document_starts: list[IntArray]
    """For each sequence int64, ascending from 0; padding at the end belongs to the last document."""
    samples: IntArray
    """The numbers of the sequences in the run, or in the validation set: int64 [microbatch]."""

    def without_targets(self) -> Microbatch:
        """The same sequences, none of whose targets count in the loss."""
        return self._replace(
            loss_mask=np.zeros_like(self.loss_mask), groups=np.full_like(self.groups, np.int32(PADDING))
        )
