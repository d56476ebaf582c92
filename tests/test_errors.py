"""The text of errors, their exit codes, and pickling."""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from megatron_dsmath import errors
from megatron_dsmath.errors import ConfigError, DataError, DsmathError, InternalError, LayoutError, Refusals

FACTS = {"where": Path("corpus.jsonl"), "found": "{", "expected": "a JSON object a line", "fix": "delete line 7"}
KINDS = errors.catalogue()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind())
def test_an_error_can_be_pickled(kind: type[DsmathError]) -> None:
    error = kind("line 7 is not JSON", **FACTS)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert {name: getattr(copy, name) for name in FACTS} == FACTS
    assert (copy.what, copy.text(), str(copy), copy.exit_code) == (error.what, error.text(), str(error), kind.exit_code)


def test_several_errors_can_be_pickled() -> None:
    found = Refusals(
        [ConfigError("one", where="seed"), LayoutError("two", fix="divide"), Refusals([DataError("three")])]
    )
    copy = pickle.loads(pickle.dumps(found))
    assert type(copy) is Refusals
    assert [type(error) for error in copy.errors] == [ConfigError, LayoutError, Refusals]
    assert copy.text() == found.text()


def _refuse(line: int) -> None:
    raise DataError("a line is not JSON", where=f"corpus.jsonl:{line}", found="{", fix="delete it")


def test_a_parent_raises_the_error_of_a_worker() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(DataError) as caught,
    ):
        pool.submit(_refuse, 7).result()
    assert (caught.value.where, caught.value.fix) == ("corpus.jsonl:7", "delete it")


def test_the_catalogue_has_every_documented_kind() -> None:
    classes = [node for node in ast.parse(inspect.getsource(errors)).body if isinstance(node, ast.ClassDef)]
    names = [node.name for node in classes if node.name not in ("DsmathError", "Refusals")]
    assert [kind.__name__ for kind in KINDS] == names
    assert all(ast.get_docstring(node) for node in classes)


def test_kinds_have_different_names() -> None:
    assert len({kind.kind() for kind in KINDS}) == len(KINDS)


def test_a_kind_is_named_in_words() -> None:
    names = [errors.ConfigError.kind(), errors.IndexedDatasetError.kind(), errors.StoppedOnRequest.kind()]
    assert names == ["config", "indexed-dataset", "stopped-on-request"]


def test_an_error_reads_as_headline_and_known_facts() -> None:
    error = ConfigError("the run file holds no keys", where="run.yaml:3", found="a list", fix="write keys")
    assert str(error) == (
        "error[config]: the run file holds no keys\n  where:    run.yaml:3\n  found:    a list\n  fix:      write keys"
    )


def test_a_fact_that_is_zero_or_empty_is_still_shown() -> None:
    assert "  found:    0" in DataError("no documents", found=0).text()
    assert "  found:    \n" in DataError("no documents", found="", fix="write some").text()


def test_several_errors_are_printed_one_after_the_other() -> None:
    first, second = ConfigError("one", where="seed"), LayoutError("two", where="parallel.tensor")
    assert Refusals([first, second]).text() == f"{first.text()}\n{second.text()}"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no"), 78),
        (DataError("no"), 78),
        (Refusals([ConfigError("no"), DataError("no")]), 78),
        (InternalError("a rank died"), 70),
        (errors.StoppedOnRequest("saved"), 75),
    ],
)
def test_the_exit_code_shows_whether_a_restart_can_help(
    error: DsmathError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.show(error) == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{error.text()}\n")
