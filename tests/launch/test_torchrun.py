"""launch/torchrun.sh against stand-ins for the programs it starts."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.stand_ins import NVIDIA_SMI, Launch

HOSTILE_NAMES = ["with space.yaml", "$(touch pwned).yaml", "`touch pwned`;.yaml", "a\nb.yaml", "'\"*?.yaml", "-n"]
STATUSES = [("done", 0), ("failed", 70), ("stopped", 75), ("refused", 78)]


def test_torchrun_is_started_once_with_every_flag_that_saving_on_a_signal_needs(launch: Launch) -> None:
    launch.run("torchrun.sh", "run.yaml", "--nproc", "4", "--", "--set", "seed=7")
    assert launch.arguments("torchrun") == [
        [
            *("--standalone", "--nproc-per-node", "4", "--max-restarts", "0"),
            *("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout", "270"),
            *("-m", "megatron_dsmath", "train", "run.yaml", "--set", "seed=7"),
        ]
    ]


def test_the_run_file_is_checked_for_this_number_of_processes_first(launch: Launch) -> None:
    launch.run("torchrun.sh", "run.yaml", "--nproc", "4", "--", "--set", "seed=7")
    check = ["-m", "megatron_dsmath", "train", "run.yaml", "--set", "seed=7", "--nproc", "4", "--check"]
    assert launch.arguments("python") == [check]


def test_a_refused_run_file_ends_with_78_and_starts_nothing(launch: Launch) -> None:
    launch.environment["STUB_CHECK_EXIT"] = "78"
    assert launch.run("torchrun.sh", "run.yaml").returncode == 78
    assert launch.calls("torchrun") == []


def test_a_check_that_breaks_is_an_internal_error(launch: Launch) -> None:
    launch.environment["STUB_CHECK_EXIT"] = "1"
    assert launch.run("torchrun.sh", "run.yaml").returncode == 70
    assert launch.calls("torchrun") == []


@pytest.mark.parametrize(("state", "code"), STATUSES)
def test_the_exit_code_is_the_one_in_status_although_torchrun_exits_1(launch: Launch, state: str, code: int) -> None:
    status = {"state": state, "exit_code": code, "message": 'said "exit_code": 3 and "state": "running"'}
    for text in (json.dumps(status), json.dumps(status, indent=2), json.dumps(status, separators=(",", ":"))):
        launch.environment["STUB_STATUS"] = text
        assert launch.run("torchrun.sh", "run.yaml").returncode == code


@pytest.mark.parametrize(
    "status",
    [
        '{"state": "running", "exit_code": null}',
        '{"state": "running", "exit_code": 0}',
        '{"state": "done", "exit_code": 3}',
        '{"state": "done", "exit',
        "",
    ],
)
def test_a_run_without_a_final_status_may_be_restarted(launch: Launch, status: str) -> None:
    launch.environment["STUB_STATUS"] = status
    assert launch.run("torchrun.sh", "run.yaml").returncode == 70


def test_an_earlier_runs_status_is_not_taken_for_this_ones(launch: Launch) -> None:
    assert launch.run("torchrun.sh", "run.yaml").returncode == 0
    del launch.environment["STUB_STATUS"]
    assert (launch.run_directory / "STATUS.json").exists()
    assert launch.run("torchrun.sh", "run.yaml").returncode == 70


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_torchrun_once_and_the_launcher_waits_for_the_save(
    launch: Launch, number: signal.Signals
) -> None:
    launch.environment["STUB_WAIT"] = "training"
    assert launch.stop(launch.start("torchrun.sh", "run.yaml"), number) == 75
    assert launch.signals("torchrun") == [number.name]
    assert (launch.run_directory / "STATUS.json").exists()  # the stand-in writes it at the end of its save


def test_ctrl_c_reaches_torchrun_once_although_a_terminal_signals_everyone(launch: Launch) -> None:
    launch.environment["STUB_WAIT"] = "training"
    assert launch.press_ctrl_c(launch.start("torchrun.sh", "run.yaml")) == 75
    assert launch.signals("torchrun") == ["SIGINT"]


def test_a_second_signal_does_not_interrupt_the_save(launch: Launch) -> None:
    launch.environment["STUB_WAIT"] = "training"
    process = launch.start("torchrun.sh", "run.yaml")
    assert launch.stop(process, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT) == 75
    assert launch.signals("torchrun") == ["SIGUSR1"]


def test_a_run_stopped_before_it_wrote_a_status_had_nothing_to_save(launch: Launch) -> None:
    launch.environment["STUB_WAIT"] = "starting"
    assert launch.stop(launch.start("torchrun.sh", "run.yaml"), signal.SIGTERM) == 75


@pytest.mark.fault(
    "S16",
    injected="file names with spaces, quotes, `$()`, newlines",
    where="launch scripts",
    holds="passed on unchanged",
)
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_is_read_as_shell(launch: Launch, name: str) -> None:
    run_file, argument = f"./{name}", f"output={name}"
    launch.environment["STUB_RUN_DIRECTORY"] = str(launch.folder / "$(touch pwned) 'runs'")
    assert launch.run("torchrun.sh", run_file, "--", "--set", argument).returncode == 0
    (arguments,) = launch.arguments("torchrun")
    assert arguments[-4:] == ["train", run_file, "--set", argument]
    assert launch.arguments("python")[0][2:6] == ["train", run_file, "--set", argument]
    assert not (launch.folder / "pwned").exists()


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_dry_run_prints_what_a_shell_runs_as_the_same_command(launch: Launch, name: str) -> None:
    dry = launch.run("torchrun.sh", f"./{name}", "--dry-run", "--", "--set", f"output={name}")
    assert dry.returncode == 0
    assert launch.calls("torchrun") == []
    subprocess.run(["bash", "-c", dry.stdout], cwd=launch.folder, env=launch.environment, check=False)
    launch.run("torchrun.sh", f"./{name}", "--", "--set", f"output={name}")
    printed, run = launch.calls("torchrun")
    assert printed["arguments"] == run["arguments"]
    assert printed["environment"].keys() >= {"OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS"}
    assert printed["environment"] == run["environment"] | {"SHLVL": printed["environment"]["SHLVL"]}


def test_the_environment_variable_asks_for_a_dry_run_too(launch: Launch) -> None:
    launch.environment["DSMATH_DRY_RUN"] = "1"
    assert "torchrun --standalone" in launch.run("torchrun.sh", "run.yaml").stdout
    assert launch.calls("torchrun") == []


def test_a_value_in_the_environment_is_kept(launch: Launch) -> None:
    launch.environment |= {"OMP_NUM_THREADS": "3", "DSMATH_SHUTDOWN_SECONDS": "900"}
    launch.run("torchrun.sh", "run.yaml")
    (call,) = launch.calls("torchrun")
    assert call["environment"]["OMP_NUM_THREADS"] == "3"
    assert call["arguments"][call["arguments"].index("--shutdown-timeout") + 1] == "900"


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, "4"),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7", "DSMATH_NPROC": "1"}, "1"),
    ],
)
def test_there_is_a_process_for_each_visible_gpu_and_two_without(
    launch: Launch, environment: dict[str, str], processes: str
) -> None:
    launch.environment |= environment
    launch.run("torchrun.sh", "run.yaml")
    assert launch.arguments("torchrun")[0][1:3] == ["--nproc-per-node", processes]


def test_without_a_restriction_every_gpu_of_the_node_counts(launch: Launch) -> None:
    launch.add_program("nvidia-smi", NVIDIA_SMI)
    del launch.environment["CUDA_VISIBLE_DEVICES"]
    launch.run("torchrun.sh", "run.yaml")
    assert launch.arguments("torchrun")[0][1:3] == ["--nproc-per-node", "3"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--nproc"], ["--nproc", "two", "run.yaml"], ["--nproc", "0", "run.yaml"], ["--fast"], ["a.yaml", "b.yaml"]],
)
def test_an_unclear_command_line_is_refused_with_the_remedy(launch: Launch, arguments: list[str]) -> None:
    refused = launch.run("torchrun.sh", *arguments)
    assert refused.returncode == 78
    assert "error[usage]" in refused.stderr and "fix:" in refused.stderr
    assert not Path(launch.environment["STUB_CALLS"]).exists()


def test_help_shows_an_example_and_the_exit_codes(launch: Launch) -> None:
    shown = launch.run("torchrun.sh", "--help")
    assert shown.returncode == 0
    assert "--nproc 8" in shown.stdout and "75 stopped" in shown.stdout
