from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_dsmath import cli
from megatron_dsmath.data.mixture.planned_corpora import PlannedCorpus, planned_corpora
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from tests.support.corpora import write_inputs, write_run_file
from tests.support.mixtures import corpus, mixture, opened, planned, write_shard


def corpora_of(*corpora: object, earlier: object = None, next_sample: int = 0) -> dict[str, PlannedCorpus]:
    plan = planned(mixture(*corpora), earlier, next_sample)  # type: ignore[arg-type]
    newest = opened(plan).mixture(len(plan.versions) - 1)
    return {row.name: row for row in planned_corpora(plan, newest)}


def test_a_corpus_is_counted_to_the_end_of_the_run(tmp_path: Path) -> None:
    math, code = (write_shard(tmp_path / name, range(2000)) for name in ("math", "code"))
    rows = corpora_of(corpus("math", 3.0, math), corpus("code", 1.0, code))
    # 1,000 samples of 4 tokens, 3 : 1; an epoch has 500; after two samples one of each: 0.5 from 1.5 and 0.5
    assert rows["math"] == PlannedCorpus("math", 0.75, 750, 3000, 1.5, 0.5, rows["math"].neighbours_alike, False)
    assert (rows["code"].samples, rows["code"].epochs, rows["code"].warning) == (250, 0.5, None)


def test_a_corpus_of_a_few_documents_has_no_similarity_and_no_warning(tmp_path: Path) -> None:
    row = corpora_of(corpus("math", 1.0, write_shard(tmp_path / "math", [1] * 400 + [2] * 400)))["math"]
    assert (row.neighbours_alike, row.unshuffled, row.warning) == (None, False, None)


def test_a_removed_corpus_is_counted_and_not_compared(tmp_path: Path) -> None:
    math, code = (write_shard(tmp_path / name, [1] * 2000 + [2] * 2000) for name in ("math", "code"))
    both = planned(mixture(corpus("math", 1.0, math), corpus("code", 1.0, code)))
    rows = corpora_of(corpus("math", 1.0, math), earlier=both, next_sample=100)
    assert rows["math"].unshuffled
    assert (rows["code"].samples, rows["code"].share) == (50, 0.0)
    assert (rows["code"].largest_deviation_samples, rows["code"].neighbours_alike, rows["code"].warning) == (None,) * 3


def test_blend_warns_of_sorted_documents_until_they_are_shuffled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = write_inputs(tmp_path)
    texts = ["a right triangle has sides"] * 100 + ["x^2 + y^2 = z^2"] * 100
    lines = tmp_path / "sorted.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize([lines], inputs / "tokenizer", inputs / "data" / "code")
    run_file = str(write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml"))
    assert cli.main(["data", "blend", run_file, "--json"]) == 0
    shown = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(shown.out)}
    assert rows["code"]["unshuffled"] is True
    (warning,) = shown.err.splitlines()
    assert warning.startswith("warning: corpus code is not shuffled")
    assert f" {rows['code']['neighbours_alike']:.2f} higher than of others" in warning
    assert "dsmath data tokenize --shuffle-seed" in warning
    tokenize([lines], inputs / "tokenizer", inputs / "data" / "code", shuffle_seed=1)
    assert cli.main(["data", "blend", run_file]) == 0
    shown = capsys.readouterr()
    assert "neighbours alike" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("weight", [".nan", ".inf", "-1.0", "0.0"])
def test_blend_refuses_an_invalid_weight_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weight: str
) -> None:
    run_file = write_run_file(tmp_path, tmp_path / "run", tmp_path / "run.yaml")
    run_file.write_text(run_file.read_text().replace("weight: 3.0", f"weight: {weight}"))
    assert cli.main(["data", "blend", str(run_file)]) == 78
    shown = capsys.readouterr().err
    assert ": data.corpora.0.weight\n" in shown
    assert f"found:    {weight}\n" in shown
