from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.config.data import CorpusConfig, DataConfig
from megatron_dsmath.data.batches import PADDING, Batches, Microbatch
from megatron_dsmath.data.indexed import IndexedWriter, dtype_for
from megatron_dsmath.errors import ConfigError, DataError, DsmathError, LayoutError, Refusals, TokenizerError

VOCABULARY = 60_000
FIRST_TOKEN = {"math": 0, "code": 20_000, "prose": 40_000}  # a token tells its corpus and its place
TOKENS = {"math": 240, "code": 600, "prose": 1000}
WEIGHTS = {"math": 56.0, "code": 34.0, "prose": 10.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora of documents of 10 tokens; code is two shards."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "math", range(240))
    write(folder / "code_0", range(20_000, 20_400))
    write(folder / "code_1", range(20_400, 20_600))
    write(folder / "prose", range(40_000, 41_000))
    return folder


def write(prefix: Path, tokens: Sequence[int], fingerprint: str | None = None) -> None:
    with IndexedWriter(prefix, dtype_for(VOCABULARY)) as writer:
        for start in range(0, len(tokens), 10):
            writer.add_document(tokens[start : start + 10])
        if fingerprint is not None:
            writer.facts["tokenizer"] = {"fingerprint": fingerprint}


def config(data: Path, held_out_share: float = 0.0, **changes: CorpusConfig) -> DataConfig:
    paths = {"math": "math", "code": "code_*", "prose": "prose"}
    entries = {
        name: CorpusConfig(name=name, weight=weight, paths=(str(data / paths[name]),))
        for name, weight in WEIGHTS.items()
    }
    return DataConfig(
        tokenizer="tokenizer",
        sequence_length=4,
        corpora=tuple((entries | changes).values()),
        held_out_share=held_out_share,
    )


def opened(data: Path, held_out_share: float = 0.0, **changes: CorpusConfig) -> Batches:
    return Batches(config(data, held_out_share, **changes), 1234, VOCABULARY, None)


def in_order(ranks: Sequence[Sequence[Microbatch]]) -> list[tuple[int, list[int], list[int]]]:
    """The rows of all ranks in the order of the samples: corpus, tokens, document starts."""
    return [
        (int(corpus), tokens.tolist(), starts.tolist())
        for microbatch in chain.from_iterable(zip(*ranks, strict=True))
        for tokens, corpus, starts in zip(*microbatch, strict=True)
    ]


def test_a_row_is_a_whole_sample_of_its_corpus(data: Path) -> None:
    batches = opened(data)
    draw = batches.blend.locate(np.arange(100, 124))
    expected = [
        (corpus, *(part.tolist() for part in batches.corpora[corpus].training.sample(number)))
        for corpus, number in zip(draw.corpus.tolist(), draw.number.tolist(), strict=True)
    ]
    assert in_order([batches.at(100, 24, 2, 0, 1)]) == expected
    for corpus, tokens, _ in expected:
        name = batches.names[corpus]
        places = np.array(tokens) - FIRST_TOKEN[name]
        assert places.tolist() == [(places[0] + step) % TOKENS[name] for step in range(5)]


def test_a_microbatch_has_the_documented_shapes(data: Path) -> None:
    microbatches = opened(data).at(0, 12, 3, 1, 2)
    assert len(microbatches) == 2
    for tokens, corpus, document_starts in microbatches:
        assert (str(tokens.dtype), tokens.shape) == ("int64", (3, 5))
        assert (str(corpus.dtype), corpus.shape) == ("int32", (3,))
        assert [starts[0] for starts in document_starts] == [0, 0, 0]


@settings(deadline=None, max_examples=50)  # a deadline would time the disk
@given(first=st.integers(0, 10**9), data_size=st.sampled_from([1, 2, 3, 6]), size=st.sampled_from([1, 2, 4]))
def test_a_step_is_the_same_samples_in_every_layout(data: Path, first: int, data_size: int, size: int) -> None:
    batches = opened(data)
    alone = in_order([batches.at(first, 24, 24, 0, 1)])
    assert in_order([batches.at(first, 24, size, rank, data_size) for rank in range(data_size)]) == alone


def test_steps_follow_each_other_without_gap_or_repeat(data: Path) -> None:
    batches = opened(data)
    one_by_one = [row for step in range(5) for row in in_order([batches.at(24 * step, 24, 4, 0, 1)])]
    assert one_by_one == in_order([batches.at(0, 120, 8, 0, 1)])


def test_what_does_not_divide_is_refused(data: Path) -> None:
    with pytest.raises(LayoutError, match="24 samples, 5 data-parallel ranks x microbatches of 2"):
        opened(data).at(0, 24, 2, 0, 5)


def test_a_plan_counts_fractional_epochs(data: Path) -> None:
    math, code, prose = opened(data).plan(250)
    assert (math.samples, math.tokens, code.samples, prose.samples) == (140, 560, 85, 25)
    assert (math.epochs, code.epochs, prose.epochs) == (140 / 60, 85 / 150, 25 / 250)
    assert f"{math.epochs:.2f}" == "2.33"


def test_a_run_follows_its_plan(data: Path) -> None:
    batches = opened(data)
    rows = in_order([batches.at(0, 250, 10, 0, 1)])
    assert Counter(batches.names[corpus] for corpus, _, _ in rows) == {"math": 140, "code": 85, "prose": 25}
    targets = Counter(chain.from_iterable(tokens[1:] for corpus, tokens, _ in rows if corpus == 0))
    assert set(targets) == set(range(240))
    assert sorted(targets.values()) == [2] * 160 + [3] * 80  # two epochs, and 20 of 60 windows of 4


def test_a_plan_that_repeats_more_than_allowed_is_refused(data: Path) -> None:
    path = str(data / "math")
    allowed = CorpusConfig(name="math", weight=56.0, paths=(path,), max_epochs=140 / 60)
    refused = CorpusConfig(name="math", weight=56.0, paths=(path,), max_epochs=2.3)
    assert opened(data, math=allowed).plan(250)[0].epochs == 140 / 60
    with pytest.raises(ConfigError, match=r"data\.corpora\.math\.max_epochs") as refusal:
        opened(data, math=refused).plan(250)
    assert "2.333 epochs (560 tokens)" in refusal.value.text()


@pytest.mark.parametrize(("size", "data_size"), [(1, 1), (4, 1), (1, 3), (2, 4), (7, 2)])
def test_validation_is_the_same_samples_in_every_layout(data: Path, size: int, data_size: int) -> None:
    batches = opened(data, held_out_share=0.1)
    ranks = [batches.validation(5, size, rank, data_size) for rank in range(data_size)]
    assert len({len(microbatches) for microbatches in ranks}) == 1
    rows = in_order(ranks)
    counted = [row for row in rows if row[0] != PADDING]
    assert counted == rows[: len(counted)]
    assert len(rows) - len(counted) < size * data_size
    assert counted == [
        (corpus, *(part.tolist() for part in batches.corpora[corpus].validation.sample(number)))
        for corpus, number in ((corpus, number) for corpus in range(3) for number in range(5))
    ]


def test_validation_reads_no_held_out_sample_twice(data: Path) -> None:
    batches = opened(data, held_out_share=0.1)
    rows = in_order([batches.validation(10**9, 1, 0, 1)])
    assert Counter(corpus for corpus, _, _ in rows) == {0: 5, 1: 15, 2: 25}  # 2, 6, 10 documents, stride 4
    targets = Counter(chain.from_iterable(tokens[1:] for _, tokens, _ in rows))
    assert set(targets.values()) == {1}


def test_without_a_held_out_share_there_is_no_validation(data: Path) -> None:
    assert opened(data).validation(10, 2, 1, 2) == []


def entry(name: str, *paths: Path) -> CorpusConfig:
    return CorpusConfig(name=name, weight=1.0, paths=tuple(map(str, paths)))


@pytest.mark.parametrize("missing", ["absent", "absent_*"])
def test_a_path_without_a_dataset_is_refused_by_name(data: Path, missing: str) -> None:
    refusal = refused(data, DataError, math=entry("math", data / missing))
    assert "data.corpora.math.paths" in refusal
    assert f"{data / missing}.idx" in refusal


def test_a_file_given_twice_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    assert "data.corpora.math.paths" in refused(data, DataError, math=entry("math", data / "math", data / "mat*"))
    for suffix in ("bin", "idx"):
        (tmp_path / f"link.{suffix}").symlink_to(data / f"math.{suffix}")
    twice = refused(data, DataError, prose=entry("prose", tmp_path / "link"))
    assert "data.corpora.prose.paths" in twice
    assert "also under data.corpora.math.paths" in twice


def test_all_mistakes_are_told_at_once(data: Path) -> None:
    both = refused(data, Refusals, math=entry("math", data / "absent"), prose=entry("prose", data / "lost"))
    assert "data.corpora.math.paths" in both
    assert "data.corpora.prose.paths" in both


def test_data_of_another_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", range(40_000, 40_100), fingerprint="theirs")
    changed = config(data, prose=entry("prose", tmp_path / "other"))
    with pytest.raises(TokenizerError, match="another tokenizer") as refusal:
        Batches(changed, 1234, VOCABULARY, "ours")
    assert f"{tmp_path / 'other'}.json" in refusal.value.text()
    assert {"found:    fingerprint theirs", "expected: fingerprint ours, of data.tokenizer"} <= {
        line.strip() for line in refusal.value.text().splitlines()
    }
    assert Batches(changed, 1234, VOCABULARY, "theirs").names == ("math", "code", "prose")
    assert Batches(changed, 1234, VOCABULARY, None).names == ("math", "code", "prose")


def test_data_without_a_sidecar_is_taken_as_it_is(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "megatron", range(40_000, 40_100), fingerprint="theirs")
    (tmp_path / "megatron.json").unlink()
    changed = config(data, prose=entry("prose", tmp_path / "megatron"))
    assert Batches(changed, 1234, VOCABULARY, "ours").names == ("math", "code", "prose")


def refused(data: Path, kind: type[DsmathError], **changes: CorpusConfig) -> str:
    with pytest.raises(kind) as refusal:
        opened(data, 0.0, **changes)
    return refusal.value.text()
