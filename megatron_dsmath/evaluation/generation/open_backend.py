"""Open a model for evaluation: one of three backends, the tokenizer, and the fingerprint of the weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megatron_dsmath.checkpoint.huggingface_config import CONFIG
from megatron_dsmath.checkpoint.tokenizer_files import load_from
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.checkpoint.weights import open_weights, weights_sha256
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.errors import DependencyError, TokenizerError, UsageError
from megatron_dsmath.evaluation.generation.cached_decoder import CachedDecoder
from megatron_dsmath.evaluation.generation.token_batch import (
    Backend,
    CachedForward,
    Completion,
    ContinuationDecoder,
    GenerationSettings,
    Request,
    generate_batch,
)

BACKENDS = ("own", "transformers", "vllm")


class Model(NamedTuple):
    """A model that answers problems."""

    backend: Backend
    tokenizer: Tokenizer
    fingerprint: str
    """sha256 of the checkpoint's manifest, or of the Hugging Face folder's weights and configuration."""


def open_model(path: Path, backend: str) -> Model:
    """Open the model at `path`: a Hugging Face folder, or, with the backend `own`, a checkpoint or a run's directory.

    Raises UsageError and DependencyError if the backend cannot open it, TokenizerError if it has no tokenizer, and what
    opening the weights raises.
    """
    if backend not in BACKENDS:
        raise UsageError("there is no such backend", where="--backend", found=backend, expected=", ".join(BACKENDS))
    if backend != "own":
        _require_package_and_folder(backend, path)
    weights = open_weights(path)
    try:
        tokenizer = _load_tokenizer(weights)
        return Model(_open_backend(path, backend, weights, tokenizer), tokenizer, weights_sha256(path))
    finally:
        weights.close()


def open_own_backend(weights: WeightReader) -> tuple[Backend, Tokenizer]:
    """Our own decoder with open weights, and their tokenizer. Raises TokenizerError if they have none."""
    tokenizer = _load_tokenizer(weights)
    return _open_backend(weights.path, "own", weights, tokenizer), tokenizer


class ForwardBackend:
    """A `Backend` with our own generation loop, for our own decoder or transformers."""

    def __init__(self, name: str, forward: CachedForward, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self.name = name
        self._forward: CachedForward | None = forward
        self._decoder, self._ends = ContinuationDecoder(tokenizer), ends

    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Completion]:
        """See `Backend`."""
        assert self._forward is not None
        return generate_batch(self._forward, self._decoder, self._ends, requests, settings)

    def close(self) -> None:
        """See `Backend`."""
        self._forward = None


class HuggingFaceForward:
    """A `token_batch.CachedForward` with transformers, in the precision of the stored weights."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the folder; code in it is not executed."""
        from transformers import AutoModelForCausalLM

        self.device = device
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        self._model.to(device).eval()
        self.context_length = int(self._model.config.max_position_embeddings)
        self._cache: Any = None
        self._mask = self._positions = torch.empty(0)

    def begin(self, ids: torch.Tensor, padding: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """See `CachedForward`."""
        columns = torch.arange(ids.size(1), device=self.device)
        self._cache = None
        self._mask = (columns >= padding[:, None]).long()
        self._positions = (columns - padding[:, None]).clamp(min=0)
        return self._logits(ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See `CachedForward`."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._positions = self._positions[:, -1:] + 1
        return self._logits(ids[:, None])

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


class VllmBackend:
    """A `Backend`. vLLM chooses which prompts share a batch, which can change the last digit of a logit."""

    name = "vllm"

    def __init__(self, folder: Path, ends: frozenset[int]) -> None:
        self._vllm: Any = import_module("vllm")
        self._ends = ends
        self._model: Any = self._vllm.LLM(model=str(folder), trust_remote_code=False)

    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Completion]:
        """See `Backend`."""
        context = int(self._model.llm_engine.model_config.max_model_len)
        limits = [min(settings.new_tokens, context - len(request.ids)) for request in requests]
        completions: list[Completion] = [Completion([], "length") for _ in requests]
        indices = [index for index, limit in enumerate(limits) if limit > 0]
        parameters = [
            self._vllm.SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=limits[index],
                stop=list(settings.stop),
                stop_token_ids=sorted(self._ends),
                include_stop_str_in_output=True,
                seed=requests[index].seed,
            )
            for index in indices
        ]
        prompts = [{"prompt_token_ids": list(requests[index].ids)} for index in indices]
        for index, result in zip(indices, self._model.generate(prompts, parameters, use_tqdm=False), strict=True):
            completions[index] = self._completion(result.outputs[0])
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


def _open_backend(path: Path, backend: str, weights: WeightReader, tokenizer: Tokenizer) -> Backend:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The ids that end an answer: the generation settings may name several.
    named = weights.special_token_ids.get("eos_token_id", [])
    ends = frozenset((*(named if isinstance(named, list) else [named]), tokenizer.end_of_document))
    if backend == "vllm":
        return VllmBackend(path, ends)
    forward: CachedForward = CachedDecoder(weights, device) if backend == "own" else HuggingFaceForward(path, device)
    return ForwardBackend(backend, forward, tokenizer, ends)


def _require_package_and_folder(backend: str, path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        raise DependencyError(
            f"{backend} is not installed",
            where="--backend",
            expected=backend,
            fix=f"pip install 'megatron_dsmath[{'hf' if backend == 'transformers' else backend}]', or --backend own",
        )
    if not (path / CONFIG).is_file():
        raise UsageError(
            f"the backend {backend} reads only Hugging Face folders",
            where="--model",
            found=path,
            expected=f"a folder with {CONFIG}",
            fix="create one with dsmath export-hf, or use --backend own",
        )


def _load_tokenizer(weights: WeightReader) -> Tokenizer:
    tokenizer = load_from(weights.tokenizer_files)
    if tokenizer is None:
        raise TokenizerError(
            "the model has no tokenizer",
            where=weights.path,
            found="weights without a tokenizer",
            expected="a tokenizer.json or a SentencePiece .model beside the weights",
            fix="evaluate a checkpoint that was saved with its tokenizer, or copy the tokenizer into the folder",
        )
    return tokenizer
