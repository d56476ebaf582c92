"""Our decoder for generation: all weights in one process, with a cache of keys and values.

The decoder that trains has no cache and needs a group of ranks. This one computes the same from weights under Hugging
Face's names (`model.parameters`). Tests compare it with transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.parallel.rotary import rotary_table


class CachedDecoder:
    """A `token_batch.CachedForward` of any weights, in the precision of the stored weights."""

    def __init__(self, weights: WeightReader, device: torch.device) -> None:
        """Read every weight. Raises what reading raises."""
        self.device, self.model = device, weights.model
        self.context_length = self.model.max_position_embeddings
        self._weights = {name: weights.read_whole(name).to(device) for name in weights.shapes}
        self._keys_values: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._read = 0
        self._padding = torch.empty(0)

    def begin(self, ids: torch.Tensor, padding: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """See `CachedForward`."""
        model, (batch, length) = self.model, ids.shape
        size = (batch, model.key_value_heads, length + new_tokens, model.head_size)
        dtype = self._weights["model.embed_tokens.weight"].dtype
        self._keys_values = []  # free the previous cache before the next is allocated
        self._keys_values = [
            (torch.zeros(size, device=self.device, dtype=dtype), torch.zeros(size, device=self.device, dtype=dtype))
            for _ in range(model.layers)
        ]
        self._read, self._padding = 0, padding
        return self._logits(ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See `CachedForward`."""
        return self._logits(ids[:, None])

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Read `ids` [prompt, position]; the logits after the last position [prompt, word]."""
        weights, first, end = self._weights, self._read, self._read + ids.size(1)
        columns = torch.arange(end, device=self.device)
        rows = columns[first:]
        # Padding attends to itself: a row without any key would be NaN, and NaN times zero attention is NaN.
        mask = (columns <= rows[:, None]) & (columns >= self._padding[:, None, None]) | (columns == rows[:, None])
        # Only finished prompts, whose tokens are ignored, reach positions beyond the context's end.
        rotation = self._rotation((rows - self._padding[:, None]).clamp(0, self.context_length - 1))
        states = F.embedding(ids, weights["model.embed_tokens.weight"])
        for layer in range(self.model.layers):
            name = f"model.layers.{layer}"
            states = states + self._attention(layer, self._norm(f"{name}.input_layernorm", states), mask, rotation)
            states = states + self._feed_forward(name, self._norm(f"{name}.post_attention_layernorm", states))
        self._read = end
        return F.linear(self._norm("model.norm", states[:, -1]), weights["lm_head.weight"]).float()

    def _attention(
        self, layer: int, states: torch.Tensor, mask: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        name = f"model.layers.{layer}.self_attn"
        batch, length, _ = states.shape
        query, key, value = (
            F.linear(states, self._weights[f"{name}.{letter}_proj.weight"])
            .view(batch, length, -1, self.model.head_size)
            .transpose(1, 2)
            for letter in "qkv"
        )
        keys, values = self._keys_values[layer]
        first, end = self._read, self._read + length
        keys[:, :, first:end], values[:, :, first:end] = _rotate(key, rotation), value
        grouped = self.model.key_value_heads != self.model.attention_heads
        output = F.scaled_dot_product_attention(
            _rotate(query, rotation), keys[:, :, :end], values[:, :, :end], attn_mask=mask[:, None], enable_gqa=grouped
        )
        return F.linear(output.transpose(1, 2).flatten(2), self._weights[f"{name}.o_proj.weight"])

    def _feed_forward(self, name: str, states: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self._weights[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return F.linear(F.silu(F.linear(states, gate)) * F.linear(states, up), down)

    def _norm(self, name: str, states: torch.Tensor) -> torch.Tensor:
        wide = states.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.model.norm_epsilon)
        return self._weights[f"{name}.weight"] * (wide * scale).to(states.dtype)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions [prompt, position], each [prompt, 1, position, channels / 2]."""
        dtype = self._weights["model.embed_tokens.weight"].dtype
        table = rotary_table(self.context_length, self.model.head_size, self.model.rope_theta, self.device, dtype)
        cosines, sines = (values[:, 0, 0][positions][:, None] for values in table)
        return cosines, sines


def _rotate(states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate each pair of channels i and i + channels / 2."""
    (first, second), (cosines, sines) = states.chunk(2, dim=-1), rotation
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
