"""The run files of the repository; the figures of the paper's run are those of arXiv 2402.03300."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_dsmath.config import dump, load
from megatron_dsmath.config.phases import phase_at, segments, total_steps, total_tokens
from tests.support.seeded import PAPER_RUN, RUN_FILES

CONFIGS = PAPER_RUN.parents[1]


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_every_run_file_loads_and_names_its_schema_for_editors(path: Path) -> None:
    assert load(path)
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    comment, _, schema = first_line.partition("$schema=")
    assert comment == "# yaml-language-server: "
    assert (path.parent / schema).resolve() == CONFIGS / "run.schema.json"


@pytest.mark.parametrize("path", sorted((CONFIGS / "pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_pretraining_run_has_at_most_80_keys(path: Path) -> None:
    assert len(_leaves(yaml.safe_load(dump(load(path))))) <= 80


def _leaves(tree: Any) -> list[Any]:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return [tree] if not children else [leaf for child in children for leaf in _leaves(child)]


def test_the_paper_run_has_the_paper_s_hyperparameters() -> None:
    run = load(PAPER_RUN)
    assert [corpus.weight for corpus in run.data.corpora] == [56, 4, 10, 20, 10]  # section 2.3, percent
    optimizer = run.optimizer  # section 2.2.1
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.95, 0.1)
    schedule = run.schedule
    assert (schedule.peak_learning_rate, schedule.warmup_steps) == (4.2e-4, 2000)
    assert [(drop.after, drop.factor) for drop in schedule.drops] == [(0.8, 0.316), (0.9, 0.1)]
    assert run.data.sequence_length == 4096  # "4K"


def test_the_paper_run_counts_its_tokens_as_in_the_decision_record() -> None:
    run = load(PAPER_RUN)
    tokens_per_step = phase_at(run, 0).tokens_per_step
    assert tokens_per_step == 2560 * 4096 == 10_485_760
    assert total_steps(run) == 47_684
    assert 47_683 * tokens_per_step < 500_000_000_000 <= 47_684 * tokens_per_step == total_tokens(run)
    assert [segment.first_step for segment in segments(run)] == [0, 2_000, 38_147, 42_915]


def test_the_paper_run_has_the_shape_of_the_released_model() -> None:
    model = load(PAPER_RUN).model  # config.json of deepseek-math-7b-base
    shape = (model.layers, model.hidden_size, model.attention_heads, model.key_value_heads, model.ffn_hidden_size)
    assert shape == (30, 4096, 32, 32, 11008)
    assert (model.vocabulary_size, model.max_position_embeddings) == (102_400, 4096)
    assert (model.norm_epsilon, model.rope_theta) == (1e-6, 10_000)
