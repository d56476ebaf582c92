"""Plain values are read as YAML 1.2 (yaml.org/spec/1.2.2, section 10.3.2) and written so that they are read equal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.config.source import Loader, write, write_inline

TEXT = st.text() | st.text("\x85\u2028\ufeff \n\t:#'\"\\-[{&*!|>%@`,?~=<1e.")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18) + 1, 10**18 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


def _read(text: str) -> Any:
    return yaml.load(text, Loader)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("4.2e-4", 0.00042),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("12", 12),
        ("+12", 12),
        ("0", 0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_plain_values_are_read_as_yaml_1_2(text: str, value: object) -> None:
    read = _read(text)
    assert (type(read), read) == (type(value), value)


def test_nan_is_a_number() -> None:
    assert math.isnan(_read(".nan"))


@settings(deadline=None)
@given(st.floats(allow_nan=False))
def test_every_number_is_read_back_as_python_writes_it(number: float) -> None:
    assert _read(repr(number).replace("inf", ".inf")) == number


@settings(deadline=None)
@given(VALUES)
def test_written_values_are_read_back_equal(values: object) -> None:
    assert _read(write(values)) == values
    assert _read(write_inline(values)) == values


@pytest.mark.parametrize("text", ["1e-4", "1.5e5", "+.5", "010", "1:30", "no", "2024-01-01", "null", ".nan", ""])
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert _read(write({"text": text})) == yaml.safe_load(write({"text": text})) == {"text": text}


@settings(deadline=None)
@given(TEXT)
def test_text_is_also_text_in_yaml_1_1(text: str) -> None:
    assert yaml.safe_load(write({"text": text})) == {"text": text}


def test_a_value_used_twice_is_written_twice() -> None:
    shared = [1, 2]
    assert write({"first": shared, "second": shared}) == "first:\n- 1\n- 2\nsecond:\n- 1\n- 2\n"
