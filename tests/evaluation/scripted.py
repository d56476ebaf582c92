"""A model that answers from a script, so that an evaluation needs no weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.evaluation.evaluate import EvaluationSettings
from megatron_dsmath.evaluation.generation.open_backend import Model
from megatron_dsmath.evaluation.generation.token_batch import (
    Completion,
    ContinuationDecoder,
    GenerationSettings,
    Request,
)
from tests.support.small_tokenizer import write_small_tokenizer

Script = Callable[[str, int], str]
"""Maps the text that the model has read and its seed to the text that it generates without stop texts or limits."""


class ScriptedBackend:
    """A `Backend`; `calls` holds its requests, `prompts_read` their texts."""

    name = "scripted"

    def __init__(self, tokenizer: Tokenizer, script: Script) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.calls: list[tuple[Sequence[Request], GenerationSettings]] = []

    @property
    def prompts_read(self) -> list[str]:
        return [self.tokenizer.decode(request.ids) for requests, _ in self.calls for request in requests]

    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Completion]:
        self.calls.append((requests, settings))
        return [self._completion(request, settings) for request in requests]

    def _completion(self, request: Request, settings: GenerationSettings) -> Completion:
        decoder = ContinuationDecoder(self.tokenizer)
        ids: list[int] = []
        for token in self.tokenizer.encode(self.script(self.tokenizer.decode(request.ids), request.seed)):
            if len(ids) == settings.new_tokens:
                return Completion(ids, "length")
            ids.append(token)
            if decoder.ends_with_stop(ids, settings.stop):
                return Completion(ids, "stop")
        return Completion(ids, "end of text")

    def close(self) -> None:
        pass


def scripted_model(folder: Path, script: Script) -> Model:
    """A model with the small tokenizer, which is written into `folder`."""
    tokenizer = load_tokenizer(write_small_tokenizer(folder))
    return Model(ScriptedBackend(tokenizer, script), tokenizer, "of the script")


def write_problems(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a file of custom problems."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def evaluation_of(folder: Path, protocol: str, **changes: Any) -> EvaluationSettings:
    """An evaluation of problems.jsonl in `folder`."""
    values: dict[str, Any] = {"model": folder / "model", "data": folder, "tasks": ("problems.jsonl",)}
    return EvaluationSettings(**{**values, "protocol": protocol, "out": folder / "out", **changes})


def rows_of(out: Path, task: str = "problems") -> list[dict[str, Any]]:
    """The rows of an evaluation, in the order of the problems."""
    rows = [json.loads(line) for line in (out / f"outputs/{task}.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: (row["row"], row["sample"]))
