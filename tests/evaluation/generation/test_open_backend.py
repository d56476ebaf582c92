"""The backends on a small random LLaMA: their tokens equal those of transformers' own `generate`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from megatron_dsmath.checkpoint.from_huggingface import import_folder
from megatron_dsmath.errors import DependencyError, TokenizerError, UsageError
from megatron_dsmath.evaluation.generation.open_backend import Model, open_model
from megatron_dsmath.evaluation.generation.token_batch import Completion, GenerationSettings, Request
from tests.checkpoint.llama import edit_config, write_llama, write_llama_with_tokenizer

GREEDY = GenerationSettings(20, (), 0.0, 1.0)
PROMPTS = ("a", "the quick brown fox jumps over", "数学是科学", "x^2 + y^2 = z^2, and then some more of it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six query heads and two key-value heads in fp32: unequal sizes reveal a mix-up."""
    return write_llama_with_tokenizer(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module", params=["own", "own checkpoint", "transformers"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[Model]:
    path = folder
    if "checkpoint" in request.param:
        path = folder.with_name("checkpoint")
        import_folder(folder, path, gate=False)
    model = open_model(path, request.param.split()[0])
    yield model
    model.backend.close()


def asked(model: Model, prompts: Sequence[str], settings: GenerationSettings) -> list[Completion]:
    requests = [Request(model.tokenizer.encode(prompt), seed) for seed, prompt in enumerate(prompts)]
    return model.backend.generate(requests, settings)


def transformers_ids(folder: Path, ids: Sequence[int], new_tokens: int) -> list[int]:
    """The tokens of transformers' own loop after one prompt, without padding."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    output = model.generate(torch.tensor([list(ids)]), max_new_tokens=new_tokens, do_sample=False, pad_token_id=1)
    written: list[int] = output[0, len(ids) :].tolist()
    return written[: written.index(1)] if 1 in written else written


def test_a_padded_batch_equals_transformers_on_single_prompts(model: Model, folder: Path) -> None:
    completions = asked(model, PROMPTS, GREEDY)
    assert [completion.ids for completion in completions] == [
        transformers_ids(folder, model.tokenizer.encode(prompt), 20) for prompt in PROMPTS
    ]
    assert {completion.end for completion in completions} <= {"length", "end of text"}


def test_sampled_tokens_do_not_depend_on_the_rest_of_the_batch(model: Model) -> None:
    sampled = GenerationSettings(12, (), 1.0, 0.9)
    together = asked(model, PROMPTS, sampled)
    ids = model.tokenizer.encode(PROMPTS[2])
    assert model.backend.generate([Request(ids, 2)], sampled) == [together[2]]
    assert model.backend.generate([Request(ids, 77)], sampled) != [together[2]]


def test_own_and_transformers_draw_the_same_tokens(folder: Path) -> None:
    sampled = GenerationSettings(12, (), 1.0, 0.9)
    ours, others = (asked(open_model(folder, name), PROMPTS, sampled) for name in ("own", "transformers"))
    assert ours == others


def test_a_stop_text_ends_with_the_token_that_completes_it(model: Model) -> None:
    free = asked(model, PROMPTS, GREEDY)
    stop = model.tokenizer.decode(free[1].ids[4:6])
    stopped = asked(model, PROMPTS, GREEDY._replace(stop=(stop,)))
    assert stopped[1].end == "stop"
    assert stopped[1].ids == free[1].ids[: len(stopped[1].ids)]
    assert stop in model.tokenizer.decode(stopped[1].ids)
    assert stop not in model.tokenizer.decode(stopped[1].ids[:-1])


def test_the_end_of_text_token_is_not_in_the_completion(tmp_path: Path) -> None:
    folder = write_llama_with_tokenizer(tmp_path / "hf")
    free = asked(open_model(folder, "own"), PROMPTS[:2], GREEDY)
    end = next(token for token in free[0].ids if free[0].ids.index(token) > 0)
    edit_config(folder, eos_token_id=[1, end])
    settings = folder / "generation_config.json"
    settings.write_text(settings.read_text().replace('"eos_token_id": 1', f'"eos_token_id": [1, {end}]'))
    for name in ("own", "transformers"):
        ended = asked(open_model(folder, name), PROMPTS[:2], GREEDY)
        assert ended[0] == Completion(free[0].ids[: free[0].ids.index(end)], "end of text")


def test_generation_ends_at_the_context_and_a_full_context_gives_nothing(model: Model) -> None:
    ids = [40] * 64  # max_position_embeddings
    completions = model.backend.generate([Request(ids, 0), Request(ids[:60], 0), Request(ids[:3], 0)], GREEDY)
    assert [(len(completion.ids), completion.end) for completion in completions[:2]] == [(0, "length"), (4, "length")]
    assert completions[2] == model.backend.generate([Request(ids[:3], 0)], GREEDY)[0]


def test_weights_in_bf16_are_computed_in_bf16(tmp_path: Path) -> None:
    folder = write_llama_with_tokenizer(tmp_path / "hf", dtype=torch.bfloat16)
    completions = asked(open_model(folder, "own"), PROMPTS, GREEDY)
    assert all(completion.ids for completion in completions)


def test_a_fingerprint_depends_on_the_weights_and_not_on_the_path(tmp_path: Path) -> None:
    one, other = (write_llama_with_tokenizer(tmp_path / name) for name in ("a", "b"))
    assert open_model(one, "own").fingerprint == open_model(other, "own").fingerprint
    edit_config(other, rope_theta=6000.0)
    assert open_model(one, "own").fingerprint != open_model(other, "own").fingerprint


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer"):
        open_model(write_llama(tmp_path / "hf"), "own")


def test_only_the_own_backend_opens_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="export-hf"):
        open_model(tmp_path, "transformers")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_reported(folder: Path) -> None:
    with pytest.raises(DependencyError, match=r"megatron_dsmath\[vllm\]"):
        open_model(folder, "vllm")
