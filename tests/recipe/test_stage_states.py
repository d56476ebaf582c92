"""The state of each stage, from files as its command leaves them. Times are set, so that no test waits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_dsmath import cli
from megatron_dsmath.checkpoint.manifest import MANIFEST, Manifest
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.evaluation.protocol import load_protocol
from megatron_dsmath.recipe.recipe_mistakes import load_stages
from megatron_dsmath.recipe.stage_states import stage_states
from tests.data.sft.sets import small_set
from tests.recipe.toy import NAMES, Toy
from tests.support.conversations import LENGTH
from tests.support.runs import run_config

TIMES = {name: 1_700_000_000.0 + 1000 * number for number, name in enumerate(NAMES)}


@pytest.fixture
def toy(inputs: Path, tmp_path: Path) -> Toy:
    return Toy(inputs, tmp_path)


def states_of(toy: Toy) -> dict[str, str]:
    return {name: str(state) for name, state in stage_states(load_stages(toy.write())).items()}


def leave_run(toy: Toy, name: str, step: int = 6, state: str = "done", written: float = 0.0) -> None:
    """The files of a run that began 100 s before it saved the checkpoint of `step`."""
    root, checkpoint = toy.folder / name, toy.folder / name / "checkpoints" / f"step_{step}"
    checkpoint.mkdir(parents=True)
    (root / "logs").mkdir(exist_ok=True)
    written = written or TIMES[name]
    (root / "logs/starts.jsonl").write_text(json.dumps({"time_unix": written - 100}) + "\n")
    (root / "STATUS.json").write_text(json.dumps({"state": state}))
    manifest = Manifest(
        kind="training",
        step=step,
        next_sample=0,
        consumed_tokens=0,
        model=run_config().model,
        layout={},
        precision="fp32",
        tokenizer_fingerprint=None,
        state={},
    )
    (checkpoint / MANIFEST).write_text(manifest.to_json())
    os.utime(checkpoint / MANIFEST, (written, written))


def leave_file(path: Path, text: str, written: float) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (written, written))


def leave_scores(toy: Toy, **changes: object) -> None:
    protocol = load_protocol("instruct-cot", toy.folder)
    facts = {"protocol_sha256": protocol.sha256, "benchmarks": {"problems": {}}, "limit": None, "samples": 1}
    facts |= {"backend": "own", "batch_problems": 1} | changes
    for name in ("evaluation.json", "results.json", "report.html"):
        leave_file(toy.folder / "scores" / name, json.dumps(facts), TIMES["scores"])


def leave_everything(toy: Toy) -> None:
    leave_run(toy, "base")
    leave_run(toy, "tuned")
    for name in ("base_model", "tuned_model"):
        # The toy's shape, as `export-hf` writes it.
        config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 88}
        config |= {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 320}
        leave_file(toy.folder / name / "config.json", json.dumps(config), TIMES[name])
    small_set(toy.folder, sequence_length=LENGTH)
    os.utime(toy.folder / "set.idx", (TIMES["set"], TIMES["set"]))
    leave_scores(toy)


def test_nothing_is_done_and_nothing_is_missing_at_first(toy: Toy) -> None:
    assert states_of(toy) == dict.fromkeys(NAMES, "to do")


def test_what_commands_by_hand_leave_counts_as_done(toy: Toy) -> None:
    leave_everything(toy)
    assert states_of(toy) == dict.fromkeys(NAMES, "done")


@pytest.mark.parametrize(("step", "state"), [(3, "stopped"), (6, "running"), (3, "done")])
def test_a_run_is_done_at_its_last_step_and_with_its_status(toy: Toy, step: int, state: str) -> None:
    leave_run(toy, "base", step, state)
    assert states_of(toy)["base"] == f"at step {step} of 6"


@pytest.mark.parametrize("ending", ["bin", "idx", "json", "targets", "labels"])
def test_a_set_is_done_with_all_its_files(toy: Toy, ending: str) -> None:
    small_set(toy.folder, sequence_length=LENGTH)
    assert states_of(toy)["set"] == "done"
    (toy.folder / f"set.{ending}").unlink()
    assert states_of(toy)["set"] == "to do"


def test_scores_without_a_report_were_begun(toy: Toy) -> None:
    leave_scores(toy)
    (toy.folder / "scores/report.html").unlink()
    leave_file(toy.folder / "scores/outputs/problems.jsonl", "{}\n{}\n{", TIMES["scores"])
    toy.stages = toy.stages[-1:]
    toy.section("scores")["model"] = str(toy.folder)
    assert states_of(toy) == {"scores": "after 2 answers"}


def test_what_the_user_must_bring_is_missing_by_its_path(toy: Toy) -> None:
    (toy.folder / "data/code.idx").unlink()
    (toy.folder / "problems.jsonl").unlink()
    (toy.folder / "rows.jsonl").rename(toy.folder / "elsewhere.jsonl")
    assert {name: state for name, state in states_of(toy).items() if state != "to do"} == {
        "base": f"missing: {toy.folder}/data/code.idx",
        "set": f"missing: {toy.folder}/rows.jsonl",
        "scores": f"missing: {toy.folder}/problems.jsonl",
    }
    toy.source["paths"] = []
    assert states_of(toy)["set"] == f"missing: {toy.folder}/sources.yaml: sources[].paths"


def test_a_stage_made_before_a_later_output_of_its_source_is_out_of_date(toy: Toy) -> None:
    leave_everything(toy)
    leave_run(toy, "base", step=8, written=TIMES["base_model"] + 6)
    toy.runs["base"]["schedule"]["steps"] = 8
    states = states_of(toy)
    assert states["base"] == "done"
    assert states["base_model"] == "out of date: it was made before the present output of base"
    assert states["tuned"].startswith("out of date: it was made before base_model, which is not done")
    assert states["set"] == "done"


def test_a_run_that_began_before_its_weights_were_written_is_out_of_date(toy: Toy) -> None:
    leave_everything(toy)
    config, late = toy.folder / "base_model/config.json", TIMES["tuned"] - 50
    os.utime(config, (late, late))  # after the run began, before its last checkpoint
    assert states_of(toy)["tuned"] == "out of date: it was made before the present output of base_model"


def test_clocks_that_differ_by_seconds_do_not_matter(toy: Toy) -> None:
    leave_everything(toy)
    late = TIMES["base_model"] + 4
    os.utime(toy.folder / "base/checkpoints/step_6" / MANIFEST, (late, late))
    assert states_of(toy)["base_model"] == "done"


def test_stages_made_while_their_source_is_not_done_are_out_of_date(toy: Toy) -> None:
    leave_everything(toy)
    toy.runs["base"]["schedule"]["steps"] = 12
    assert states_of(toy)["base_model"] == "out of date: it was made before base, which is not done (at step 6 of 12)"


def test_other_settings_than_those_of_the_recipe_are_out_of_date(toy: Toy) -> None:
    leave_everything(toy)
    leave_scores(toy, limit=2)
    toy.section("set")["too_long"] = "truncate"
    toy.section("set")["sequence_length"] = 128
    states = states_of(toy)
    assert states["scores"] == "out of date: it was made with limit 2, the recipe has None"
    assert states["set"] == f"out of date: it was made with sequence_length {LENGTH}, the recipe has 128"
    assert Options().bad_lines == "fail"  # the default of the recipe's section too


def test_the_plan_is_a_table_and_json(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    leave_run(toy, "base", 3, "stopped")
    assert cli.main(["recipe", str(toy.path), "--plan", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in rows] == list(NAMES)
    assert (rows[0]["state"], rows[0]["status"]) == ("at step 3 of 6", "begun")
    assert (rows[0]["steps"], rows[0]["tokens"]) == (6, 6 * 8 * 32)  # 8 sequences of 32 tokens
    assert (rows[3]["steps"], rows[3]["tokens"]) == (6, 6 * 4 * 256)
    assert rows[1]["arguments"] == ["export-hf", f"{toy.folder}/base", "--out", f"{toy.folder}/base_model", "--no-gate"]
    assert cli.main(["recipe", str(toy.path), "--plan"]) == 0
    assert "at step 3 of 6" in capsys.readouterr().out
    assert cli.main(["recipe", str(toy.path), "--json"]) == 78
