"""Fine-tuning on packed conversations: its loss in every layout, and complete runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from megatron_dsmath.checkpoint.store import newest_checkpoint
from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.audit import audit
from megatron_dsmath.data.audit.show_step import read_step
from megatron_dsmath.data.sft.conversation_batches import GROUPS, PackedBatches
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.errors import ConfigError, DataError, DsmathError
from megatron_dsmath.model import decoder
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.parallel.topology import initialize_topology
from megatron_dsmath.training.batches import StepBatches
from megatron_dsmath.training.inputs import open_inputs
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.step import forward_backward
from tests.data.sft.sets import rows, small_set
from tests.support import training
from tests.support.conversations import LENGTH, sft_run, write_sft_file
from tests.support.corpora import small_run, write_corpora
from tests.support.ranks import run_ranks
from tests.training.ranks import dsmath, numbers_of, rows_of, train_run, train_until_killed, with_fault

TOLERANCE = 1e-5  # fp32 sums of the same numbers in another order, through 4 layers
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "TP2": (2, {"tensor": 2, "sequence": True}),
    "PP2": (2, {"pipeline": 2}),
    "DP2": (2, {}),
}


class Found(NamedTuple):
    """A step of a rank without an update."""

    data_rank: int
    targets: int  # of this rank's own microbatches
    loss: float
    loss_by_group: dict[str, float | None]
    tokens_by_group: dict[str, int]
    gradients: training.Parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sft")
    small_set(path, sequence_length=LENGTH)
    return path


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed")
    (ending,) = run_ranks(1, dsmath, ["train", str(write_sft_file(folder, output, output / "sft.yaml"))])
    assert ending.code == 0, ending.err
    return output


def computed(run: RunConfig, *, alone: bool = False) -> Found:
    """This rank's results of the run's first step, or of its examples one by one."""
    topology = initialize_topology(run.parallel, run.seed)
    job = open_job(run, topology)
    with StepBatches(job) as step_batches:
        batches = step_batches.next(job.start)
    if alone:
        assert isinstance(job.batches, PackedBatches)
        batches = one_by_one(job.batches, run.schedule.sequences_per_step)
    sums = forward_backward(job, batches)
    gradients = {name: tensor.main_grad for name, tensor in decoder.named_parameters(job.model_chunks)}  # type: ignore[attr-defined]
    parts = training.parts(training.Training(run, topology, job.model_chunks, job.optimizer), gradients)
    targets = int(sum(batch.loss_mask.sum() for batch in batches))
    return Found(topology.data_rank, targets, sums.loss, sums.loss_by_corpus, sums.tokens_by_corpus, parts)


def one_by_one(batches: PackedBatches, sequences: int) -> list[DeviceBatch]:
    """Every example of the first sequences in a microbatch of its own, read from the set and not from a sequence."""
    examples, alone = batches.examples, []
    for number in range(sequences):
        for example in batches.training.read(number).examples.tolist():
            tokens, is_target = examples.read(example)
            names = [f"{group}/{examples.names(group)[examples.column(group)[example]]}" for group in GROUPS]
            groups = torch.tensor([batches.group_names.index(name) for name in names])
            ids = torch.from_numpy(tokens.astype("int64"))
            mask = torch.from_numpy(is_target[1:]).float()
            alone.append(DeviceBatch(ids[None], mask[None], groups[None, None], torch.tensor([number]), None))
    return alone


@pytest.fixture(scope="module")
def alone(folder: Path) -> Found:
    """The examples one by one, in one process."""
    found: list[Found] = run_ranks(1, partial(computed, step_run(folder, "one process"), alone=True))
    return found[0]


def step_run(folder: Path, layout: str) -> RunConfig:
    # Without the distributed optimizer every data-parallel rank holds whole gradients.
    overrides = {f"parallel__{key}": value for key, value in LAYOUTS[layout][1].items()}
    apart = {"seed": 8, "parallel__distributed_optimizer": False, "schedule__sequences_per_step": 8}
    return sft_run(folder, folder / "run", **apart, **overrides)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_conversations_lose_what_each_loses_alone(layout: str, alone: Found, folder: Path) -> None:
    run = step_run(folder, layout)
    ranks = run_ranks(LAYOUTS[layout][0], partial(computed, run))
    ours = training.joined(run, [rank.gradients for rank in ranks if rank.data_rank == 0])
    theirs = training.joined(run, [alone.gradients])
    assert ours.keys() == theirs.keys()
    gradients = max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)
    print(f"{layout}: loss {abs(ranks[0].loss / alone.loss - 1):.1e}, gradients {gradients:.1e}")
    assert gradients < TOLERANCE
    assert len({rank.loss for rank in ranks}) == 1
    assert ranks[0].loss == pytest.approx(alone.loss, rel=TOLERANCE)
    assert None not in alone.loss_by_group.values()
    assert ranks[0].loss_by_group == pytest.approx(alone.loss_by_group, rel=TOLERANCE)
    assert ranks[0].tokens_by_group == alone.tokens_by_group
    if layout == "DP2":
        assert ranks[0].targets != ranks[1].targets
        assert ranks[0].targets + ranks[1].targets == alone.targets


def test_the_loss_is_reported_by_kind_language_and_source(alone: Found) -> None:
    names = "kind/cot kind/pot kind/tool language/en language/zh source/first source/second"
    assert list(alone.loss_by_group) == names.split()
    for group in GROUPS:  # each target is in one of each
        assert sum(count for name, count in alone.tokens_by_group.items() if name.startswith(group)) == alone.targets


def test_a_killed_run_goes_on_bit_for_bit(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(1, train_until_killed, sft_run(folder, killed), 4)
    (ending,) = run_ranks(1, dsmath, ["train", str(write_sft_file(folder, killed, tmp_path / "sft.yaml"))])
    assert ending.code == 0, ending.err
    assert "continuing after step 3" in ending.out
    assert "not bitwise" not in ending.out
    assert numbers_of(rows_of(killed)) == numbers_of(rows_of(undisturbed))


@pytest.mark.parametrize("parallel", [{}, {"parallel__pipeline": 2, "parallel__virtual_stages": 2}], ids=str)
def test_held_out_conversations_are_validated_alike_on_two_ranks(
    parallel: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Three sequences: a rank's padding, or a microbatch that virtual stages need, has no target."""
    steps = {"schedule__steps": 2, "validation__every_steps": 1, "validation__sequences_per_corpus": 3}
    run_ranks(2, train_run, sft_run(folder, tmp_path, **steps, **parallel))
    run_ranks(1, train_run, sft_run(folder, tmp_path / "one", **steps))
    ours, alone = ([row for row in rows_of(path) if "validation_loss" in row] for path in (tmp_path, tmp_path / "one"))
    assert [row["step"] for row in ours] == [1, 2]
    for two, one in zip(ours, alone, strict=True):
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=TOLERANCE)
        by_language = [one["validation_loss_by_corpus"][f"language/{language}"] for language in ("en", "zh")]
        assert min(by_language) < one["validation_loss"] < max(by_language)  # a mean over targets, whatever they are of


def test_a_rejected_step_names_the_file_and_line_of_each_example_and_is_passed_over(
    folder: Path, tmp_path: Path
) -> None:
    run = sft_run(folder, tmp_path, guard__non_finite="skip")
    # 4 microbatches a step: the first of step 3, both times that it is computed.
    run_ranks(1, with_fault, "nan:step.loss:count=9,13", train_run, run)
    (file,) = (tmp_path / "logs").glob("rejected_*.json")
    facts = json.loads(file.read_text(encoding="utf-8"))
    assert (facts["step"], facts["first_sample"], facts["samples_without_finite_loss"]) == (3, 8, [8])
    assert {passage["sample"] for passage in facts["passages"]} == {8, 9, 10, 11}
    numbers = [int(json.loads(_line(passage))["question"].rpartition(" ")[2]) for passage in facts["passages"]]
    assert [passage["line"] for passage in facts["passages"]] == [number + 1 for number in numbers]
    assert [row["consumed_samples"] for row in rows_of(tmp_path)] == [4, 8, 16, 20, 24, 28]
    found = audit(tmp_path)
    assert found.holds
    assert (found.steps, found.totals.skipped_samples, found.totals.corpora) == (6, 4, ())


def test_a_changed_example_is_found_by_an_audit_and_a_step_is_shown(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    run = sft_run(copy, tmp_path / "run", schedule__steps=2)
    run_ranks(1, train_run, run)
    shown = list(read_step(tmp_path / "run", 2))
    examples = Examples(copy / "set")
    for passage in shown:
        row = rows(60)[examples.column("line")[passage.document] - 1]
        assert passage.text == f"<s>User: {row['question']}\n\nAssistant: {row['answer']}</s>"
    first = int(examples.first_tokens[shown[0].document])
    tokens = np.memmap(copy / "set.bin", np.uint16, "r+")
    tokens[first + 5] += 1
    tokens.flush()
    (fault,) = audit(tmp_path / "run").faults
    assert str(fault.where).startswith(f"step 2, sample {shown[0].sample}: conversations: {copy / 'set'}.bin examples ")
    assert f"{copy / 'set'}.bin (corpus {shown[0].corpus}) was changed" in str(fault.found)
    with (copy / "set.targets").open("r+b") as targets:
        targets.write(b"\xff")
    (fault,) = audit(tmp_path / "run").faults
    assert fault.where == copy / "set.targets"


def _line(passage: dict[str, Any]) -> str:
    lines: list[str] = Path(passage["file"]).read_text(encoding="utf-8").splitlines()
    return lines[int(passage["line"]) - 1]


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Path], object], str]] = {
    "another tokenizer": (
        {},
        lambda folder: _replace(folder / "set.json", '"fingerprint": "', '"fingerprint": "0'),
        "made with another tokenizer",
    ),
    "a file is missing": ({}, lambda folder: (folder / "set.targets").unlink(), "not a set of conversations"),
    "no such set": ({}, lambda folder: (folder / "set.idx").unlink(), "set.idx"),
    "an example is longer": ({"data__sequence_length": 64}, lambda folder: None, "longer than a sequence"),
    "a small vocabulary": (
        {"model__vocabulary_size": 256},
        lambda folder: None,
        "more tokens than the model",
    ),
    "nothing is held out": ({"data__held_out_share": 0.001}, lambda folder: None, "too few conversations to hold"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_before_any_process_starts(what: str, folder: Path, tmp_path: Path) -> None:
    overrides, damage, said = REFUSED[what]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(DsmathError, match=said):
        open_inputs(sft_run(copy, tmp_path / "run", **overrides), None)


def test_a_run_does_not_go_on_with_another_packing(folder: Path, undisturbed: Path) -> None:
    run = sft_run(folder, undisturbed, data__conversations__packing="best-fit")
    with pytest.raises(ConfigError, match=r"another data\.conversations\.packing"):
        open_inputs(run, newest_checkpoint(Path(run.output)))


def test_a_run_does_not_go_on_with_another_set(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    small_set(tmp_path, 61, sequence_length=LENGTH)
    run = sft_run(tmp_path, undisturbed)
    with pytest.raises(DataError, match="conversations have changed since the run started"):
        open_inputs(run, newest_checkpoint(Path(run.output)))


def test_a_set_that_was_moved_is_the_same_set(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = sft_run(Path(shutil.copytree(folder, tmp_path / "copy")), undisturbed)
    assert open_inputs(run, newest_checkpoint(Path(run.output))).state.step == 6


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_from_base_to_instruct_to_a_model_that_others_load(folder: Path, tmp_path: Path) -> None:
    """Pretraining's last checkpoint, fine-tuned, exported: its chat template writes what was trained on."""
    from transformers import AutoTokenizer, GenerationConfig

    base, instruct, out = tmp_path / "base", tmp_path / "instruct", tmp_path / "out"
    inputs = Path(shutil.copytree(folder, tmp_path / "inputs"))
    write_corpora(inputs)
    run_ranks(1, train_run, small_run(inputs, base, schedule__steps=3, model__max_position_embeddings=LENGTH))
    tuned = sft_run(inputs, instruct, model__initial_weights=str(base), schedule__steps=3)
    run_ranks(1, train_run, tuned)
    assert [row["step"] for row in rows_of(instruct)] == [1, 2, 3]
    export(instruct, out, gate=False)
    tokenizer, examples = AutoTokenizer.from_pretrained(out), Examples(inputs / "set")
    assert GenerationConfig.from_pretrained(out).eos_token_id == tokenizer.eos_token_id
    for example, row in enumerate(rows(60)):
        asked = [{"role": "user", "content": row["question"]}]
        ids, is_target = examples.read(example)
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert prompt == ids[: is_target.tolist().index(True)].tolist()
        said = [*asked, {"role": "assistant", "content": row["answer"]}]
        assert tokenizer.apply_chat_template(said, tokenize=False) == tokenizer.decode(ids.tolist())
