"""Mistakes of a recipe that are found before a process starts, and the shipped recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.errors import DsmathError, Refusals
from megatron_dsmath.recipe.recipe_mistakes import load_stages
from megatron_dsmath.recipe.stage_states import plan_rows
from tests.recipe.toy import NAMES, Toy
from tests.support.seeded import PAPER_RUN

REPOSITORY = PAPER_RUN.parents[2]


@pytest.fixture
def toy(inputs: Path, tmp_path: Path) -> Toy:
    return Toy(inputs, tmp_path)


def errors_of(toy: Toy) -> list[DsmathError]:
    with pytest.raises(DsmathError) as caught:
        load_stages(toy.write())
    return list(caught.value.errors) if isinstance(caught.value, Refusals) else [caught.value]


def error_of(toy: Toy) -> DsmathError:
    (error,) = errors_of(toy)
    return error


def test_a_stage_that_does_not_exist_is_named_with_its_line_and_the_nearest(toy: Toy) -> None:
    toy.section("tuned")["initial_weights"] = "bsae_model"
    error = error_of(toy)
    assert error.what == "there is no such stage"
    assert f"recipe.yaml:{toy.line_of('bsae_model')}: " in str(error.where)
    assert error.fix == "write base_model"


@pytest.mark.parametrize("name", ["tuned_model", "tuned"])
def test_a_later_stage_and_the_stage_itself_are_refused(toy: Toy, name: str) -> None:
    toy.section("tuned")["initial_weights"] = name
    error = error_of(toy)
    assert error.what == "a stage takes something from a later stage, or from itself"
    assert error.found == name


def test_a_stage_must_make_what_is_taken_from_it(toy: Toy) -> None:
    toy.section("tuned")["initial_weights"] = "set"
    assert error_of(toy).found == "set, which is sft build"


def test_the_mistakes_of_every_run_file_are_reported_together(toy: Toy) -> None:
    toy.section("tuned")["tokenizer"] = str(toy.folder / "tokenizer")
    toy.runs["base"]["seed"] = "six"
    toy.runs["tuned"]["seed"] = "seven"
    toy.stages = [stage for stage in toy.stages if stage["name"] in ("base", "tuned")]
    for key in ("initial_weights", "conversations"):
        del toy.section("tuned")[key]
    assert [error.found for error in errors_of(toy)] == ["six", "seven"]


def test_stages_that_need_one_with_a_mistake_add_none(toy: Toy) -> None:
    toy.runs["base"]["seed"] = "six"
    assert error_of(toy).found == "six"


def test_a_missing_run_file_and_a_wrong_override_are_refused(toy: Toy) -> None:
    toy.section("base")["run"] = str(toy.folder / "absent.yaml")
    assert error_of(toy).what == "the run file cannot be read"
    toy.section("base")["run"] = str(toy.folder / "base.yaml")
    toy.section("base")["set"] = ["schedule.stesp=3"]
    assert "--set schedule.stesp" in str(errors_of(toy)[0].where)


@pytest.mark.parametrize("source", ["base", "base_model"])
def test_weights_of_another_shape_are_refused(toy: Toy, source: str) -> None:
    toy.section("tuned")["initial_weights"] = source
    toy.runs["tuned"]["model"]["layers"] = 3
    error = error_of(toy)
    assert error.what == "the weights belong to another model than the run's"
    assert (error.found, error.expected) == ("layers 4", "layers 3")
    assert str(error.where).endswith(f"weights of {source}")


def test_weights_on_the_disk_of_another_shape_are_refused(toy: Toy) -> None:
    model = toy.folder / "downloaded"
    model.mkdir()
    config: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 48}
    config |= {"intermediate_size": 88, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 320}
    (model / "config.json").write_text(json.dumps(config))
    toy.section("base")["initial_weights"] = str(model)
    assert error_of(toy).found == "layers 2"


def test_two_stages_with_one_output_are_refused_however_it_is_written(toy: Toy) -> None:
    toy.section("tuned_model")["out"] = f"{toy.folder}/x/../base_model"
    assert "two stages have the same output" in [error.what for error in errors_of(toy)]


def test_reading_the_output_of_a_later_stage_by_its_path_is_refused(toy: Toy) -> None:
    toy.section("base")["initial_weights"] = str(toy.folder / "tuned_model")
    assert error_of(toy).what == "a stage reads the output of a later stage, or its own"


def test_another_tokenizer_than_that_of_the_set_is_refused(toy: Toy) -> None:
    other = toy.folder / "other"
    other.mkdir()
    for file in (toy.folder / "tokenizer").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    toy.section("tuned")["tokenizer"] = str(other)
    load_stages(toy.write())  # a copy is the same tokenizer
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"].pop()
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.pop(max(vocabulary, key=vocabulary.get))
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    error = error_of(toy)
    assert error.what == "two stages that depend on one another have different tokenizers"
    assert error.fix == "set tokenizer: set in tuned"


def test_unknown_tasks_protocols_and_broken_benchmarks_are_refused(toy: Toy) -> None:
    toy.section("scores")["tasks"] = ["gsm9k"]
    assert error_of(toy).found == "gsm9k"
    toy.section("scores")["tasks"] = ["problems.jsonl"]
    toy.section("scores")["protocol"] = "instruct"
    assert error_of(toy).what == "there is no such protocol"
    toy.section("scores")["protocol"] = "instruct-cot"
    (toy.folder / "problems.jsonl").write_text('{"question": 3}\n')
    assert error_of(toy).what == "the row is not a problem"


def test_the_recipe_of_the_paper_loads_and_plans_its_steps_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    rows = {row["stage"]: row for row in plan_rows(load_stages("configs/recipes/deepseekmath_7b.yaml"))}
    assert (rows["base"]["steps"], rows["base"]["tokens"]) == (47_684, 47_684 * 2560 * 4096)
    assert (rows["instruct"]["steps"], rows["instruct"]["tokens"]) == (500, 500 * 256 * 4096)
    assert rows["instruct"]["depends_on"] == ("base", "conversations")
    assert rows["instruct_tool_scores"]["depends_on"] == ("instruct_model",)
    assert rows["base_scores"]["missing"] == tuple(
        f"data/eval/{name}_test.jsonl" for name in ("gsm8k", "math", "cmath")
    )
    assert "models/deepseek-coder-7b-base-v1.5" in rows["base"]["missing"]


def test_the_stages_of_the_toy_depend_on_what_they_read(toy: Toy) -> None:
    stages = load_stages(toy.path)
    assert tuple(stage.name for stage in stages) == NAMES
    assert {stage.name: stage.depends_on for stage in stages} == {
        "base": (),
        "base_model": ("base",),
        "set": (),
        "tuned": ("base_model", "set"),
        "tuned_model": ("tuned",),
        "scores": ("tuned_model",),
    }
