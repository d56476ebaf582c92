"""The audit finds every fault that is planted in a recorded run of three corpora."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.config.sections import DataConfig
from megatron_dsmath.data.audit.audit import MOST_FAULTS, audit
from megatron_dsmath.data.audit.ledger import StepHash
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.errors import ConfigError, DataError, DsmathError
from tests.support.mixtures import corpus, mixture, opened, write_shard
from tests.support.recorded_runs import SAMPLES, RecordedRun, as_planned


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three corpora of documents of 10 tokens; code is two shards."""
    write_shard(tmp_path / "math", range(240))
    write_shard(tmp_path / "code_0", range(20_000, 20_400))
    write_shard(tmp_path / "code_1", range(20_400, 20_600))
    write_shard(tmp_path / "prose", range(40_000, 41_000))
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> RecordedRun:
    return RecordedRun(tmp_path / "run")


def config(data: Path, *shares: float) -> DataConfig:
    math, code, prose = shares or (56.0, 34.0, 10.0)
    return mixture(
        corpus("math", math, data / "math"),
        corpus("code", code, data / "code_*"),
        corpus("prose", prose, data / "prose"),
        held_out_share=0.1,
    )


def first_fault(run: RecordedRun) -> DsmathError:
    found = audit(run.folder)
    assert not found.holds
    return found.faults[0]


def change(file: Path, token: int, by: int = 1) -> None:
    tokens = np.memmap(file, np.uint16, "r+")
    tokens[token] += by
    tokens.flush()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_that_followed_its_plan_holds_in_every_layout(data: Path, run: RecordedRun, ranks: int) -> None:
    run.train(config(data), steps=20, ranks=ranks)
    found = audit(run.folder)
    assert found.holds
    assert found.steps == 20
    math, code, prose = found.totals.corpora
    samples = 20 * SAMPLES
    assert (math.tokens, code.tokens, prose.tokens) == (134 * 4, 82 * 4, 24 * 4)  # 134.4, 81.6, 24.0 of 240
    assert (math.share, math.planned_share) == (134 / samples, pytest.approx(0.56))
    assert math.epochs == 134 / 55  # 220 tokens are not held out
    assert max(part.largest_deviation_samples for part in found.totals.corpora) < 2


def test_a_run_holds_through_changes_of_mixture_layout_and_a_skip(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=5, ranks=2)
    run.train(config(data, 20.0, 20.0, 60.0), steps=5, ranks=4)
    run.skip(3 * SAMPLES)
    run.train(config(data, 20.0, 20.0, 60.0), steps=5)
    run.train(mixture(corpus("code", 1.0, data / "code_1"), sequence_length=8, held_out_share=0.1), steps=2)
    found = audit(run.folder)
    assert found.faults == ()
    assert (found.versions, found.totals.skipped_samples) == (4, 36)
    assert [part.name for part in found.totals.corpora] == ["math", "code", "prose"]
    assert sum(part.tokens for part in found.totals.corpora) == 15 * SAMPLES * 4 + 2 * SAMPLES * 8
    assert max(part.largest_deviation_samples for part in found.totals.corpora) < 2


def test_a_rank_that_read_the_samples_of_another_is_found(data: Path, run: RecordedRun) -> None:
    def read(batches: MixtureBatches, first: int, rank: int, ranks: int) -> list[Microbatch]:
        return as_planned(batches, first, 2 if (first, rank) == (7 * SAMPLES, 1) else rank, ranks)

    run.train(config(data), steps=10, ranks=3, read=read)
    fault = first_fault(run)
    assert str(fault.where).startswith("step 8,")
    assert "no file differs from its sidecar" in str(fault.found)


def test_ranks_that_read_a_step_again_are_found(data: Path, run: RecordedRun) -> None:
    def read(batches: MixtureBatches, first: int, rank: int, ranks: int) -> list[Microbatch]:
        again = as_planned(batches, first - SAMPLES if first == 7 * SAMPLES else first, rank, ranks)
        return [
            batch._replace(samples=batch.samples - batch.samples[0] + first + rank + step * ranks)
            for step, batch in enumerate(again)
        ]

    run.train(config(data), steps=10, ranks=2, read=read)
    fault = first_fault(run)
    assert fault.what == "a step was trained on the samples of the previous step"
    assert (fault.where, fault.found, fault.expected) == ("step 8", "samples 72 to 83", "samples 84 to 95")


def test_a_step_on_the_same_samples_is_found(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=6)
    run.next_sample -= SAMPLES
    run.train(config(data), steps=2)
    fault = first_fault(run)
    assert fault.what == "samples were trained on again"
    assert (fault.where, fault.found) == ("step 7", "sample 60")
    assert audit(run.folder).totals.repeated_samples == SAMPLES


def test_skipped_samples_are_found(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=6)
    run.next_sample += 5
    run.train(config(data), steps=2)
    fault = first_fault(run)
    assert (fault.what, fault.where) == ("samples were skipped", "step 7")
    assert audit(run.folder).totals.missing_samples == 5


@pytest.mark.parametrize(("lost", "what"), [(3, "a step is missing in the ledger"), (1, "a step is missing")])
def test_a_lost_row_is_found(data: Path, run: RecordedRun, lost: int, what: str) -> None:
    run.train(config(data), steps=6)
    lines = run.ledger.steps_file.read_text().splitlines(keepends=True)
    del lines[lost - 1]
    run.ledger.steps_file.write_text("".join(lines))
    fault = first_fault(run)
    assert what in fault.what
    assert (fault.where, fault.found) == (f"step {lost}", f"step {lost + 1}")


def test_a_repeated_row_is_found(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=3)
    lines = run.ledger.steps_file.read_text().splitlines(keepends=True)
    run.ledger.steps_file.write_text("".join([*lines, lines[-1]]))
    assert first_fault(run).what == "a step is in the ledger twice"


def test_a_row_under_another_version_is_found(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=3)
    run.train(config(data, 1.0, 1.0, 1.0), steps=3)
    text = run.ledger.steps_file.read_text()
    run.ledger.steps_file.write_text(text.replace('"step":5,"plan_version":1', '"step":5,"plan_version":0'))
    fault = first_fault(run)
    assert (fault.what, fault.where) == ("a step has another version of the plan", "step 5")


def test_a_changed_token_is_found_with_its_corpus_and_document(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=8)
    batches = opened(run.ledger.read_plan())
    name, passage = next(batches.read_passages(40))
    change(Path(f"{passage.prefix}.bin"), 10 * passage.document + passage.first)
    fault = first_fault(run)
    assert fault.what == "a sample on disk differs from what was trained on"
    where = str(fault.where)
    assert "sample 40" in where
    assert where.startswith("step 4,")
    assert f"corpus {name}: {passage.prefix}.bin documents {passage.document} to" in where
    assert fault.found == f"{passage.prefix}.bin (corpus {name}) was changed, which contains sample 40"


def test_two_changed_samples_of_a_step_are_named_with_their_files(data: Path, run: RecordedRun) -> None:
    """The step has one sample in each changed file."""
    run.train(config(data, 10.0, 1.0, 1.0), steps=8)
    batches = opened(run.ledger.read_plan())
    step = range(3 * SAMPLES, 4 * SAMPLES)
    changed = {name: sample for sample in step for name, _ in batches.read_passages(sample) if name != "math"}
    assert set(changed) == {"code", "prose"}
    for sample in changed.values():
        _, passage = next(batches.read_passages(sample))
        change(Path(f"{passage.prefix}.bin"), 10 * passage.document + passage.first)
    (fault,) = (fault for fault in audit(run.folder).faults if str(fault.where).startswith("step 4,"))
    assert fault.what == "two or more samples on disk differ from what was trained on"
    for name, sample in changed.items():
        assert f"(corpus {name}) was changed, which contains sample {sample}" in str(fault.found)


def test_a_file_with_many_changes_is_found_by_its_sidecar(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=8)
    tokens = np.memmap(data / "math.bin", np.uint16, "r+")
    tokens[:] = tokens[::-1].copy()
    tokens.flush()
    fault = first_fault(run)
    assert str(fault.where).startswith("step 1,")
    assert str(fault.found).startswith(f"{data / 'math'}.bin (corpus math) was changed, which contains samples 0, ")


def test_a_token_changed_beyond_the_vocabulary_is_found(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=30)
    change(data / "math.bin", 100, by=60_000)
    fault = first_fault(run)
    assert f"{data / 'math'}.bin, document 10" in str(fault.where)


def test_a_file_that_was_written_again_is_found(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=3)
    write_shard(data / "prose", range(40_001, 41_001))
    fault = first_fault(run)
    assert fault.what == "a file was changed since the run first read it"
    assert f"{data / 'prose'}.bin" in str(fault.where)


def test_windows_that_are_shifted_by_a_token_are_found(data: Path, run: RecordedRun) -> None:
    def read(batches: MixtureBatches, first: int, rank: int, ranks: int) -> list[Microbatch]:
        shifted = opened(batches.plan)
        for samples in shifted.mixture(0).training:
            samples.stream.segments[0] = samples.stream.segments[0]._replace(start=1)
        return as_planned(shifted, first, rank, ranks)

    run.train(config(data), steps=2, read=read)
    assert str(first_fault(run).where).startswith("step 1,")


def test_only_the_selected_steps_are_read(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=8)
    _, passage = next(opened(run.ledger.read_plan()).read_passages(40))
    change(Path(f"{passage.prefix}.bin"), 10 * passage.document + passage.first)
    holds = [audit(run.folder, first_step=step, last_step=step).holds for step in range(1, 9)]
    assert holds[40 // SAMPLES] is False
    assert audit(run.folder, last_step=40 // SAMPLES).holds is all(holds[: 40 // SAMPLES])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        audit(tmp_path)


def test_a_run_without_a_ledger_is_refused(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=1)
    run.ledger.steps_file.unlink()
    with pytest.raises(DataError, match="has no ledger"):
        audit(run.folder)


def test_the_number_of_listed_faults_is_limited(data: Path, run: RecordedRun) -> None:
    run.train(config(data), steps=0)
    for _ in range(MOST_FAULTS + 5):
        run.record(StepHash(1, 1))
    assert len(audit(run.folder).faults) == MOST_FAULTS


@pytest.mark.parametrize("other", ["-1", "0", "9" * 18, "9" * 5000, "1.5", "null"], ids=lambda other: other[:9])
def test_a_damaged_number_of_a_ledger_is_refused_or_found(data: Path, run: RecordedRun, other: str) -> None:
    """An audit of any damaged number ends with a DsmathError or with its result."""
    run.train(config(data), steps=2)
    run.train(config(data, 1.0, 1.0, 1.0), steps=1)
    for file in (run.ledger.plan_file, run.ledger.steps_file):
        content = file.read_text()
        for number in list(re.finditer(r"(?<=[:\[,])\d+", content))[::4]:
            file.write_text(content[: number.start()] + other + content[number.end() :])
            with suppress(DsmathError):
                audit(run.folder, last_step=1)
        file.write_text(content)
    assert audit(run.folder).holds
