"""The adapter to vLLM, with a stand-in that has the fields of its documentation: it was not run with a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_dsmath.evaluation.generation.open_backend import VllmBackend
from megatron_dsmath.evaluation.generation.token_batch import Completion, GenerationSettings, Request

END = 1


class StandIn:
    """Returns given outputs and records the requests."""

    asked: tuple[list[dict[str, Any]], list[dict[str, Any]]]

    def __init__(self, outputs: list[SimpleNamespace]) -> None:
        self.outputs = outputs
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=16))

    def generate(self, prompts: Any, settings: Any, use_tqdm: bool) -> list[SimpleNamespace]:
        self.asked = prompts, settings
        return [SimpleNamespace(outputs=[output]) for output in self.outputs]


def output(ids: list[int], finish: str, stop: str | int | None = None) -> SimpleNamespace:
    return SimpleNamespace(token_ids=ids, finish_reason=finish, stop_reason=stop)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    model = StandIn(
        [
            output([7, 8, END], "stop"),
            output([7, 9], "stop", "```output"),
            output([7], "length"),
            output([END], "stop", END),
        ]
    )
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **_: model, SamplingParams=dict))
    return model


def test_ends_are_distinguished_and_a_full_context_is_not_sent(stand_in: StandIn) -> None:
    requests = [Request([5] * length, length) for length in (3, 4, 15, 16, 2)]
    completions = VllmBackend(Path("model"), frozenset([END])).generate(
        requests, GenerationSettings(8, ("```output",), 0.7, 0.9)
    )
    assert completions == [
        Completion([7, 8], "end of text"),
        Completion([7, 9], "stop"),
        Completion([7], "length"),
        Completion([], "length"),
        Completion([], "end of text"),
    ]
    prompts, settings = stand_in.asked
    assert [len(prompt["prompt_token_ids"]) for prompt in prompts] == [3, 4, 15, 2]
    assert [setting["max_tokens"] for setting in settings] == [8, 8, 1, 8]
    assert [setting["seed"] for setting in settings] == [3, 4, 15, 2]
    assert settings[0]["include_stop_str_in_output"] and settings[0]["stop_token_ids"] == [END]
