"""What every plan of a run's data is, of a mixture or of conversations: versions, each from one of its samples on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from megatron_dsmath.config.sections import Section

Count = Annotated[int, Field(ge=0, lt=2**48)]  # of tokens, documents, samples: products and sums stay within int64


class VersionStart(Section):
    """Where a version of a plan begins."""

    first_sample: Count
    skipped_samples: Count
    """The samples right before `first_sample` that were passed over."""


class RunPlan(Section, ABC):
    """A plan, as a run's state and its ledger see it. Samples are numbered from the run's first on."""

    versions: tuple[VersionStart, ...]
    """A version holds from its first sample until the next one's."""

    @abstractmethod
    def with_skipped(self, next_sample: int, samples: int) -> RunPlan:
        """This plan, but that the `samples` from `next_sample` on are passed over; the run gets no shorter by it."""

    def version_at(self, sample: int) -> int:
        """The version from which `sample` is drawn, and with it a step that begins there."""
        return bisect_right(self.versions, sample, key=lambda version: version.first_sample) - 1

    def after_skips(self, sample: int) -> int:
        """`sample`, or the end of the skipped samples that begin with it."""
        begins = (version for version in self.versions if version.first_sample - version.skipped_samples == sample)
        return max((version.first_sample for version in begins), default=sample)


def require_order(versions: Sequence[VersionStart]) -> None:
    """Raise ValueError unless they begin at 0 and rise."""
    firsts = [version.first_sample for version in versions]
    if firsts != sorted(firsts) or firsts[:1] not in ([], [0]):
        raise ValueError("the versions do not begin at 0 and rise")
