from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.config.sections import CorpusConfig
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import DataError, DsmathError, Refusals, TokenizerError
from tests.data.sft.sets import small_set
from tests.support.mixtures import corpus, mixture, planned, write_shard
from tests.support.small_tokenizer import write_small_tokenizer


def test_a_pattern_opens_every_match_in_sorted_order(tmp_path: Path) -> None:
    prefixes = [write_shard(tmp_path / f"code_{place}", range(10 * place, 10 * place + 10)) for place in (1, 0, 2)]
    opened = Shards(None).open_corpora([corpus("code", 1.0, tmp_path / "code_*")])
    assert [shard.prefix for shard in opened["code"]] == sorted(prefixes)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux reports how a file is mapped")
def test_a_shard_is_mapped_for_random_reads(tmp_path: Path) -> None:
    shard = Shards(None).open(write_shard(tmp_path / "math", range(100)))
    mapped = Path("/proc/self/smaps").read_text().split(f"{shard.prefix}.bin")[1]
    flags = next(line for line in mapped.splitlines() if line.startswith("VmFlags"))
    assert "rr" in flags.split()  # proc(5): random read advise provided


@pytest.mark.parametrize("missing", ["absent", "absent_*"])
def test_a_path_without_a_dataset_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    refusal = refused(DataError, corpus("math", 1.0, tmp_path / missing))
    assert "data.corpora.math.paths" in refusal
    assert f"{tmp_path / missing}.idx" in refusal


def test_a_file_given_twice_is_refused_by_name(tmp_path: Path) -> None:
    math = write_shard(tmp_path / "math", range(10))
    assert "data.corpora.math.paths" in refused(DataError, corpus("math", 1.0, math, tmp_path / "mat*"))
    for suffix in ("bin", "idx"):
        (tmp_path / f"link.{suffix}").symlink_to(tmp_path / f"math.{suffix}")
    twice = refused(DataError, corpus("math", 1.0, math), corpus("prose", 1.0, tmp_path / "link"))
    assert "data.corpora.prose.paths" in twice
    assert "also under data.corpora.math.paths" in twice


def test_a_set_of_conversations_is_refused(tmp_path: Path) -> None:
    small_set(tmp_path, 6)
    with pytest.raises(DataError, match="its loss masks would be ignored") as caught:
        Shards(None).open_corpora([corpus("sft", 1.0, tmp_path / "set")])
    assert caught.value.where == "data.corpora.sft.paths"


def test_all_mistakes_are_raised_at_once(tmp_path: Path) -> None:
    both = refused(Refusals, corpus("math", 1.0, tmp_path / "absent"), corpus("prose", 1.0, tmp_path / "lost"))
    assert "data.corpora.math.paths" in both
    assert "data.corpora.prose.paths" in both


def test_data_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "x^2 + y^2 = z^2"}\n')
    tokenizer = write_small_tokenizer(tmp_path / "tokenizer")
    tokenize([tmp_path / "lines.jsonl"], tokenizer, tmp_path / "data")
    made_with = load_tokenizer(tokenizer).fingerprint
    assert Shards(made_with).open(tmp_path / "data").token_count > 0
    with pytest.raises(TokenizerError, match="another tokenizer") as refusal:
        Shards("another").open(tmp_path / "data")
    assert f"{tmp_path / 'data'}.json" in refusal.value.text()
    assert {f"found:    fingerprint {made_with}", "expected: fingerprint another of data.tokenizer"} <= {
        line.strip() for line in refusal.value.text().splitlines()
    }


def test_data_without_a_sidecar_is_accepted(tmp_path: Path) -> None:
    write_shard(tmp_path / "megatron", range(100), fingerprint="theirs")
    (tmp_path / "megatron.json").unlink()
    assert Shards("ours").open(tmp_path / "megatron").token_count == 100


@pytest.mark.parametrize(
    ("tokens", "document_tokens", "difference"),
    [(110, 10, "110 tokens"), (100, 20, "5 documents"), (range(1, 101), 10, "sha256")],
)
def test_a_file_that_was_changed_since_the_run_began_is_refused(
    tmp_path: Path, tokens: int | range, document_tokens: int, difference: str
) -> None:
    math = write_shard(tmp_path / "math", range(100))
    (record,) = planned(mixture(corpus("math", 1.0, math))).shards
    assert Shards(None).open_planned(record).token_count == 100
    write_shard(math, range(tokens) if isinstance(tokens, int) else tokens, document_tokens=document_tokens)
    with pytest.raises(DataError, match="was changed since the run first read it") as refusal:
        Shards(None).open_planned(record)
    assert f"{math}.bin" in refusal.value.text()
    assert difference in str(refusal.value.found)


def test_a_missing_file_is_refused_with_the_reason_it_is_needed(tmp_path: Path) -> None:
    math = write_shard(tmp_path / "math", range(100))
    (record,) = planned(mixture(corpus("math", 1.0, math))).shards
    (tmp_path / "math.bin").unlink()
    with pytest.raises(DataError, match="still reads is missing") as refusal:
        Shards(None).open_planned(record)
    assert f"{math}.bin" in refusal.value.text()


def refused(kind: type[DsmathError], *corpora: CorpusConfig) -> str:
    with pytest.raises(kind) as refusal:
        Shards(None).open_corpora(corpora)
    return refusal.value.text()
