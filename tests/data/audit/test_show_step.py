from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_dsmath.data.audit.show_step import print_passages, read_step
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import UsageError
from tests.support.corpora import write_inputs
from tests.support.mixtures import corpus, mixture
from tests.support.recorded_runs import SAMPLES, RecordedRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    """Three steps on two corpora of text."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    run = RecordedRun(inputs / "run")
    corpora = [corpus(name, 1.0, inputs / "data" / name) for name in ("mathematics", "code")]
    config = mixture(*corpora, sequence_length=60)
    run.train(config.model_copy(update={"tokenizer": str(inputs / "tokenizer")}), steps=3)
    return run


def test_a_step_is_shown_document_by_document(run: RecordedRun) -> None:
    shown = list(read_step(run.folder, 2))
    assert sorted({passage.sample for passage in shown}) == list(range(SAMPLES, 2 * SAMPLES))
    lengths = dict.fromkeys(range(SAMPLES, 2 * SAMPLES), 0)
    for passage in shown:
        lengths[passage.sample] += passage.end_token - passage.first_token
    assert set(lengths.values()) == {61}
    assert [passage.corpus for passage in shown].count("mathematics") > 0
    assert {Path(passage.shard).name for passage in shown} == {"mathematics", "code"}


def test_the_text_is_that_of_the_documents(run: RecordedRun) -> None:
    folder = run.folder.parent
    lines = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("mathematics", "code")}
    end = load_tokenizer(folder / "tokenizer").decode([load_tokenizer(folder / "tokenizer").end_of_document])
    for passage in read_step(run.folder, 1):
        document = json.loads(lines[passage.corpus][passage.document])["text"] + end
        assert passage.text.strip("�") in document


def test_the_location_of_each_text_is_printed(run: RecordedRun, capsys: pytest.CaptureFixture[str]) -> None:
    passages = list(read_step(run.folder, 1))
    print_passages(passages, as_json=False)
    printed = capsys.readouterr().out
    first = passages[0]
    assert printed.startswith(f"--- sample 0: {first.corpus}, {first.shard}, document {first.document}, tokens ")
    assert all(passage.text in printed for passage in passages)
    print_passages(passages, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["text"] for row in rows] == [passage.text for passage in passages]
    assert set(rows[0]) == {"sample", "corpus", "shard", "document", "first_token", "end_token", "text"}


@pytest.mark.parametrize("step", [0, 4])
def test_an_unknown_step_is_refused(run: RecordedRun, step: int) -> None:
    with pytest.raises(UsageError, match="no such step") as refusal:
        list(read_step(run.folder, step))
    assert "1 to 3" in refusal.value.text()
