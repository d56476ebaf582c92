"""A recipe in miniature: a run on two corpora, a set, fine-tuning, two exports and an evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_dsmath.config.source import write
from tests.data.sft.sets import rows, write_rows
from tests.support.conversations import LENGTH, sft_tree
from tests.support.corpora import inputs_tree

NAMES = ("base", "base_model", "set", "tuned", "tuned_model", "scores")
PROBLEMS = 4


class Toy:
    """The files of the recipe in a folder, and the recipe itself as values."""

    def __init__(self, inputs: Path, folder: Path) -> None:
        """`inputs`: corpora and a tokenizer (`tests.support.corpora.write_inputs`)."""
        self.folder, self.path = folder, folder / "recipe.yaml"
        for name in ("tokenizer", "data"):
            shutil.copytree(inputs / name, folder / name)
        write_rows(folder / "rows.jsonl", rows(40))
        problems = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(PROBLEMS)]
        write_rows(folder / "problems.jsonl", problems)
        self.runs: dict[str, dict[str, Any]] = {
            "base": inputs_tree(folder, folder / "base", schedule__steps=6, validation__every_steps=3),
            "tuned": sft_tree(folder, folder / "tuned", model__max_position_embeddings=LENGTH),
        }
        self.source: dict[str, Any] = {
            **{"name": "rows", "paths": [str(folder / "rows.jsonl")], "format": None, "kind": None, "language": None},
            **{"instruction": None, "passes_per_epoch": 1.0, "expected_examples": None},
        }
        self.stages: list[dict[str, Any]] = [
            {"name": "base", "train": {"run": self._at("base.yaml")}},
            {"name": "base_model", "export": {"weights": "base", "out": self._at("base_model"), "gate": False}},
            {
                "name": "set",
                "sft_build": {
                    **{"recipe": self._at("sources.yaml"), "tokenizer": "base", "out": self._at("set")},
                    "sequence_length": LENGTH,
                },
            },
            {
                "name": "tuned",
                "train": {
                    **{"run": self._at("tuned.yaml"), "initial_weights": "base_model"},
                    **{"tokenizer": "base", "conversations": "set"},
                },
            },
            {"name": "tuned_model", "export": {"weights": "tuned", "out": self._at("tuned_model"), "gate": False}},
            {
                "name": "scores",
                "evaluate": {
                    **{"model": "tuned_model", "data": str(folder), "tasks": ["problems.jsonl"]},
                    **{"protocol": "instruct-cot", "batch": 1, "out": self._at("scores")},
                },
            },
        ]
        self.write()

    def write(self) -> Path:
        """Write the recipe, the run files and the sources as they are now; returns the recipe's path."""
        for name, values in self.runs.items():
            (self.folder / f"{name}.yaml").write_text(write(values), encoding="utf-8")
        sources = {"expected_examples": None, "sources": [self.source]}
        (self.folder / "sources.yaml").write_text(write(sources), encoding="utf-8")
        self.path.write_text(write({"stages": self.stages}), encoding="utf-8")
        return self.path

    def section(self, name: str) -> dict[str, Any]:
        """The values of the stage `name` below its kind."""
        (stage,) = [stage for stage in self.stages if stage["name"] == name]
        (section,) = [value for value in stage.values() if isinstance(value, dict)]
        return section

    def line_of(self, text: str, *, occurrence: int = 0) -> int:
        """The line of the recipe on which a text is."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [number for number, line in enumerate(lines, 1) if text in line][occurrence]

    def _at(self, name: str) -> str:
        return str(self.folder / name)


def results_of(folder: Path) -> dict[str, Any]:
    """What two equal recipes have in common: weights, the bytes of the set, and the answers."""
    found: dict[str, Any] = {}
    files = [folder / model / "model.safetensors" for model in ("base_model", "tuned_model")]
    files += [folder / f"set.{ending}" for ending in ("bin", "idx", "targets", "labels")]
    for file in files:
        found[str(file.relative_to(folder))] = file.read_bytes()
    found["answers"] = (folder / "scores/outputs/problems.jsonl").read_bytes()
    found["scores"] = json.loads((folder / "scores/results.json").read_bytes())["tasks"]
    return found


def commands_by_hand(toy: Toy) -> list[Sequence[str]]:
    """The commands that a user without a recipe types, written by hand."""
    at = toy._at
    build = f"sft build --recipe {at('sources.yaml')} --tokenizer {at('tokenizer')} --out {at('set')}"
    ask = f"evaluate --model {at('tuned_model')} --data {toy.folder} --tasks problems.jsonl --mode cot --batch 1"
    lines = (
        f"train {at('base.yaml')}",
        f"export-hf {at('base')} --out {at('base_model')} --no-gate",
        f"{build} --sequence-length {LENGTH}",
        f"train {at('tuned.yaml')} --set model.initial_weights={at('base_model')}",
        f"export-hf {at('tuned')} --out {at('tuned_model')} --no-gate",
        f"{ask} --out {at('scores')}",
    )
    return [line.split() for line in lines]
