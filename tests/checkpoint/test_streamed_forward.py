from __future__ import annotations

import weakref

import torch

from megatron_dsmath.checkpoint import logit_gate
from megatron_dsmath.checkpoint.logit_gate import rows_in_fp32, stream_weights


def layers() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(8, 3)))


def test_a_streamed_model_has_the_logits_of_the_loaded_model() -> None:
    whole = layers()
    with torch.device("meta"):
        streamed = layers()
    stream_weights(streamed, whole.state_dict().__getitem__)
    inputs = torch.randn(5, 4)
    assert torch.equal(streamed(inputs), whole(inputs))


def test_weights_are_loaded_only_while_their_module_computes() -> None:
    weights = layers().state_dict()
    with torch.device("meta"):
        model = layers()
    alive: list[tuple[str, weakref.ref[torch.Tensor]]] = []

    def read(name: str) -> torch.Tensor:
        module = name.rpartition(".")[0]
        assert [other for other, tensor in alive if tensor() is not None and other != module] == []
        tensor = weights[name].clone()
        alive.append((module, weakref.ref(tensor)))
        return tensor

    stream_weights(model, read)
    model(torch.randn(5, 4))
    assert [module for module, _ in alive] == ["0", "0", "1.1", "1.1"]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_rows_are_joined_in_fp32(monkeypatch: object) -> None:
    stored = torch.randn(7, 5).bfloat16()
    asked: list[slice] = []

    def read(part: tuple[slice, ...]) -> torch.Tensor:
        asked.append(part[0])
        return stored[part]

    logit_gate._BLOCK_VALUES, before = 15, logit_gate._BLOCK_VALUES
    try:
        whole = rows_in_fp32((7, 5), read)
    finally:
        logit_gate._BLOCK_VALUES = before
    assert whole.dtype == torch.float32 and torch.equal(whole, stored.float())
    assert asked == [slice(0, 3), slice(3, 6), slice(6, 7)]
