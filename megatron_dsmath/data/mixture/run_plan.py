"""The base of `MixturePlan` and `ConversationPlan`: a list of versions, each valid from one sample on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from megatron_dsmath.config.sections import Section

# A number of tokens, documents or samples; sums and products fit in int64.
Count = Annotated[int, Field(ge=0, lt=2**48)]


class VersionStart(Section):
    """The start of a version of a plan."""

    first_sample: Count
    skipped_samples: Count  # the number of samples directly before `first_sample` that were skipped


class RunPlan(Section, ABC):
    """A plan as stored in checkpoints and in the ledger. Samples are numbered from the start of the run."""

    versions: tuple[VersionStart, ...]  # a version is valid from its first sample until that of the next one

    @abstractmethod
    def with_skipped(self, next_sample: int, samples: int) -> RunPlan:
        """Return a plan that skips `samples` samples from `next_sample` on and ends as many samples later."""

    def version_at(self, sample: int) -> int:
        """Return the index of the version that is valid at `sample`; a step is drawn from that of its first sample."""
        return bisect_right(self.versions, sample, key=lambda version: version.first_sample) - 1

    def after_skips(self, sample: int) -> int:
        """Return `sample`, or the first sample after a skip that begins with `sample`."""
        for version in self.versions:  # one skip may extend over several versions
            if version.skipped_samples and version.first_sample - version.skipped_samples == sample:
                sample = version.first_sample
        return sample


def require_order(versions: Sequence[VersionStart]) -> None:
    """Raise ValueError unless the first samples begin at 0 and ascend."""
    firsts = [version.first_sample for version in versions]
    if firsts != sorted(firsts) or firsts[:1] not in ([], [0]):
        raise ValueError("the versions do not begin at 0 and ascend")
