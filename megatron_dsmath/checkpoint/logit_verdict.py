"""What comparing a conversion's logits with transformers' found, as manifests and model cards keep it."""

from __future__ import annotations

from megatron_dsmath.config.section import Section


class LogitVerdict(Section):
    """The largest difference of two forward passes over the same ids, or why there was no comparison."""

    skipped: str | None = None
    """Why nothing was compared; null where it was."""
    transformers: str | None = None
    """The version of transformers that was the other side."""
    positions: int = 0
    """Tokens whose logits over the whole vocabulary were compared."""
    equal_next_tokens: int = 0
    """Positions at which both sides hold the same token for the likeliest."""
    largest_difference: float = 0.0
    """Over all positions and words."""
    tolerance: float = 0.0
    """The difference beyond which nothing would have been written."""

    def __str__(self) -> str:
        if self.skipped:
            return f"not compared with transformers: {self.skipped}"
        return (
            f"compared with transformers {self.transformers}: at most {self.largest_difference:.1e} apart (allowed "
            f"{self.tolerance:.1e}), the next token equal at {self.equal_next_tokens} of {self.positions} positions"
        )
