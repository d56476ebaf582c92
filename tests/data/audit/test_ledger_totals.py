from __future__ import annotations

import pytest

from megatron_dsmath.data.audit.ledger import LedgerRow
from megatron_dsmath.data.audit.ledger_totals import count_ledger
from tests.data.mixture.test_mixture_plan import PAPER, PAPER_SAMPLES, SIZES, plan

NO_HASH = "0" * 16


def row(step: int, first_sample: int, samples: int, version: int = 0) -> LedgerRow:
    return LedgerRow(
        step=step, plan_version=version, first_sample=first_sample, samples=samples, total=NO_HASH, moment=NO_HASH
    )


def test_the_deviation_is_counted_at_the_end_of_every_step() -> None:
    one = plan({"a": 3.0, "b": 1.0}, {"a": 400, "b": 400}, 4, 100)
    totals = count_ledger(one, [row(1 + place, 2 * place, 2) for place in range(4)])  # a b | a a | a b | a a
    assert totals.faults == ()
    assert [corpus.largest_deviation_samples for corpus in totals.corpora] == [0.5, 0.5]
    assert [(corpus.tokens, corpus.share, corpus.planned_share) for corpus in totals.corpora] == [
        (6 * 4, 0.75, 0.75),
        (2 * 4, 0.25, 0.25),
    ]
    assert [corpus.epochs for corpus in totals.corpora] == [6 / 100, 2 / 100]


def test_repeated_steps_change_the_mixture() -> None:
    one = plan({"a": 3.0, "b": 1.0}, {"a": 400, "b": 400}, 4, 100)
    totals = count_ledger(one, [row(1, 0, 2), row(2, 0, 2), row(3, 0, 2), row(4, 2, 2)])  # a b | a b | a b | a a
    assert [str(fault.where) for fault in totals.faults] == ["step 2", "step 3"]
    assert totals.repeated_samples == 4
    assert [corpus.largest_deviation_samples for corpus in totals.corpora] == [1.5, 1.5]  # 3 and 3, owed 4.5 and 1.5


def test_the_papers_run_is_within_two_samples_at_every_step() -> None:
    paper = plan(PAPER, SIZES, 4096, PAPER_SAMPLES)
    totals = count_ledger(paper, [row(1 + step, 2560 * step, 2560) for step in range(47_684)])
    assert totals.faults == ()
    assert max(corpus.largest_deviation_samples for corpus in totals.corpora) <= 2
    assert sum(corpus.tokens for corpus in totals.corpora) == PAPER_SAMPLES * 4096
    assert [f"{corpus.epochs:.2f}" for corpus in totals.corpora[:3]] == ["2.33", "1.94", "1.79"]
    assert [corpus.share for corpus in totals.corpora] == [
        pytest.approx(weight / 100, abs=2 / PAPER_SAMPLES) for weight in PAPER.values()
    ]


def test_a_planned_skip_is_not_a_fault_and_a_longer_one_is() -> None:
    later = plan({"a": 1.0}, {"a": 400}, 4, 100).with_skipped(8, 4)
    assert count_ledger(later, [row(1, 0, 4), row(2, 4, 4), row(3, 12, 4, version=1)]).faults == ()
    too_far = count_ledger(later, [row(1, 0, 4), row(2, 4, 4), row(3, 14, 4, version=1)])
    assert (too_far.missing_samples, too_far.skipped_samples) == (2, 4)
    unplanned = count_ledger(later, [row(1, 0, 4), row(2, 6, 2)])
    assert [fault.what for fault in unplanned.faults] == ["samples were skipped"]


def test_a_step_across_two_versions_is_a_fault() -> None:
    later = plan({"a": 1.0}, {"a": 400}, 4, 100).with_skipped(8, 4)
    (fault,) = count_ledger(later, [row(1, 0, 13)]).faults
    assert fault.what == "a step extends into the next version"
