"""A dumped run loads as the same run, and no content of a file ends in a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_dsmath.config import dump, load
from megatron_dsmath.config.source import read, write
from megatron_dsmath.errors import DsmathError, Refusals
from tests.support.seeded import PAPER_RUN, RUN_FILES


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_dumped_run_loads_as_the_same_run(path: Path, tmp_path: Path) -> None:
    run = load(path)
    again = tmp_path / "run.yaml"
    again.write_text(dump(run), encoding="utf-8")
    assert load(again) == run
    assert dump(load(again)) == dump(run)


@settings(deadline=None, max_examples=40)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    rate=st.floats(1e-12, 1.0),
    epochs=st.none() | st.floats(0.01, 1e6),
    steps=st.integers(2000, 10**18 - 1),
)
def test_any_text_and_number_is_the_same_after_a_dump(
    text: str, rate: float, epochs: float | None, steps: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paper = load(PAPER_RUN)
    corpus = paper.data.corpora[0].model_copy(update={"max_epochs": epochs, "paths": (text,)})
    run = paper.model_copy(
        update={
            "output": text,
            "data": paper.data.model_copy(update={"corpora": (corpus,)}),
            "schedule": paper.schedule.model_copy(update={"peak_learning_rate": rate, "steps": steps}),
        }
    )
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(run), encoding="utf-8")
    assert load(path) == run


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
PLACES = sorted(read(PAPER_RUN).lines)


@settings(deadline=None, max_examples=40)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_of_any_key_is_accepted_or_refused_with_an_error(
    place: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree: Any = read(PAPER_RUN).tree
    *parents, last = place.split(".")
    node = tree
    for parent in parents:
        node = node[int(parent) if isinstance(node, list) else parent]
    node[int(last) if isinstance(node, list) else last] = value
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(write(tree), encoding="utf-8")
    _assert_accepted_or_refused(path)


@settings(deadline=None, max_examples=40)
@given(text=st.text())
def test_any_override_is_accepted_or_refused_with_an_error(text: str) -> None:
    for assignment in (text, f"seed={text}", f"data.corpora.0={text}", f"{text}=1"):
        _assert_accepted_or_refused(PAPER_RUN, assignment)


@settings(deadline=None, max_examples=40)
@given(text=st.text() | st.binary())
def test_any_file_is_loaded_or_refused_with_an_error(
    text: str | bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    _assert_accepted_or_refused(path)


def _assert_accepted_or_refused(path: Path, *overrides: str) -> None:
    try:
        load(path, overrides, world_size=64)
    except DsmathError as error:
        for mistake in error.errors if isinstance(error, Refusals) else (error,):
            assert None not in (mistake.where, mistake.found, mistake.expected, mistake.fix), mistake.text()


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", ".0001", "0.0001"])
def test_a_rate_is_a_number_however_it_is_written(written: str) -> None:
    assert load(PAPER_RUN, [f"schedule.peak_learning_rate={written}"]).schedule.peak_learning_rate == 0.0001


def test_a_whole_number_is_accepted_as_a_fraction() -> None:
    theta = load(PAPER_RUN, ["model.rope_theta=500000"]).model.rope_theta
    assert (type(theta), theta) == (float, 500000.0)


def test_a_loaded_run_cannot_be_changed() -> None:
    run = load(PAPER_RUN)
    with pytest.raises(ValidationError, match="frozen"):
        run.schedule.steps = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        run.data.corpora.append("another")  # type: ignore[attr-defined]
