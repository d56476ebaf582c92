"""transformers' forward of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class HuggingFaceForward:
    """A `batch.CachedForward` of a Hugging Face folder, in the precision it is stored in."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the folder; no code of it is run."""
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
        places = torch.arange(ids.size(1), device=self.device)
        self._cache = None
        self._mask = (places >= padding[:, None]).long()
        self._positions = (places - padding[:, None]).clamp(min=0)
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
