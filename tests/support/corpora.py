"""What a run reads, in miniature: a tokenizer, two corpora made with it, and a run file over them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.config.source import write
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from tests.support.runs import tree
from tests.support.small_tokenizer import TEXT, write_small_tokenizer

VOCABULARY = 320  # the small tokenizer's words, and rows beyond them as the paper's model has
DOCUMENTS = 60


def write_inputs(folder: Path) -> Path:
    """Write `folder`/tokenizer, and the corpora of `tests.support.runs` as `folder`/data/NAME.{bin,idx,json}."""
    write_small_tokenizer(folder / "tokenizer")
    write_corpora(folder)
    return folder


def write_corpora(folder: Path) -> None:
    """Write both corpora with the tokenizer in `folder`: a few lines, over and over, so that they can be learned."""
    draw = Random(3)
    texts = {
        "mathematics": ["".join(f"{n} + {n} = {2 * n}\n" for n in _numbers(draw)) for _ in range(DOCUMENTS)],
        "code": [TEXT * draw.randint(1, 3) for _ in range(DOCUMENTS)],
    }
    for name, documents in texts.items():
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        tokenize([lines], folder / "tokenizer", folder / "data" / name)


def inputs_tree(inputs: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    """The small run over these inputs into `output`, overrides as in `tests.support.runs.tree`."""
    values = tree(model__vocabulary_size=VOCABULARY, data__tokenizer=str(inputs / "tokenizer"), output=str(output))
    tree_with(values, schedule__steps=9, checkpoint__every_steps=3, validation__every_steps=4)
    for corpus in values["data"]["corpora"]:
        corpus["paths"] = [str(inputs / "data" / corpus["name"])]
    return tree_with(values, **overrides)


def tree_with(values: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """`values` with keys replaced in place, `parallel__tensor=2`; a list's place is its number."""
    for key, value in overrides.items():
        node: Any = values
        *parents, last = key.split("__")
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[last] = value
    return values


def small_run(inputs: Path, output: Path, **overrides: Any) -> RunConfig:
    """The same as the product reads it."""
    return RunConfig.model_validate_json(json.dumps(inputs_tree(inputs, output, **overrides)))


def write_run_file(inputs: Path, output: Path, path: Path, **overrides: Any) -> Path:
    """The same as a run file at `path`."""
    path.write_text(write(inputs_tree(inputs, output, **overrides)), encoding="utf-8")
    return path


def _numbers(draw: Random) -> range:
    first = draw.randint(1, 9)
    return range(first, first + draw.randint(2, 5))
