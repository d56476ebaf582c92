"""An implementation that shares no line with ours: what transformers' Llama says of the same step."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.verify_layouts.batch import global_batch


def their_step(run: RunConfig, folder: Path) -> tuple[float, dict[str, npt.NDArray[np.float32]]]:
    """The loss of the first step in nats per target, and its gradients by name.

    Where attention stays within documents, each document is run by itself: no mask of theirs is trusted either.
    """
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch, length = global_batch(run, 0), run.data.sequence_length
    total = torch.zeros((), dtype=torch.float64)
    for row, starts in enumerate(batch.document_starts):
        bounds = [0, length] if run.data.attend_across_documents else [*starts.tolist(), length]
        for first, end in pairwise(bounds):
            tokens = torch.from_numpy(batch.tokens[row, first : end + 1])
            logits = llama(tokens[None, :-1]).logits[0]
            nats = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
            total = total + (nats * torch.from_numpy(batch.loss_mask[row, first:end])).sum()
    loss = total / float(batch.loss_mask.sum())
    torch.autograd.backward(loss)
    gradients = {name: tensor.grad for name, tensor in llama.named_parameters()}
    return loss.item(), {name: gradient.numpy() for name, gradient in gradients.items() if gradient is not None}
