"""Stand-ins for python, torchrun, srun, scontrol and nvidia-smi, and a launcher that runs against them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

# Every stand-in writes its name and its arguments into calls.jsonl, and behaves as the STUB_* variables say.
STUB = """#!{python} -IS
import json, os, signal, subprocess, sys, time
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
def record(**call):
    with open(os.environ["STUB_CALLS"], "a") as calls:
        calls.write(json.dumps(dict(program=name, **call)) + "\\n")
def write_status(text):
    folder = os.environ["STUB_RUN_DIRECTORY"]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "STATUS.json"), "w") as status:
        status.write(text)
record(arguments=arguments, environment=dict(os.environ))
"""
PYTHON = """
print("the run file is valid")
print(os.environ["STUB_RUN_DIRECTORY"])
sys.exit(int(os.environ.get("STUB_CHECK_EXIT", 0)))
"""
TORCHRUN = """
if "STUB_WAIT" in os.environ:
    def stop(number, frame):
        record(signal=signal.Signals(number).name)
        time.sleep(0.3)  # the save, during which a second signal may come
        if os.environ["STUB_WAIT"] == "training":
            write_status('{"state": "stopped", "exit_code": 75}')
        sys.exit(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, stop)
    record(ready=True)
    time.sleep(60)
if "STUB_STATUS" in os.environ:
    write_status(os.environ["STUB_STATUS"])
sys.exit(1)  # as torchrun does, whatever its workers exited with
"""
SRUN = """
first = next(i for i, argument in enumerate(arguments) if not argument.startswith("-"))
task = subprocess.Popen(arguments[first:], env=dict(os.environ, SLURM_NODEID="1"))
def kill_the_step(number, frame):  # as srun does on SIGTERM
    task.kill()
    sys.exit(143)
signal.signal(signal.SIGTERM, kill_the_step)
signal.signal(signal.SIGUSR1, lambda number, frame: task.send_signal(number))
sys.exit(task.wait())
"""
SCONTROL = 'print("n7\\nn8")\n'
NVIDIA_SMI = 'print("GPU 0: H100 (UUID: a)\\nGPU 1: H100 (UUID: b)\\nGPU 2: H100 (UUID: c)")\n'


@dataclass
class Launch:
    """A launcher started in a scratch folder, and what the stand-ins saw of it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def run_directory(self) -> Path:
        return Path(self.environment["STUB_RUN_DIRECTORY"])

    def add_program(self, name: str, body: str) -> None:
        program = self.folder / "bin" / name
        program.write_text(STUB.format(python=sys.executable) + body, encoding="utf-8")
        program.chmod(0o755)

    def start(self, script: str | Path, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(LAUNCH / script), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a terminal gives each command
            # A shell cannot trap what is ignored when it starts, and a test run in the background ignores SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(script, *arguments)
        output, errors = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def stop(self, process: subprocess.Popen[str], *signals: signal.Signals) -> int:
        """Send the signals once the stand-in for torchrun waits for them, and return the launcher's exit code."""
        wait_until(lambda: any("ready" in call for call in self.calls("torchrun")))
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)  # two signals at once are one to a process
        return process.wait(timeout=30)  # not `communicate`, which would wait for the stand-in too

    def press_ctrl_c(self, process: subprocess.Popen[str]) -> int:
        """As `stop`, in the way of a terminal, which signals the whole process group."""
        wait_until(lambda: any("ready" in call for call in self.calls("torchrun")))
        os.killpg(process.pid, signal.SIGINT)
        return process.wait(timeout=30)  # not `communicate`, which would wait for the stand-in too

    def calls(self, program: str) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["program"] == program]

    def arguments(self, program: str) -> list[list[str]]:
        return [call["arguments"] for call in self.calls(program) if "arguments" in call]

    def signals(self, program: str) -> list[str]:
        return [call["signal"] for call in self.calls(program) if "signal" in call]


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)
