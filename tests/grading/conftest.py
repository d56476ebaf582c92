"""One sandbox with sympy and math-verify for all tests of grading, because it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_dsmath.grading.grade import Grader
from megatron_dsmath.sandbox import confinement


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    if not confinement.is_supported():
        pytest.skip("this machine cannot confine a program")
    with Grader(workers=1, timeout_seconds=4.0) as grader:
        yield grader


@pytest.fixture(scope="session")
def impatient() -> Iterator[Grader]:
    """A grader with a short timeout, for answers that hang."""
    if not confinement.is_supported():
        pytest.skip("this machine cannot confine a program")
    with Grader(workers=1, timeout_seconds=0.5) as grader:
        yield grader
