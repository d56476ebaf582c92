"""Small sets of examples for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.config.sections import ConversationsConfig, DataConfig
from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from megatron_dsmath.data.sft.conversation_plan import plan_conversations
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.sources import ConversationSource
from tests.support.small_tokenizer import write_small_tokenizer

Policy = Literal["next-fit", "best-fit", "split"]
TOOL = "```python\nprint({0})\n```\n```output\n{0}\n```\nIt is {0}."


def rows(count: int) -> list[dict[str, Any]]:
    """Conversations of all kinds and of many lengths, each with its number."""
    texts = ["x" * (7 * number % 60) + f" {number}" for number in range(count)]
    return [
        {
            "question": f"第{number}题：{text}" if number % 3 == 0 else f"Question {number}: {text}",
            "answer": (text, f"```python\n{text}\n```", TOOL.format(number))[number % 3],
            "topic": f"topic {number % 4}",
        }
        for number, text in enumerate(texts)
    ]


def write_rows(path: Path, content: list[dict[str, Any]]) -> Path:
    """A JSONL file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def small_set(folder: Path, count: int = 60, *, passes: tuple[float, ...] = (1.0, 1.0), **options: Any) -> Examples:
    """A set of two sources, `count` examples in the first and a third as many in the second."""
    tokenizer = write_small_tokenizer(folder / "tokenizer")
    counts = (count, count // 3)
    sources = [
        ConversationSource(name, (write_rows(folder / f"{name}.jsonl", rows(size)),), passes_per_epoch=often)
        for name, size, often in zip(("first", "second"), counts, passes, strict=True)
    ]
    build(sources, tokenizer, folder / "set", Options(**{"sequence_length": 256, **options}))
    return Examples(folder / "set")


def open_set(
    examples: Examples, sequence_length: int, seed: int, held_out_share: float = 0.0, packing: Policy = "next-fit"
) -> PackedBatches:
    """The batches of a run from the set."""
    config = DataConfig(
        tokenizer="tokenizer",
        sequence_length=sequence_length,
        attend_across_documents=False,
        corpora=(),
        conversations=ConversationsConfig(prefix=str(examples.prefix), packing=packing),
        held_out_share=held_out_share,
    )
    return PackedBatches(plan_conversations(config, seed, examples), examples, vocabulary_size=320)
