"""The phases of a run file, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.config import dump, load
from megatron_dsmath.config.phases import phase_at, phases, total_steps, total_tokens
from tests.support.seeded import PAPER_RUN, seeded

WSD = PAPER_RUN.parent / "wsd_with_annealing_7b.yaml"
OLDER = (
    "  drops:\n"
    "    - {after: 0.8, factor: 0.316} # from step 38,147 on\n"
    "    - {after: 0.9, factor: 0.1} # from step 42,915 on\n"
)
LENGTH = "  steps: 47684 # 500B tokens in steps of 2,560 x 4,096 = 10,485,760\n"
WARMUP = "  warmup_steps: 2000\n"
STABLE = "    - {name: stable, length: 400B tokens, learning_rate: warm up over 2000 steps}\n"


def test_the_file_with_annealing_reads_500_billion_tokens_in_two_phases() -> None:
    run = load(WSD)
    stable, decay = phases(run)
    assert (stable.steps, decay.steps) == (42_916, 4_769)  # 450B and 50B by 10,485,760, rounded up
    assert total_tokens(run) == 47_685 * 10_485_760
    assert (phase_at(run, 42_915).name, phase_at(run, 42_916).name) == ("stable", "decay")
    assert sum(decay.weights.values()) == 100


def test_a_run_without_phases_is_one_phase() -> None:
    (phase,) = phases(load(PAPER_RUN))
    assert (phase.steps, phase.samples) == (47_684, 47_684 * 2560)
    assert list(phase.weights.values()) == [56, 4, 10, 20, 10]


@pytest.mark.parametrize("path", [PAPER_RUN, WSD])
def test_the_resolved_file_repeats_the_run(path: Path, tmp_path: Path) -> None:
    run, copy = load(path), tmp_path / "run.yaml"
    copy.write_text(dump(run), encoding="utf-8")
    assert load(copy) == run


def _refused(tmp_path: Path, schedule: str, *edits: tuple[str, str]) -> list[tuple[str, str]]:
    """The key and the text of each error of the paper's file with another schedule."""
    file = seeded(tmp_path, (LENGTH, ""), (WARMUP, ""), (OLDER, schedule), *edits)
    return [(str(error.where).rpartition(": ")[2], error.what) for error in file.refusals()]


@pytest.mark.parametrize(
    ("schedule", "key", "what"),
    [
        ("  steps: 9\n", "schedule", "the learning rate is missing"),
        (
            "  steps: 9\n  learning_rate: constant\n  drops: [{after: 0.5, factor: 0.1}]\n",
            "schedule.drops",
            "stated more than once",
        ),
        ("  steps: 9\n  drops: [{after: 0.5, factor: 0.1}]\n", "schedule.warmup_steps", "'warmup_steps' is missing"),
        ("  learning_rate: constant\n", "schedule.steps", "'steps' is missing"),
        ("  steps: 9\n  phases:\n" + STABLE, "schedule.steps", "stated twice"),
        ("  steps: 9\n  learning_rate: cosine\n", "schedule.learning_rate", "not valid"),
        ("  steps: 9\n  learning_rate: warm up over 10 steps\n", "schedule.learning_rate", "after its phase"),
        (
            "  steps: 9\n  learning_rate: constant until 80%, linear to 10% until 70%\n",
            "schedule.learning_rate",
            "ends before it begins",
        ),
        ("  steps: 9\n  learning_rate: drop to 10% until 50%, linear to 20%\n", "schedule.learning_rate", "rises"),
        ("  steps: 9\n  learning_rate: drop to 120%\n", "schedule.learning_rate", "rises"),
        (
            "  steps: 9\n  learning_rate: drop to 50% until 50%, warm up to 10%\n",
            "schedule.learning_rate",
            "lowers the learning rate",
        ),
        ("  phases:\n" + STABLE + STABLE, "schedule.phases.1.name", "the same name"),
        (
            "  phases:\n    - {name: a, length: 10%, learning_rate: constant}\n",
            "schedule.phases.0.length",
            "not valid",
        ),
        (
            "  phases:\n" + STABLE + "    - {name: b, length: 9 steps, learning_rate: constant, weights: {web: 1.0}}\n",
            "schedule.phases.1.weights.web",
            "a corpus without data",
        ),
        (
            "  phases:\n" + STABLE + "    - {name: b, length: 9 steps, learning_rate: constant, weights: {arxiv: 0}}\n",
            "schedule.phases.1.weights.arxiv",
            "not valid",
        ),
        (
            "  phases:\n    - {name: b, length: 9 steps, learning_rate: constant, sequences_per_step: 2561}\n",
            "schedule.phases.0.sequences_per_step",
            "divide the global batch",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_key(schedule: str, key: str, what: str, tmp_path: Path) -> None:
    if "2561" in schedule:
        file = seeded(tmp_path, (LENGTH, ""), (WARMUP, ""), (OLDER, schedule))
        ((found_key, found),) = [
            (str(error.where).rpartition(": ")[2], error.what) for error in file.refusals(world_size=64)
        ]
    else:
        ((found_key, found),) = _refused(tmp_path, schedule)
    assert found_key == key
    assert what in found


def test_a_corpus_that_no_phase_reads_is_refused(tmp_path: Path) -> None:
    every = "weights: {deepseekmath_corpus: 1.0}}\n"
    schedule = "  phases:\n    - {name: b, length: 9 steps, learning_rate: constant, " + every
    refusals = _refused(tmp_path, schedule)
    assert [key for key, _ in refusals] == [f"data.corpora.{index}.weight" for index in (1, 2, 3, 4)]
    assert {what for _, what in refusals} == {"a corpus is never read"}


def test_a_corpus_of_one_phase_has_weight_0_elsewhere(tmp_path: Path) -> None:
    schedule = "  phases:\n" + STABLE
    schedule += "    - {name: b, length: 9 steps, learning_rate: constant, weights: {arxiv: 1.0}}\n"
    file = seeded(
        tmp_path,
        *((LENGTH, ""), (WARMUP, ""), (OLDER, schedule), ("name: arxiv, weight: 10.0", "name: arxiv, weight: 0.0")),
    )
    stable, second = phases(load(file.path))
    assert "arxiv" not in stable.weights
    assert dict(second.weights) == {"arxiv": 1.0}
    assert total_steps(load(file.path)) == stable.steps + 9
