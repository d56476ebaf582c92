"""The rows of a ledger against the plan, in numbers alone: is every sample there once, and how much was read?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_dsmath.data.ledger.ledger import LedgerRow
from megatron_dsmath.data.mixture.plan import Plan
from megatron_dsmath.data.run_plan import RunPlan
from megatron_dsmath.errors import DataError


@dataclass(frozen=True)
class CorpusAccount:
    """What the rows read of a corpus, and how far it was at most from its weight at the end of any step.

    The deviation counts from the first sample of each version; `planned_share` is that of all its tokens.
    """

    name: str
    tokens: int
    share: float
    planned_share: float
    largest_deviation_samples: float
    epochs: float


@dataclass(frozen=True)
class Accounts:
    """All corpora (none of a run on conversations), and what is wrong with the order of the rows."""

    corpora: tuple[CorpusAccount, ...]
    skipped_samples: int
    repeated_samples: int
    missing_samples: int
    faults: tuple[DataError, ...]


def account(plan: RunPlan, rows: Sequence[LedgerRow]) -> Accounts:
    """Count what the rows say; there is no fault when each step follows the one before, as the plan has it."""
    breaks = list(_breaks(plan, rows))
    end = rows[-1].end_sample if rows else 0
    return Accounts(
        corpora=tuple(_corpora(plan, rows, end)) if isinstance(plan, Plan) else (),
        skipped_samples=sum(version.skipped_samples for version in plan.versions if version.first_sample <= end),
        repeated_samples=-sum(min(missing, 0) for missing, _ in breaks),
        missing_samples=sum(max(missing, 0) for missing, _ in breaks),
        faults=tuple(fault for _, fault in breaks),
    )


def _breaks(plan: RunPlan, rows: Sequence[LedgerRow]) -> Iterator[tuple[int, DataError]]:
    """What is wrong with the order of the rows, and how many samples are missing there (negative: repeated)."""
    next_step, next_sample = 1, 0
    for row in rows:
        expected = plan.after_skips(next_sample)
        if row.step != next_step:
            what = "a step stands twice in the ledger" if row.step < next_step else "a step is missing in the ledger"
            yield 0, _fault(what, next_step, f"step {row.step}", f"step {next_step}")
        if row.first_sample != expected:
            what = "samples were trained on again" if row.first_sample < expected else "samples were passed over"
            yield (
                row.first_sample - expected,
                _fault(what, row.step, f"sample {row.first_sample:,}", f"sample {expected:,}, after the step before"),
            )
        version = plan.version_at(row.first_sample)
        if row.plan_version != version:
            yield 0, _fault("a step names another version of the plan", row.step, row.plan_version, version)
        if plan.version_at(row.end_sample - 1) != version:
            where_it_ends = f"before sample {plan.versions[version + 1].first_sample:,}"
            yield 0, _fault("a step runs into the next version", row.step, f"{row.end_sample - 1:,}", where_it_ends)
        next_step, next_sample = row.step + 1, row.end_sample


def _fault(what: str, step: int, found: object, expected: object) -> DataError:
    return DataError(what, where=f"step {step}", found=found, expected=expected)


def _corpora(plan: Plan, rows: Sequence[LedgerRow], end: int) -> Iterator[CorpusAccount]:
    tokens, planned = dict.fromkeys(plan.names, 0), dict.fromkeys(plan.names, 0.0)
    largest = dict.fromkeys(plan.names, 0.0)
    bounds = np.array([(row.first_sample, row.end_sample) for row in rows], np.int64).reshape(-1, 2)
    places = np.array([plan.version_at(row.first_sample) for row in rows])
    for place in np.unique(places).tolist():
        version = plan.versions[place]
        firsts, ends = bounds[places == place].T
        counts = version.blend.counts(ends - version.first_sample) - version.blend.counts(firsts - version.first_sample)
        read, samples = counts.cumsum(axis=0), (ends - firsts).cumsum()
        for corpus, (name, share) in enumerate(zip(version.blend.names, map(float, version.blend.shares), strict=True)):
            tokens[name] += int(read[-1, corpus]) * version.sequence_length
            planned[name] += float(samples[-1]) * share * version.sequence_length
            largest[name] = max(largest[name], float(np.abs(read[:, corpus] - share * samples).max()))
    all_tokens = max(1, sum(tokens.values()))
    for total in plan.totals(end):
        yield CorpusAccount(
            total.name,
            tokens=tokens[total.name],
            share=tokens[total.name] / all_tokens,
            planned_share=planned[total.name] / all_tokens,
            largest_deviation_samples=largest[total.name],
            epochs=total.epochs,
        )
