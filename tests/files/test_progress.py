from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from megatron_dsmath.files import progress as module
from megatron_dsmath.files.progress import Progress, TensorProgress, show_progress

CODE = """
from megatron_dsmath.files.progress import Progress, show_progress
with show_progress() as show:
    show(Progress(12_345, 6_789_000, 50, 100))
    show(Progress(23_456, 9_876_000, 100, 100))
"""


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 11.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with show_progress() as show:
        show(Progress(1, 10, 1_000_000, 100_000_000))  # after 1 s: too early for a line
        show(Progress(2_000, 30_000, 25_000_000, 100_000_000))  # after 10 s: 2.5 MB/s, so 75 MB take 30 s
        show(Progress(3_000, 40_000, 26_000_000, 100_000_000))  # 1 s after the last line
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == " 25.0%  2,000 documents, 30,000 tokens  2.50 MB/s  about 30 s left\n"


def test_tensors_are_counted_instead_of_documents(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 60.0, 70.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with show_progress() as show:
        show(TensorProgress(0, 0, 100_000_000))  # after 60 s of other work, which is not part of the speed
        show(TensorProgress(1_234, 25_000_000, 100_000_000))
    assert capsys.readouterr().err == " 25.0%  1,234 tensors  2.50 MB/s  about 30 s left\n"


def test_a_terminal_gets_a_bar() -> None:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    subprocess.run([sys.executable, "-c", CODE], stderr=terminal, env=environment, check=True)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(controller, 1 << 16):
            shown += part
    except OSError:  # how Linux says that the terminal was closed
        pass
    os.close(controller)
    assert b"23,456 documents, 9,876,000 tokens" in shown
    assert b"100/100 bytes" in shown
