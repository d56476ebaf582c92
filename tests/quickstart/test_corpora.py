from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from megatron_dsmath.errors import DataError, OutputError
from megatron_dsmath.quickstart import standard_library
from megatron_dsmath.quickstart.corpora import CORPORA, write_corpora
from tests.quickstart.conftest import MEGABYTES, SEED

CHINESE = re.compile("[一-龥]")


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_five_sources_of_the_paper_have_its_shares() -> None:
    # Section 2.3: 56% DeepSeekMath Corpus, 4% AlgebraicStack, 10% arXiv, 20% GitHub code, 10% natural language.
    shares = [("deepseekmath_corpus", 0.56), ("algebraic_stack", 0.04), ("arxiv", 0.1)]
    shares += [("github_code", 0.2), ("natural_language", 0.1)]
    assert [(name, share) for name, (share, _) in CORPORA.items()] == shares


def test_each_file_is_as_large_as_its_share_to_the_document(corpora: dict[str, Path]) -> None:
    for name, path in corpora.items():
        planned, last = int(MEGABYTES * 1e6 * CORPORA[name][0]), path.read_bytes().splitlines(keepends=True)[-1]
        assert planned <= path.stat().st_size < planned + len(last)


def test_every_line_has_one_text(corpora: dict[str, Path]) -> None:
    for path in corpora.values():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert all(list(row) == ["text"] and row["text"].strip() for row in rows)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(corpora: dict[str, Path], tmp_path: Path) -> None:
    again, other = write_corpora(tmp_path / "a", SEED, MEGABYTES), write_corpora(tmp_path / "b", SEED + 1, MEGABYTES)
    for name, path in corpora.items():
        assert again[name].read_bytes() == path.read_bytes()
        assert other[name].read_bytes() != path.read_bytes()


def test_a_larger_corpus_begins_with_the_smaller(corpora: dict[str, Path], tmp_path: Path) -> None:
    larger = write_corpora(tmp_path, SEED, 1.5 * MEGABYTES)
    assert all(larger[name].read_bytes().startswith(path.read_bytes()) for name, path in corpora.items())


def test_mathematics_and_natural_language_are_bilingual(corpora: dict[str, Path]) -> None:
    for name in ("deepseekmath_corpus", "natural_language"):
        chinese = [bool(CHINESE.search(text)) for text in texts(corpora[name])]
        assert 0.1 < sum(chinese) / len(chinese) < 0.6


def test_the_readme_has_content_and_owner_of_each_file(corpora: dict[str, Path]) -> None:
    readme = (corpora["arxiv"].parent / "README.md").read_text(encoding="utf-8")
    assert all(path.name in readme for path in corpora.values())
    assert "Python Software Foundation License" in readme


def test_code_is_whole_files_of_the_standard_library(corpora: dict[str, Path]) -> None:
    library = {path.read_text(encoding="utf-8") for path in standard_library.source_files()}
    code = texts(corpora["github_code"])
    assert code and set(code) <= library


def test_no_source_is_a_test_or_installed_by_others() -> None:
    parts = {
        part for path in standard_library.source_files() for part in path.relative_to(standard_library.library()).parts
    }
    assert {"heapq.py", "json", "decoder.py"} <= parts
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "pip", "setuptools"}


def test_mathematical_modules_are_in_algebraic_stack_only(tmp_path: Path) -> None:
    paths = write_corpora(tmp_path, SEED, megabytes=6.0)
    algebra, code = set(texts(paths["algebraic_stack"])), set(texts(paths["github_code"]))
    assert (standard_library.library() / "fractions.py").read_text(encoding="utf-8") in algebra
    assert not algebra & code


def test_without_the_librarys_sources_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_library, "library", lambda: tmp_path / "zipped")
    with pytest.raises(DataError, match="sources of the standard library") as refusal:
        write_corpora(tmp_path / "corpora", SEED)
    assert refusal.value.found == "0 modules as .py files"
    assert list((tmp_path / "corpora").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError):
        write_corpora(tmp_path / "file" / "corpora", SEED)
