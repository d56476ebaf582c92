"""The data of the quickstart, and the whole command on a toy model (marked long)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from megatron_dsmath.config import RunConfig, load
from megatron_dsmath.config.source import Loader, write
from megatron_dsmath.data.indexed.inspection import verify
from megatron_dsmath.quickstart import corpora, run_quickstart
from megatron_dsmath.quickstart.run_quickstart import RUN_FILE, make_data
from megatron_dsmath.report.page import Section, write_report
from megatron_dsmath.training.run_directory import RunDirectory
from tests.support.corpora import tree_with


@pytest.fixture(scope="module", autouse=True)
def corpora_are_small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "write_corpora", partial(corpora.write_corpora, megabytes=0.5))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data, whose name has to be quoted."""
    out = tmp_path_factory.mktemp("made") / "quick start"
    make_data(out, placed(out))
    return out


def placed(out: Path) -> RunConfig:
    return load(RUN_FILE, run_quickstart._overrides(out), run_quickstart.RANKS)


def written(out: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_every_path_of_the_run_is_under_out(tmp_path: Path) -> None:
    out = tmp_path / "quick start"
    run = placed(out)
    paths = [run.output, run.data.tokenizer, *(path for entry in run.data.corpora for path in entry.paths)]
    assert len(set(paths)) == 2 + 5
    assert [path for path in paths if not Path(path).is_relative_to(out)] == []
    assert run.model == load(RUN_FILE).model


def test_existing_data_are_not_made_again(made: Path) -> None:
    run, before = placed(made), written(made)
    for entry in run.data.corpora:
        assert verify(entry.paths[0], run.model.vocabulary_size).holds
    make_data(made, run)
    assert written(made) == before


def test_incomplete_data_are_made_again(made: Path) -> None:
    run, before = placed(made), written(made)
    Path(f"{run.data.corpora[-1].paths[0]}.idx").unlink()  # killed between two renames: the index comes last
    make_data(made, run)
    after = written(made)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }


def write_page(run_dir: Path, rows: run_quickstart.Rows) -> Path:
    return write_report([run_dir], [Section("Quickstart", rows)])


@pytest.mark.long
def test_a_killed_run_is_continued_exported_and_reported(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tree_with(
        yaml.load(RUN_FILE.read_text(encoding="utf-8"), Loader),
        model__hidden_size=32,
        model__ffn_hidden_size=64,
        schedule__steps=24,
        checkpoint__every_steps=6,
        validation__every_steps=12,
        validation__sequences_per_corpus=2,
    )
    toy = tmp_path / "toy.yaml"
    toy.write_text(write(run), encoding="utf-8")
    monkeypatch.setattr(run_quickstart, "RUN_FILE", toy)

    page = run_quickstart.run_quickstart(made, write_page)
    directory = RunDirectory(made / "run")
    rows = [json.loads(line) for line in directory.metrics.read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 25))
    killed_after = directory.killed_after()
    assert killed_after is not None
    assert 15 <= killed_after < 24  # five eighths of the steps, or more that were done by then
    text = re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8"))
    assert f"{killed_after}, then continued from its newest checkpoint" in text
    assert f"{rows[-1]['validation_loss']:.6f} nats per token" in text
    assert (made / "model" / "model.safetensors").is_file()

    shutil.rmtree(made / "model")
    before = directory.metrics.read_bytes()
    assert run_quickstart.run_quickstart(made, write_page) == page  # exported again, without training
    assert directory.metrics.read_bytes() == before
