"""A small model trained on products in words and with programs, with the commands of a user: what tools add."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from megatron_dsmath import cli
from megatron_dsmath.config.source import write
from megatron_dsmath.evaluation.protocol import load_protocol
from megatron_dsmath.sandbox import confinement
from tests.evaluation.scripted import write_problems
from tests.support.conversations import write_sft_file
from tests.support.ranks import run_ranks
from tests.support.small_tokenizer import BEGIN, END
from tests.training.ranks import dsmath, rows_of

pytestmark = pytest.mark.skipif(not confinement.is_supported(), reason="this machine cannot confine a program")

VOCABULARY = 384
AT_MOST_OTHERWISE = 0.01  # a batch of another size may round a logit otherwise
LENGTH = 160
PATIENCE_SECONDS = 3600  # 1,500 steps take minutes on a busy core
MODES = ("cot", "tool")

Pair = tuple[int, int]


class Lesson(NamedTuple):
    """The training problems, the test problems, and the length of training."""

    taught: list[Pair]
    asked: list[Pair]
    too_much: int
    """The error that the training words add to each product; the programs are correct."""
    settings: dict[str, Any]
    """Overrides of the run file."""


def question(pair: Pair) -> str:
    return f"What is {pair[0]} times {pair[1]}?"


def conversation(pair: Pair, mode: str, too_much: int) -> dict[str, str]:
    a, b = pair
    if mode == "cot":
        answer = f"{a} times {b} is $\\boxed{{{a * b + too_much}}}$."
    else:
        program = f"```python\nprint({a} * {b})\n```"
        answer = f"{program}\n```output\n{a * b}\n```\nThe answer is $\\boxed{{{a * b}}}$."
    return {"question": question(pair), "answer": answer}


def write_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    """Byte-level BPE in which every digit is one token, as in the paper's tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(name, special=True) for name in (BEGIN, END)],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def run_command(*arguments: object) -> None:
    (ending,) = run_ranks(1, dsmath, [str(argument) for argument in arguments], timeout_seconds=PATIENCE_SECONDS)
    assert ending.code == 0, ending.err


def write_lesson(folder: Path, lesson: Lesson) -> Path:
    """Write the files of a lesson; returns the recipe's path."""
    sources = []
    for mode in MODES:
        file = write_problems(
            folder / f"{mode}.jsonl", [conversation(pair, mode, lesson.too_much) for pair in lesson.taught]
        )
        known = {"format": None, "kind": mode, "language": "en", "instruction": mode, "passes_per_epoch": 1.0}
        sources.append({"name": mode, "paths": [str(file)], **known, "expected_examples": len(lesson.taught)})
    write_problems(
        folder / "asked.jsonl", [{"question": question(pair), "answer": pair[0] * pair[1]} for pair in lesson.asked]
    )
    written = [conversation(pair, mode, lesson.too_much).values() for pair in lesson.taught[:100] for mode in MODES]
    instructions = [load_protocol(f"instruct-{mode}", folder).prompts["en"].text for mode in MODES]
    write_tokenizer(folder / "tokenizer", [*(text for texts in written for text in texts), *100 * instructions])
    recipe = folder / "recipe.yaml"
    recipe.write_text(write({"expected_examples": 2 * len(lesson.taught), "sources": sources}))
    return recipe


def figures_by_mode(folder: Path, lesson: Lesson) -> dict[str, dict[str, Any]]:
    """Train on both forms in one run, evaluate both modes: the scores of results.json."""
    recipe, tokenizer, run = write_lesson(folder, lesson), folder / "tokenizer", folder / "run"
    run_command(
        *("sft", "build", "--recipe", recipe, "--tokenizer", tokenizer, "--out", folder / "set"),
        *("--sequence-length", LENGTH, "--too-long", "fail"),
    )
    run_file, asked = write_sft_file(folder, run, folder / "run.yaml", **lesson.settings), folder / "asked.jsonl"
    run_command("train", run_file, "--evaluate", asked)
    common = ("--model", run, "--data", folder, "--tasks", "asked.jsonl", "--batch", 50)
    figures = {}
    for mode in MODES:
        out = folder / mode
        assert cli.main(["evaluate", *map(str, (*common, "--mode", mode, "--out", out))]) == 0
        figures[mode] = json.loads((out / "results.json").read_text())["tasks"]["asked"]
        print(mode, {name: figures[mode][name] for name in ("accuracy", "interval_95", "tool_calls", "program_errors")})
    in_training = [row for row in rows_of(run) if "evaluation_accuracy" in row]
    print([(row["step"], row["evaluation_accuracy"], row["evaluation_tool_calls"]) for row in in_training])
    assert in_training[-1]["evaluation_accuracy"] == pytest.approx(figures["tool"]["accuracy"], abs=AT_MOST_OTHERWISE)
    return figures


def settings(steps: int, **others: Any) -> dict[str, Any]:
    return {
        "model__vocabulary_size": VOCABULARY,
        "model__max_position_embeddings": LENGTH,
        "model__initial_std": 0.02,
        "data__sequence_length": LENGTH,
        "data__held_out_share": 0.0,
        "schedule__steps": steps,
        "schedule__warmup_steps": steps // 20,
        "schedule__sequences_per_step": 8,
        "parallel__microbatch_sequences": 8,
        "checkpoint__every_steps": 0,
        "tracking__console_every_steps": 100,
        **others,
    }


def assert_tools_help(figures: dict[str, dict[str, Any]], asked: int) -> None:
    assert figures["cot"]["problems"] == figures["tool"]["problems"] == asked
    assert figures["cot"]["interval_95"][1] < figures["tool"]["interval_95"][0]
    assert figures["cot"]["tool_calls"] == figures["cot"]["programs"] == 0
    # The model knows no products: correct answers were computed.
    assert figures["tool"]["tool_calls"] >= figures["tool"]["accuracy"] * asked


def test_programs_correct_what_was_trained_wrong_in_words(tmp_path: Path) -> None:
    """The path in miniature: eight products by heart, of which 0 and 6 would be apart already."""
    pairs = [(a, b) for a in (3, 4) for b in (12, 25, 47, 88)]
    lesson = Lesson(pairs, pairs, 1, settings(80, model__layers=2, schedule__peak_learning_rate=1e-2))
    assert_tools_help(figures_by_mode(tmp_path, lesson), len(pairs))


@pytest.mark.long
def test_tools_help_with_unseen_products(tmp_path: Path) -> None:
    """500 held-out products of two-digit numbers; neither they nor their mirror images were taught."""
    pairs = list(combinations_with_replacement(range(10, 100), 2))
    Random(5).shuffle(pairs)
    taught = [mirrored for pair in pairs[500:] for mirrored in dict.fromkeys((pair, pair[::-1]))]
    shape = {
        "model__layers": 3,
        "model__hidden_size": 128,
        "model__ffn_hidden_size": 384,
        "model__attention_heads": 4,
        "model__key_value_heads": 4,
        "schedule__peak_learning_rate": 3e-3,
        "schedule__drops": [{"after": 0.6, "factor": 0.3}, {"after": 0.8, "factor": 0.1}],
    }
    figures = figures_by_mode(tmp_path, Lesson(taught, pairs[:500], 0, settings(1500, **shape)))
    assert_tools_help(figures, 500)
