"""vLLM of a Hugging Face folder: an extra, for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from megatron_dsmath.evaluation.generation.backend import Completion, Decoding, Request


class VllmBackend:
    """A `Backend`. Which prompts share a batch is vLLM's choice, and so is the last digit of a logit."""

    name = "vllm"

    def __init__(self, folder: Path, ends: frozenset[int]) -> None:
        self._vllm: Any = import_module("vllm")
        self._ends = ends
        self._model: Any = self._vllm.LLM(model=str(folder), trust_remote_code=False)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """See `Backend`."""
        context = int(self._model.llm_engine.model_config.max_model_len)
        room = [min(decoding.new_tokens, context - len(request.ids)) for request in requests]
        completions: list[Completion] = [Completion([], "length") for _ in requests]
        asked = [number for number, tokens in enumerate(room) if tokens > 0]
        settings = [
            self._vllm.SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_tokens=room[number],
                stop=list(decoding.stop),
                stop_token_ids=sorted(self._ends),
                include_stop_str_in_output=True,
                seed=requests[number].seed,
            )
            for number in asked
        ]
        prompts = [{"prompt_token_ids": list(requests[number].ids)} for number in asked]
        for number, answer in zip(asked, self._model.generate(prompts, settings, use_tqdm=False), strict=True):
            completions[number] = self._completion(answer.outputs[0])
        return completions

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        if output.finish_reason == "length":
            return Completion(ids, "length")
        if ids and ids[-1] in self._ends:
            return Completion(ids[:-1], "end of text")
        return Completion(ids, "stop" if isinstance(output.stop_reason, str) else "end of text")

    def close(self) -> None:
        """See `Backend`."""
        self._model = None
