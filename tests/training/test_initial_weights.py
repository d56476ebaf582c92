"""Where a run starts from: a seed, a Hugging Face folder, or a checkpoint of any layout."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora import small_run, write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import LAYOUTS, Row, dsmath, numbers_of, rows_of, train_run, train_until_killed

SEED_OF_THE_SMALL_RUN = 7


def write_folder_drawn_from_the_seed(run: Any, folder: Path) -> None:
    """A Hugging Face folder, by the safetensors library itself, with the weights a run would draw."""
    from safetensors.torch import save_file

    from megatron_dsmath.checkpoint.huggingface_config import config_from
    from megatron_dsmath.model.decoder import WeightsFromSeed
    from megatron_dsmath.model.parameters import parameters

    source = WeightsFromSeed(run.model, SEED_OF_THE_SMALL_RUN)
    tensors = {
        name: source.read(name, shape, tuple(slice(None) for _ in shape)).contiguous()
        for parameter in parameters(run.model)
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_from(run.model, "fp32", {})), encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "hf"
    run_ranks(1, write_folder_drawn_from_the_seed, small_run(inputs, folder), folder)
    return folder


@pytest.mark.parametrize("layout", ["one process", "tensor 2 with sequence"])
def test_a_run_from_a_folder_is_the_run_from_the_seed_that_drew_its_weights(
    layout: str, inputs: Path, drawn: Path, one_process: list[Row], tmp_path: Path
) -> None:
    ranks, overrides = LAYOUTS[layout]
    run = small_run(inputs, tmp_path, model__initial_weights=str(drawn), **overrides)
    run_ranks(ranks, train_run, run)
    if layout == "one process":
        assert numbers_of(rows_of(tmp_path)) == numbers_of(one_process)
    ours, alone = ([row["loss"] for row in rows] for rows in (rows_of(tmp_path), one_process))
    assert ours == pytest.approx(alone, rel=1e-5)  # fp32 sums in another order


@pytest.fixture(scope="module")
def trained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tensor-parallel processes, validated after its last step."""
    output = tmp_path_factory.mktemp("trained")
    ranks, overrides = LAYOUTS["tensor 2 with sequence"]
    run_ranks(ranks, train_run, small_run(inputs, output, schedule__steps=2, **overrides))
    return output


@pytest.mark.parametrize("layout", ["one process", "pipeline 2"])
def test_a_run_from_another_run_of_another_layout_begins_where_that_ended(
    layout: str, inputs: Path, trained: Path, tmp_path: Path
) -> None:
    ranks, overrides = LAYOUTS[layout]
    stand_still = {"schedule__steps": 1, "schedule__warmup_steps": 1, "schedule__peak_learning_rate": 1e-30}
    run = small_run(inputs, tmp_path, model__initial_weights=str(trained), **stand_still, **overrides)
    run_ranks(ranks, train_run, run)
    ours, theirs = rows_of(tmp_path)[-1]["validation_loss"], rows_of(trained)[-1]["validation_loss"]
    assert ours == pytest.approx(theirs, rel=1e-5)  # fp32 sums in another order
    assert rows_of(tmp_path)[0]["step"] == 1  # its steps and data start at the beginning
    assert rows_of(tmp_path)[0]["consumed_samples"] == 8


def test_a_run_that_continues_needs_its_initial_weights_no_more(
    inputs: Path, drawn: Path, one_process: list[Row], tmp_path: Path
) -> None:
    folder = shutil.copytree(drawn, tmp_path / "hf")
    run = small_run(inputs, tmp_path / "run", model__initial_weights=str(folder))
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(1, train_until_killed, run, 4)  # saved after step 3
    shutil.rmtree(folder)
    run_ranks(1, train_run, run)
    assert numbers_of(rows_of(tmp_path / "run")) == numbers_of(one_process)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "weights of another shape": (
        {"intermediate_size": 96},
        "error[conversion]: a tensor does not have the shape of the model",
    ),
    "weights of another model": ({}, "error[checkpoint]: the weights belong to another model than the run's"),
}


@pytest.mark.parametrize("mistake", REFUSED)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_that_does_not_fit_is_refused_in_one_error_and_nothing_is_trained(
    ranks: int, mistake: str, inputs: Path, drawn: Path, tmp_path: Path
) -> None:
    edits, headline = REFUSED[mistake]
    folder = shutil.copytree(drawn, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | edits), encoding="utf-8")
    run_file = write_run_file(
        inputs,
        tmp_path / "run",
        tmp_path / "run.yaml",
        model__initial_weights=str(folder),
        model__ffn_hidden_size=96,
    )
    endings = run_ranks(ranks, dsmath, ["train", str(run_file)])
    said = "".join(ending.err for ending in endings)
    assert len(re.findall(r"^error\[", said, re.MULTILINE)) == 1
    assert headline in said
    assert "Traceback" not in said
    assert [ending.code for ending in endings] == [78] * ranks
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {"STATUS.json", "LOCK", "attempts.jsonl"}
