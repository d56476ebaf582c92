from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_dsmath.errors import SandboxError
from megatron_dsmath.sandbox import confinement
from megatron_dsmath.sandbox.outcome import Limits
from megatron_dsmath.sandbox.pool import Sandbox
from tests.sandbox.hostile import PROGRAMS

pytestmark = pytest.mark.skipif(not confinement.is_supported(), reason="this machine cannot confine a program")


def limits_for(verdicts: set[str]) -> Limits:
    """Short if a timeout is expected; otherwise long enough for a busy machine."""
    return Limits(timeout_seconds=1 if "timeout" in verdicts else 30, memory_mib=256)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    os.environ["DSMATH_TEST_SECRET"] = "xyzzy"
    with Sandbox(workers=1) as sandbox:
        yield sandbox
    del os.environ["DSMATH_TEST_SECRET"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "precious" / "file"
    file.parent.mkdir()
    file.write_text("precious")
    return file


def with_paths(program: str, victim: Path) -> str:
    return program.replace("{victim_folder}", str(victim.parent)).replace("{victim}", str(victim))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_gets_its_verdict_and_the_next_one_runs(name: str, sandbox: Sandbox, victim: Path) -> None:
    program, verdicts = PROGRAMS[name]
    if "libc.syscall" in program and platform.machine() != "x86_64":
        pytest.skip("its system calls are numbered for x86-64")
    before = victim.stat()

    outcome = sandbox.run(with_paths(program, victim), limits=limits_for(verdicts))

    assert outcome.verdict in verdicts, outcome
    assert "xyzzy" not in outcome.stdout + outcome.stderr
    after = victim.stat()
    assert victim.read_text() == "precious"
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, before.st_nlink)
    assert not Path("/tmp/dsmath-was-here").exists()
    assert sandbox.run("print(6 * 7)").stdout == "42\n"


def test_a_program_finds_no_files_or_state_of_an_earlier_one(sandbox: Sandbox) -> None:
    deep = "import os\nfor _ in range(100): os.mkdir('d', 0o000 if _ == 99 else 0o700); _ == 99 or os.chdir('d')"
    assert sandbox.run(deep + "\nimport sys; sys.leftover = 1").verdict == "ok"
    found = sandbox.run("import os, sys\nprint(os.listdir('.'), hasattr(sys, 'leftover'))")
    assert found.stdout == "[] False\n"


def test_a_program_may_compute_import_and_write_its_own_files(sandbox: Sandbox) -> None:
    program = """
from sympy import symbols, solve
import numpy, fractions, itertools, datetime, json
x = symbols("x")
with open("notes.txt", "w") as file:
    file.write(str(solve(x**2 - 2, x)))
print(open("notes.txt").read(), int(numpy.arange(5).sum()), fractions.Fraction(1, 3))
"""
    assert sandbox.run(program).stdout == "[-sqrt(2), sqrt(2)] 10 1/3\n"


def test_random_numbers_are_the_same_each_time(sandbox: Sandbox) -> None:
    program = "import random, numpy\nprint(random.random(), numpy.random.rand(), list({'a', 'b', 'c', 'd'}))"
    first = sandbox.run(program).stdout
    assert first and sandbox.run(program).stdout == first
    with Sandbox(workers=1) as another:
        assert another.run(program).stdout == first


def test_the_traceback_starts_in_the_program(sandbox: Sandbox) -> None:
    outcome = sandbox.run("def half(n):\n    return n / 0\nhalf(1)")
    assert outcome.verdict == "error"
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert outcome.stderr.splitlines()[1].strip() == 'File "program.py", line 3, in <module>'


def test_the_environment_has_none_of_our_variables(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import os\nprint(sorted(os.environ))")
    assert outcome.verdict == "ok"
    assert not {"HOME", "USER", "WANDB_API_KEY", "DSMATH_TEST_SECRET"} & set(listed_names(outcome.stdout))


def listed_names(text: str) -> list[str]:
    return [part.strip(" '") for part in text.strip("[]\n").split(",")]


def test_programs_run_in_parallel() -> None:
    with Sandbox(workers=2) as sandbox:
        list(sandbox.run_all([("", "")] * 4))
        started = time.monotonic()
        outcomes = list(sandbox.run_all([("import time; time.sleep(1.5); print(input())", str(n)) for n in range(4)]))
        assert time.monotonic() - started < 5.9  # in sequence, the sleeps alone would take 6 s
    assert [outcome.stdout for outcome in outcomes] == [f"{n}\n" for n in range(4)]


def test_an_interpreter_that_dies_is_replaced() -> None:
    import psutil

    with Sandbox(workers=1) as sandbox:
        assert sandbox.run("print(1)").verdict == "ok"
        for child in psutil.Process().children():
            if "sandbox.fork_server" in " ".join(child.cmdline()):
                child.kill()
        assert sandbox.run("print(1)").verdict == "error"
        assert sandbox.run("print(1)").verdict == "ok"


def test_without_landlock_no_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement.landlock, "version", lambda: 0)
    with pytest.raises(SandboxError, match="cannot run a model's programs safely"):
        Sandbox(workers=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_programs_of_an_ordinary_user_are_confined_too(tmp_path: Path, victim: Path) -> None:
    script = tmp_path / "as_user.py"
    script.write_text(
        "import json, sys\n"
        "from megatron_dsmath.sandbox.pool import Sandbox\n"
        "from megatron_dsmath.sandbox.outcome import Limits\n"
        "with Sandbox(workers=1) as sandbox:\n"
        "    programs = json.load(sys.stdin)\n"
        "    print(json.dumps([sandbox.run(text, limits=Limits(*most)).verdict for text, most in programs]))\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    victim.chmod(0o666)
    victim.parent.chmod(0o777)
    import json

    names = [name for name, (program, _) in PROGRAMS.items() if "syscall" not in program]
    programs = json.dumps([[with_paths(PROGRAMS[name][0], victim), limits_for(PROGRAMS[name][1])] for name in names])
    try:
        run = subprocess.run(
            [sys.executable, str(script)], input=programs, capture_output=True, text=True, user=65534, group=65534,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": "/tmp"}, cwd="/", check=False,
        )  # fmt: skip
    except PermissionError:
        pytest.skip("other users may not run this Python")
    assert run.returncode == 0, run.stderr
    wrong = {n: v for n, v in zip(names, json.loads(run.stdout), strict=True) if v not in PROGRAMS[n][1]}
    assert not wrong
    assert victim.read_text() == "precious"
