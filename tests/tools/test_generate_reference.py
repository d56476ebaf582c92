"""The generated references agree with the code, and the schema accepts what `load` accepts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from megatron_dsmath import errors
from megatron_dsmath.config import dump, load
from megatron_dsmath.config.mistakes import keys
from tests.support.seeded import PAPER_RUN, RUN_FILES

REPOSITORY = PAPER_RUN.parents[2]


def _load_tool() -> ModuleType:
    path = REPOSITORY / "tools/generate_reference.py"
    specification = importlib.util.spec_from_file_location("generate_reference", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


tool = _load_tool()


def test_the_references_in_the_repository_are_up_to_date() -> None:
    assert tool.stale(REPOSITORY) == [], "run python tools/generate_reference.py"


def test_check_lists_stale_files_without_changing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "REPOSITORY", tmp_path)
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    edited, missing = tmp_path / "docs/reference/config.md", tmp_path / "docs/reference/errors.md"
    edited.write_text("by hand\n", encoding="utf-8")
    missing.unlink()
    capsys.readouterr()
    assert tool.main(["--check"]) == 1
    named = [line.split(" ")[0] for line in capsys.readouterr().err.splitlines()]
    assert named == ["docs/reference/config.md", "docs/reference/errors.md"]
    assert edited.read_text(encoding="utf-8") == "by hand\n"
    assert not missing.exists()


def test_every_key_is_in_the_reference_with_its_description() -> None:
    page = tool.pages()["docs/reference/config.md"]
    for key, field in keys():
        (row,) = [line for line in _rows_under(page, key) if line.startswith(f"| `{key.rpartition('.')[2]}` |")]
        assert " ".join((field.description or "").split()) in row


def _rows_under(page: str, key: str) -> list[str]:
    section = key.rpartition(".")[0]
    for chunk in page.split("\n## "):
        if chunk.partition("\n")[0].replace("[]", "") == (section or "Top level"):
            return chunk.splitlines()
    raise AssertionError(f"no section {section}")


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("model.layers", "whole number (above 0)"),
        ("model.initial_weights", "text or `null`"),
        ("precision", "one of `fp32`, `bf16`"),
        ("parallel.stage_layers", "list of whole numbers (above 0) or `null`"),
        ("parallel.sequence", "true or false"),
        ("data.corpora.name", "text (matching `^[A-Za-z0-9_.-]+$`)"),
        ("data.corpora", "list of sections"),
        ("data.conversations", "section or `null`"),
        ("data.held_out_share", "number (0 or more, below 0.5)"),
        ("data.corpora.max_epochs", "number (above 0) or `null`; may be omitted"),
    ],
)
def test_the_reference_describes_the_values_of_a_key(key: str, takes: str) -> None:
    page = tool.pages()["docs/reference/config.md"]
    assert any(row.startswith(f"| `{key.rpartition('.')[2]}` | {takes} |") for row in _rows_under(page, key))


def test_every_kind_of_error_is_in_the_reference_with_its_exit_code() -> None:
    page = tool.pages()["docs/reference/errors.md"]
    for kind in errors.catalogue():
        assert f"| `{kind.kind()}` | {kind.exit_code} | {kind.__doc__} |" in page


def test_every_metric_is_in_the_reference_with_its_unit() -> None:
    """The names of `interface.md`, "A run's directory"."""
    page = tool.pages()["docs/reference/metrics.md"]
    names = "step consumed_tokens loss loss_by_corpus grad_norm learning_rate step_seconds tokens_per_second mfu"
    for name in [*names.split(), "validation_loss", "validation_loss_by_corpus"]:
        assert f"| `{name}` | `" in page
    for unit in ("nats", "seconds", "tokens"):
        assert unit in page


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(tool.pages()["configs/run.schema.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_the_schema_accepts_every_run_file(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(dump(load(path))))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.layers", "30"),
        ("model.layers", 0),
        ("model.layers", True),
        ("model.layrs", 30),
        ("precision", "fp16"),
        ("optimizer.beta1", 1.0),
        ("data.corpora", None),
        ("parallel.stage_layers", [7, "8"]),
        ("optimizer", None),
    ],
)
def test_the_schema_refuses_what_load_refuses(
    key: str, value: object, validator: jsonschema.Draft202012Validator
) -> None:
    tree = yaml.safe_load(dump(load(PAPER_RUN)))
    assert validator.is_valid(tree)
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node[parent]
    node[last] = value
    assert not validator.is_valid(tree)


def test_the_schema_requires_every_section(validator: jsonschema.Draft202012Validator) -> None:
    tree = yaml.safe_load(dump(load(PAPER_RUN)))
    for section in list(tree):
        without = {name: value for name, value in tree.items() if name != section}
        assert not validator.is_valid(without), section
