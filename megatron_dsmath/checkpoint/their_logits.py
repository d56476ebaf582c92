"""Logits as transformers computes them: the witness that knows nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_dsmath.checkpoint.safetensors_files import SafetensorsFiles
from megatron_dsmath.checkpoint.streamed_forward import rows_in_fp32, stream_weights


@torch.no_grad()
def their_logits(folder: Path, config: Path, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [sequence, position, word] in fp32 of the safetensors in `folder` under a config.json.

    Names, shapes and the forward are transformers' own; the weights are those of one module at a time.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig.from_pretrained(config)
    settings._attn_implementation = "eager"  # the whole softmax matrix, as the paper writes it
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(settings)  # holds frequencies, which no file has
    files = SafetensorsFiles(folder)

    def read(name: str) -> torch.Tensor:
        shape = files.tensors[name].shape
        rest = tuple(slice(None) for _ in shape[1:])
        return rows_in_fp32(shape, lambda rows: files.read(name, (rows, *rest)))

    stream_weights(model, read)
    try:
        logits: torch.Tensor = model.eval()(torch.tensor(ids), use_cache=False).logits
    finally:
        files.close()
    return logits
