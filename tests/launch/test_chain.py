"""launch/chain.sh against a stand-in for sbatch, and for recipes the real `dsmath recipe`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.stand_ins import LAUNCH, Launch
from tests.recipe.toy import Toy

# Numbers jobs from 101; STUB_FULL_AFTER jobs the queue is full.
SBATCH = """
number = sum(json.loads(line)["program"] == "sbatch" for line in open(os.environ["STUB_CALLS"]))
if number > int(os.environ.get("STUB_FULL_AFTER", 99)):
    sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
print(f"{100 + number};cluster" if number % 2 else 100 + number)
"""
AFTER = "--kill-on-invalid-dep=yes"
SLURM = str(LAUNCH / "slurm.sbatch")


@pytest.fixture
def chain(launch: Launch) -> Launch:
    launch.add_program("sbatch", SBATCH)
    for name in ("first.yaml", "second.yaml", "third.yaml"):
        (launch.folder / name).write_text("output: runs/one\n")
    return launch


@pytest.fixture
def toy(chain: Launch, inputs: Path, tmp_path: Path) -> Toy:
    """A recipe beside the stand-ins, with the real python."""
    (chain.folder / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    chain.environment["PYTHONPATH"] = str(LAUNCH.parent)
    (tmp_path / "toy").mkdir()
    return Toy(inputs, tmp_path / "toy")


def test_runs_follow_one_another_and_options_go_to_every_job(chain: Launch) -> None:
    done = chain.run("chain.sh", "first.yaml", "second.yaml", "third.yaml", "--", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    common = ["--parsable", "--nodes", "2"]
    assert chain.arguments("sbatch") == [
        [*common, "--job-name=run_1", SLURM, "first.yaml"],
        [*common, "--job-name=run_2", "--dependency=afterok:101", AFTER, SLURM, "second.yaml"],
        [*common, "--job-name=run_3", "--dependency=afterok:102", AFTER, SLURM, "third.yaml"],
    ]
    assert done.stdout.splitlines() == ["run_1: job 101", "run_2: job 102", "run_3: job 103"]


def test_every_run_file_is_checked_before_the_first_job(chain: Launch) -> None:
    chain.run("chain.sh", "first.yaml", "second.yaml")
    checks = [["-m", "megatron_dsmath", "train", name, "--check"] for name in ("first.yaml", "second.yaml")]
    assert chain.arguments("python") == checks
    chain.environment["STUB_CHECK_EXIT"] = "78"
    (chain.folder / "calls.jsonl").unlink()
    assert chain.run("chain.sh", "first.yaml", "second.yaml").returncode == 78
    assert chain.arguments("sbatch") == []


def test_the_stages_of_a_recipe_wait_for_those_whose_output_they_read(chain: Launch, toy: Toy) -> None:
    toy.stages[3]["sbatch"] = ["--nodes=1", "--comment=a b"]
    done = chain.run("chain.sh", str(toy.write()), "--", "--time=1:00:00")
    assert done.returncode == 0, done.stderr
    jobs = chain.arguments("sbatch")
    assert [job[:2] for job in jobs] == [["--parsable", "--time=1:00:00"]] * 6
    dependencies = {job[2]: [word for word in job if word.startswith("--dependency")] for job in jobs}
    assert dependencies == {
        "--job-name=base": [],
        "--job-name=base_model": ["--dependency=afterok:101"],
        "--job-name=set": [],
        "--job-name=tuned": ["--dependency=afterok:102:103"],
        "--job-name=tuned_model": ["--dependency=afterok:104"],
        "--job-name=scores": ["--dependency=afterok:105"],
    }
    assert jobs[0][3:] == [SLURM, f"{toy.folder}/base.yaml"]
    run = [SLURM, f"{toy.folder}/tuned.yaml", "--", "--set", f'model.initial_weights="{toy.folder}/base_model"']
    run += ["--set", f'data.tokenizer="{toy.folder}/tokenizer"', "--set"]
    assert jobs[3][5:] == ["--nodes=1", "--comment=a b", *run, f'data.conversations.prefix="{toy.folder}/set"']
    wrapped = jobs[1][-1].removeprefix("--wrap=")
    export = ["export-hf", f"{toy.folder}/base", "--out", f"{toy.folder}/base_model", "--no-gate"]
    assert shlex.split(wrapped) == ["exec", "python", "-m", "megatron_dsmath", *export]


def test_a_stage_that_is_done_is_not_submitted_and_not_waited_for(chain: Launch, toy: Toy) -> None:
    from tests.data.sft.sets import small_set
    from tests.support.conversations import LENGTH

    small_set(toy.folder, sequence_length=LENGTH)  # with its own copy of the tokenizer
    done = chain.run("chain.sh", str(toy.path))
    assert done.returncode == 0, done.stderr
    jobs = {job[1]: job for job in chain.arguments("sbatch")}
    assert "--job-name=set" not in jobs
    assert "--dependency=afterok:102" in jobs["--job-name=tuned"]
    assert "set: done" in done.stderr


def test_a_recipe_that_cannot_run_submits_nothing(chain: Launch, toy: Toy) -> None:
    (toy.folder / "problems.jsonl").unlink()
    refused = chain.run("chain.sh", str(toy.path))
    assert refused.returncode == 78
    assert f"missing: {toy.folder}/problems.jsonl" in refused.stderr
    toy.runs["tuned"]["seed"] = "seven"
    refused = chain.run("chain.sh", str(toy.write()))
    assert refused.returncode == 78
    assert "tuned.yaml" in refused.stderr
    assert chain.arguments("sbatch") == []


def test_a_full_queue_names_the_jobs_that_are_submitted_and_how_to_cancel_them(chain: Launch) -> None:
    chain.environment["STUB_FULL_AFTER"] = "2"
    failed = chain.run("chain.sh", "first.yaml", "second.yaml", "third.yaml")
    assert failed.returncode == 70
    assert "QOSMaxSubmitJobPerUserLimit" in failed.stderr
    assert "run_1: job 101 is submitted\nrun_2: job 102 is submitted\n" in failed.stderr
    assert "scancel 101 102\n" in failed.stderr


def test_a_dry_run_submits_nothing_and_prints_what_a_shell_runs_as_the_same_commands(chain: Launch, toy: Toy) -> None:
    toy.section("base")["set"] = ["tracking.wandb_project=$(touch pwned) 'a'"]
    toy.stages = [stage for stage in toy.stages if stage["name"] in ("base", "set")]
    toy.section("set")["out"] = f"{toy.folder}/$(touch pwned) 'set'"
    dry = chain.run("chain.sh", str(toy.write()), "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert chain.arguments("sbatch") == []
    subprocess.run(["bash", "-c", dry.stdout], cwd=chain.folder, env=chain.environment, check=True)
    printed = chain.arguments("sbatch")
    chain.run("chain.sh", str(toy.path))
    assert chain.arguments("sbatch")[2:] == printed
    wrapped = printed[1][-1].removeprefix("--wrap=")
    assert f"{toy.folder}/$(touch pwned) 'set'" in shlex.split(wrapped)
    assert not (chain.folder / "pwned").exists()


@pytest.mark.parametrize("arguments", [[], ["--fast"], ["absent.yaml", "--", "--nodes=2"]])
def test_an_unclear_command_line_submits_nothing(chain: Launch, arguments: list[str]) -> None:
    chain.environment["STUB_CHECK_EXIT"] = "78"
    assert chain.run("chain.sh", *arguments).returncode == 78
    assert chain.arguments("sbatch") == []


def test_help_shows_an_example(chain: Launch) -> None:
    shown = chain.run("chain.sh", "--help")
    assert shown.returncode == 0
    assert "launch/chain.sh configs/recipes/deepseekmath_7b.yaml" in shown.stdout
