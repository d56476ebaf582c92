"""Files that are not YAML or have no keys: one error, with a line if there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_dsmath.config import load
from megatron_dsmath.errors import ConfigError
from tests.support.seeded import seeded

# mistake: (content of the file, line of the mistake or None, found)
NOT_A_RUN_FILE = {
    "an empty file": (b"", None, "an empty file"),
    "comments alone": (b"# nothing yet\n", None, "an empty file"),
    "a list": (b"- model\n- data\n", None, "[model, data]"),
    "a sentence": (b"train the model\n", None, "train the model"),
    "a tab for indentation": (b"seed: 1\nmodel:\n\tlayers: 30\n", 3, "'\\t'"),
    "a bracket left open": (b"seed: 1\nmodel: {layers: 30\n", 3, "expected ',' or '}'"),
    "a colon too many": (b"seed: 1: 2\n", 1, "mapping values are not allowed here"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", 2, "another document"),
    "a control character": (b"seed: 1\noutput: run\x07\n", 2, "U+0007"),
    "Latin-1": ("seed: 1\noutput: größe\n".encode("latin-1"), 2, "0xf6"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), 1, "0xff"),
    "a file that refers to itself": (b"seed: 1\nmodel: &model [*model]\n", 2, "an alias"),
    "a list for a key": (b"seed: 1\n? [model, data]\n: 3\n", 2, "unhashable key"),
    "a Python object": (b"seed: 1\nmodel: !!python/object/apply:os.system [ls]\n", 2, "a tag"),
    "brackets without end": (b"seed: " + b"[" * 2000, None, "nested too deeply"),
}


@pytest.mark.parametrize("mistake", NOT_A_RUN_FILE.values(), ids=NOT_A_RUN_FILE.keys())
def test_a_file_that_is_not_a_run_file_is_refused_with_its_line(
    mistake: tuple[bytes, int | None, str], tmp_path: Path
) -> None:
    text, line, found = mistake
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    error = caught.value
    assert str(error.where) == (f"{path}:{line}" if line else str(path))
    assert found in str(error.found)
    assert error.expected and error.fix


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.yaml")
    assert caught.value.found == os.strerror(2)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert caught.value.found == os.strerror(21)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    run = seeded(tmp_path)
    run.path.write_text(f"\ufeff{run.text}", encoding="utf-8")
    assert load(run.path).seed == 1234
