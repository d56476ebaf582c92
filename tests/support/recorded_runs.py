"""The directory of a run with a ledger but without training: the input of the audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_dsmath.config.sections import DataConfig
from megatron_dsmath.config.source import write
from megatron_dsmath.data.audit.ledger import Ledger, StepHash, sample_hashes, step_hash
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from tests.support.mixtures import VOCABULARY, opened, planned
from tests.support.runs import tree

SAMPLES = 12  # of a step
Read = Callable[[MixtureBatches, int, int, int], list[Microbatch]]


def as_planned(batches: MixtureBatches, first_sample: int, rank: int, ranks: int) -> list[Microbatch]:
    """Return what a rank reads of a step without a fault."""
    return batches.step_batches(first_sample, SAMPLES, 1, rank, ranks)


class RecordedRun:
    """A run in which each `train` continues after the previous one, as from a checkpoint."""

    def __init__(self, folder: Path, end_sample: int = 1000) -> None:
        self.folder, self.end_sample = folder, end_sample
        self.ledger = Ledger(folder / "ledger")
        self.plan: MixturePlan | None = None
        self.step = self.next_sample = 0

    def train(self, config: DataConfig, steps: int, ranks: int = 1, read: Read = as_planned) -> None:
        """Record `steps` more steps with this mixture on `ranks` data-parallel ranks."""
        data = config.model_dump(mode="json")
        self.folder.mkdir(exist_ok=True)
        (self.folder / "run.yaml").write_text(write(tree(data=data, model__vocabulary_size=VOCABULARY)))
        self.plan = planned(config, self.plan, self.next_sample, self.end_sample)
        self.ledger.write_plan(self.plan)
        batches = opened(self.plan)
        for _ in range(steps):
            parts = [
                step_hash(sample_hashes(batch.tokens, batch.samples), batch.samples)
                for rank in range(ranks)
                for batch in read(batches, self.next_sample, rank, ranks)
            ]
            self.record(StepHash(*(sum(column) % 2**64 for column in zip(*parts, strict=True))))

    def skip(self, samples: int) -> None:
        """Skip samples."""
        assert self.plan is not None
        self.plan = self.plan.with_skipped(self.next_sample, samples)
        self.next_sample, self.end_sample = self.next_sample + samples, self.end_sample + samples

    def record(self, tokens: StepHash) -> None:
        """Record a step on the next samples."""
        assert self.plan is not None
        self.step += 1
        self.ledger.append(self.step, self.plan.version_at(self.next_sample), self.next_sample, SAMPLES, tokens)
        self.next_sample += SAMPLES
