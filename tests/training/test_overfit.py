"""A model that overfits a few conversations repeats them and stops where they end."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.sources import ConversationSource
from tests.support.conversations import LENGTH, sft_run
from tests.support.ranks import run_ranks
from tests.support.small_tokenizer import write_small_tokenizer
from tests.training.ranks import rows_of, train_run

pytestmark = pytest.mark.long

CONVERSATIONS = 64
STEPS = 400


class Said(NamedTuple):
    """What the model says in place of an example's targets, and what it foretells of what a tool says."""

    answer: list[int]
    expected: list[int]
    foretold_outputs: int
    outputs: int


def conversation(number: int) -> dict[str, Any]:
    """In turn a chain of thought in Chinese and in English, a program, and a program with its output."""
    a, b = 11 + number, (number * 37) % 89
    program = f"```python\nprint({a} + {b})\n```"
    tool = f"{program}\n```output\n{a + b}\n```\nThe answer is $\\boxed{{{a + b}}}$."
    answers = (f"{a}加{b}等于{a + b}。", f"{a} and {b} make {a + b}.", program, tool)
    questions = (f"{a}加{b}是多少？", f"What is {a} + {b}?", f"Write: {a} + {b}", f"Compute {a} + {b}.")
    return {"question": questions[number % 4], "answer": answers[number % 4]}


def said(model: Any, ids: list[int], is_target: list[bool], end: int) -> Said:
    """Speak every run of targets greedily; what is not learned is given, as a prompt or by a tool.

    The last run must be ended by the model itself: it may generate as many tokens again.
    """
    context: list[int] = []
    answer: list[int] = []
    foretold = outputs = first = 0
    for learned, run in groupby(is_target):
        count = len(list(run))
        own = ids[first : first + count]
        is_last = first + count == len(ids)
        if learned:
            answer += spoken(model, context, end, 2 * count if is_last else count)
        elif context:
            outputs += 1
            foretold += spoken(model, context, end, count) == own
        context += own
        first += count
    expected = [token for token, learned in zip(ids, is_target, strict=True) if learned]
    return Said(answer, expected, foretold, outputs)


def spoken(model: Any, context: list[int], end: int, most: int) -> list[int]:
    """What transformers generates greedily."""
    tokens = torch.tensor([context])
    with torch.no_grad():
        ids = model.generate(tokens, max_new_tokens=most, do_sample=False, attention_mask=torch.ones_like(tokens))
    new: list[int] = ids[0, len(context) :].tolist()
    return new


def test_64_conversations_are_said_again_with_their_ends_and_after_what_a_tool_said(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = write_small_tokenizer(tmp_path / "tokenizer")
    lines = tmp_path / "conversations.jsonl"
    lines.write_text("".join(json.dumps(conversation(number)) + "\n" for number in range(CONVERSATIONS)))
    build([ConversationSource("all", (lines,))], tokenizer, tmp_path / "set", Options(sequence_length=LENGTH))
    overfitting = {
        "model__hidden_size": 96,
        "model__ffn_hidden_size": 256,
        "model__initial_std": 0.05,
        "data__held_out_share": 0.0,
        "schedule__steps": STEPS,
        "schedule__warmup_steps": 20,
        "schedule__peak_learning_rate": 4e-3,
        "schedule__sequences_per_step": 8,
        "optimizer__weight_decay": 0.0,
        "parallel__microbatch_sequences": 4,
        "checkpoint__every_steps": 0,
    }
    run_ranks(1, train_run, sft_run(tmp_path, tmp_path / "run", **overfitting))
    print(f"loss {rows_of(tmp_path / 'run')[-1]['loss']:.5f}")
    export(tmp_path / "run", tmp_path / "out")
    model, examples = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), Examples(tmp_path / "set")
    end = model.generation_config.eos_token_id
    answers = []
    for example in range(CONVERSATIONS):
        ids, is_target = examples.read(example)
        answers.append(said(model, ids.tolist(), is_target.tolist(), end))
    assert {examples.names("kind")[kind] for kind in examples.column("kind")} == {"cot", "pot", "tool"}
    assert [one.answer for one in answers] == [one.expected for one in answers]
    assert all(one.answer[-1] == end for one in answers)
    assert sum(one.outputs for one in answers) == CONVERSATIONS // 4
    print(f"outputs foretold: {sum(one.foretold_outputs for one in answers)} of {CONVERSATIONS // 4}")
    assert sum(one.foretold_outputs for one in answers) == 0
