"""A model that answers from a script: what decides a score can be seen without weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.evaluation.evaluate import Evaluation
from megatron_dsmath.evaluation.generation.open_backend import Model
from megatron_dsmath.evaluation.generation.token_batch import Completion, Continuation, Decoding, Request
from tests.support.small_tokenizer import write_small_tokenizer

Script = Callable[[str, int], str]
"""All that the model has read, and its seed, to what it would write if nothing stopped it."""


class ScriptedBackend:
    """A `Backend`; `calls` holds what it was asked, `asked` the texts it read."""

    name = "scripted"

    def __init__(self, tokenizer: Tokenizer, script: Script) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.calls: list[tuple[Sequence[Request], Decoding]] = []

    @property
    def asked(self) -> list[str]:
        return [self.tokenizer.decode(request.ids) for requests, _ in self.calls for request in requests]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        self.calls.append((requests, decoding))
        return [self._completion(request, decoding) for request in requests]

    def _completion(self, request: Request, decoding: Decoding) -> Completion:
        continuation = Continuation(self.tokenizer)
        ids: list[int] = []
        for token in self.tokenizer.encode(self.script(self.tokenizer.decode(request.ids), request.seed)):
            if len(ids) == decoding.new_tokens:
                return Completion(ids, "length")
            ids.append(token)
            if continuation.stops(ids, decoding.stop):
                return Completion(ids, "stop")
        return Completion(ids, "end of text")

    def close(self) -> None:
        pass


def scripted_model(folder: Path, script: Script) -> Model:
    """A model with the small tokenizer, which is written into `folder`."""
    tokenizer = load_tokenizer(write_small_tokenizer(folder))
    return Model(ScriptedBackend(tokenizer, script), tokenizer, "of the script")


def write_problems(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """One's own problems."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def evaluation_of(folder: Path, protocol: str, **changes: Any) -> Evaluation:
    """An evaluation of problems.jsonl in `folder`."""
    values: dict[str, Any] = {"model": folder / "model", "data": folder, "tasks": ("problems.jsonl",)}
    return Evaluation(**{**values, "protocol": protocol, "out": folder / "out", **changes})


def rows_of(out: Path, task: str = "problems") -> list[dict[str, Any]]:
    """The rows that an evaluation wrote, in the order of the problems."""
    rows = [json.loads(line) for line in (out / f"outputs/{task}.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: (row["row"], row["sample"]))
