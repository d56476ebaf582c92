"""The report of `sft build`: counts of a set and the packing of its first epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.packing import PackedExamples

PAPER_SEQUENCES_PER_STEP, PAPER_STEPS = 256, 500  # section 3.2
COUNTED = ("kind", "language", "source", "topic")


@dataclass(frozen=True)
class GroupCount:
    """The examples of one kind, language, source or topic."""

    group: str
    name: str
    examples: int
    tokens: int
    target_tokens: int


@dataclass(frozen=True)
class SourceCount:
    """The rows of one source, by outcome. `missing_examples` is None where no number is expected."""

    name: str
    formats: tuple[str, ...]
    examples: int
    passes_per_epoch: float
    truncated: int
    too_long: int
    without_target: int
    bad_lines: int
    missing_examples: int | None


@dataclass(frozen=True)
class SetReport:
    """Counts of a set and of its first epoch. `fill`: the share of all positions that hold examples."""

    prefix: Path
    examples: int
    tokens: int
    target_tokens: int
    truncated: int
    dropped: int
    bad_lines: int
    missing_examples: int | None
    sequence_length: int
    packing: str
    seed: int
    sequences: int
    fill: float
    padding_tokens: int
    steps_per_epoch: float
    passes_in_paper_steps: float
    sources: tuple[SourceCount, ...]
    groups: tuple[GroupCount, ...]
    seconds: float

    def totals(self) -> dict[str, object]:
        """All fields but `sources` and `groups`."""
        return {name: value for name, value in vars(self).items() if name not in ("sources", "groups")}


def report_set(examples: Examples, *, seconds: float = 0.0) -> SetReport:
    """Count a set, and pack its first epoch with the options in its sidecar."""
    options = examples.facts["options"]
    packed = PackedExamples(examples, options["sequence_length"], options["seed"], options["packing"])
    packing = packed.plan(0)
    slots = packing.sequence_count * packed.sequence_length
    packed_tokens = int(packing.token_counts.sum())
    sources = _sources(examples)
    dropped = sum(source.too_long + source.without_target for source in sources)
    expected = examples.facts["expected_examples"]
    return SetReport(
        prefix=examples.prefix,
        examples=len(examples),
        tokens=examples.dataset.token_count,
        target_tokens=int(examples.column("target_tokens").sum(dtype=np.int64)),
        truncated=sum(source.truncated for source in sources),
        dropped=dropped,
        bad_lines=sum(source.bad_lines for source in sources),
        missing_examples=None if expected is None else max(0, expected - len(examples)),
        sequence_length=packed.sequence_length,
        packing=packed.policy,
        seed=options["seed"],
        sequences=packing.sequence_count,
        fill=packed_tokens / slots,
        padding_tokens=slots - packed_tokens,
        steps_per_epoch=packing.sequence_count / PAPER_SEQUENCES_PER_STEP,
        passes_in_paper_steps=PAPER_STEPS * PAPER_SEQUENCES_PER_STEP / packing.sequence_count,
        sources=sources,
        groups=tuple(_groups(examples)),
        seconds=seconds,
    )


def _sources(examples: Examples) -> tuple[SourceCount, ...]:
    facts, names = examples.facts, examples.names("source")
    counts = np.bincount(examples.column("source"), minlength=len(names)).tolist()
    source_of = dict(zip(examples.column("file").tolist(), examples.column("source").tolist(), strict=True))
    return tuple(
        SourceCount(
            name=name,
            formats=tuple(sorted({facts["formats"][file] for file, source in source_of.items() if source == index})),
            examples=counts[index],
            passes_per_epoch=facts["passes_per_epoch"][index],
            truncated=facts["truncated"][index],
            too_long=facts["too_long"][index],
            without_target=facts["without_target"][index],
            bad_lines=facts["bad_lines"][index],
            missing_examples=None if expected is None else max(0, expected - counts[index]),
        )
        for index, (name, expected) in enumerate(zip(names, facts["expected_by_source"], strict=True))
    )


def _groups(examples: Examples) -> list[GroupCount]:
    found = []
    for group in COUNTED:
        names, column = examples.names(group), examples.column(group)
        named = column >= 0
        sums = [
            np.bincount(column[named], weights, len(names)).astype(np.int64).tolist()
            for weights in (None, examples.lengths[named], examples.column("target_tokens")[named])
        ]
        found += [GroupCount(group, *row) for row in zip(names, *sums, strict=True)]
    return found
