"""launch/slurm.sbatch against stand-ins for the programs it starts; the one for srun treats signals as SLURM's does."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess

import pytest

from tests.launch.stand_ins import LAUNCH, Launch

# SRUN's stand-in calls itself node 1 of the job; 24321 is 20000 + 54321 mod 10000, by hand.
ON_NODE_1 = [
    *("--log-dir", "{run_directory}/logs/54321/node_1", "--redirects", "3", "--tee", "0:3"),
    *("--nnodes", "2", "--nproc-per-node", "8", "--max-restarts", "0"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "n7:24321", "--rdzv-id", "54321"),
    *("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout", "270"),
    *("-m", "megatron_dsmath", "train", "run.yaml", "--set", "seed=7"),
]


def test_each_node_starts_torchrun_with_the_first_as_rendezvous_and_its_own_log_folder(job: Launch) -> None:
    job.run("slurm.sbatch", "run.yaml", "--nproc", "8", "--", "--set", "seed=7")
    expected = [argument.format(run_directory=job.run_directory) for argument in ON_NODE_1]
    assert job.arguments("torchrun") == [expected]


def test_one_failed_node_ends_the_step_and_processes_are_not_bound_to_one_core(job: Launch) -> None:
    job.run("slurm.sbatch", "run.yaml")
    _, step = job.arguments("srun")
    assert step[:3] == ["--kill-on-bad-exit=1", "--cpu-bind=none", "bash"]


def test_the_run_file_is_checked_once_for_the_processes_of_all_nodes(job: Launch) -> None:
    job.run("slurm.sbatch", "run.yaml", "--nproc", "8")
    check = ["-m", "megatron_dsmath", "train", "run.yaml", "--nproc", "16", "--check"]
    assert job.arguments("python") == [check]
    assert job.arguments("srun")[0][2:] == ["--nodes=1", "--ntasks=1", "python", *check]


def test_a_refused_run_file_ends_the_job_with_78(job: Launch) -> None:
    job.environment["STUB_CHECK_EXIT"] = "78"
    assert job.run("slurm.sbatch", "run.yaml").returncode == 78
    assert job.calls("torchrun") == []


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 70), ("stopped", 75), ("refused", 78)])
def test_the_job_ends_with_the_runs_own_exit_code(job: Launch, state: str, code: int) -> None:
    job.environment["STUB_STATUS"] = f'{{"state": "{state}", "exit_code": {code}}}'
    assert job.run("slurm.sbatch", "run.yaml").returncode == code


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_batch_script_stops_the_run_and_does_not_kill_the_step(
    job: Launch, number: signal.Signals
) -> None:
    job.environment["STUB_WAIT"] = "training"
    assert job.stop(job.start("slurm.sbatch", "run.yaml"), number) == 75
    assert job.signals("torchrun") == ["SIGUSR1"]


def test_check_and_run_are_in_the_same_container(job: Launch) -> None:
    job.environment |= {"CONTAINER_IMAGE": "images/$(touch pwned) a.sqsh", "CONTAINER_MOUNTS": "/data:/data,/a b:/a b"}
    assert job.run("slurm.sbatch", "run.yaml").returncode == 0
    for step in job.arguments("srun"):
        assert step[2:5] == [
            "--container-image=images/$(touch pwned) a.sqsh",
            "--container-mounts=/data:/data,/a b:/a b",
            f"--container-workdir={job.folder}",
        ]
    assert not (job.folder / "pwned").exists()


@pytest.mark.parametrize("name", ["with space.yaml", "$(touch pwned).yaml", "a\nb.yaml", "'\"*?.yaml", "-n"])
def test_no_name_is_read_as_shell(job: Launch, name: str) -> None:
    job.environment["STUB_RUN_DIRECTORY"] = str(job.folder / "$(touch pwned) 'runs'")
    assert job.run("slurm.sbatch", f"./{name}", "--", "--set", f"output={name}").returncode == 0
    (arguments,) = job.arguments("torchrun")
    assert arguments[-4:] == ["train", f"./{name}", "--set", f"output={name}"]
    assert arguments[1] == f"{job.run_directory}/logs/54321/node_1"
    assert not (job.folder / "pwned").exists()


def test_the_copy_in_slurms_spool_finds_its_neighbours_where_it_was_submitted(job: Launch) -> None:
    spool = job.folder / "slurm_script"
    shutil.copy(LAUNCH / "slurm.sbatch", spool)
    assert job.run(spool, "run.yaml").returncode == 0


def test_submitting_from_elsewhere_is_refused_with_the_remedy(job: Launch) -> None:
    job.environment["SLURM_SUBMIT_DIR"] = str(job.folder)
    refused = job.run("slurm.sbatch", "run.yaml")
    assert refused.returncode == 78
    assert "DSMATH_LAUNCH" in refused.stderr


def test_outside_a_job_it_is_refused_and_a_dry_run_is_not(launch: Launch) -> None:
    refused = launch.run("slurm.sbatch", "run.yaml")
    assert refused.returncode == 78
    assert "sbatch --nodes N" in refused.stderr
    shown = launch.run("slurm.sbatch", "run.yaml", "--dry-run")
    assert shown.returncode == 0
    assert "srun --kill-on-bad-exit=1" in shown.stdout
    assert launch.calls("torchrun") == []


def test_a_dry_run_in_a_job_prints_what_a_shell_runs_as_the_same_command(job: Launch) -> None:
    job.environment["DSMATH_DRY_RUN"] = "1"
    dry = job.run("slurm.sbatch", "run.yaml", "--", "--set", "output=a b")
    del job.environment["DSMATH_DRY_RUN"]
    assert job.calls("torchrun") == []
    subprocess.run(["bash", "-c", dry.stdout], cwd=job.folder, env=job.environment, check=False)
    job.run("slurm.sbatch", "run.yaml", "--", "--set", "output=a b")
    printed, run = job.arguments("torchrun")
    assert printed == run


def test_slurm_reads_one_task_a_node_a_warning_of_300_seconds_and_a_log_that_is_continued() -> None:
    script = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    before_the_first_command = script[: script.index("\nset -")]  # sbatch reads no further
    options = re.findall(r"^#SBATCH (\S+)$", before_the_first_command, flags=re.MULTILINE)
    assert options == ["--job-name=dsmath", "--ntasks-per-node=1", "--open-mode=append", "--signal=B:USR1@300"]
