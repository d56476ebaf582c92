"""What the model reads: a mixture of corpora, weighted by tokens (paper, section 2.3)."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from megatron_dsmath.config.section import Section


class CorpusConfig(Section):
    """One source of the mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """How metrics and reports call it."""
    weight: float = Field(gt=0)
    """Its share of the tokens, relative to the other weights (paper: 56, 4, 10, 20, 10)."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Prefixes of .bin/.idx pairs, or patterns of them (`data/math_*`)."""
    max_epochs: float | None = Field(default=None, gt=0)
    """Refuse a plan that reads the corpus more often than this; null allows any number."""


class DataConfig(Section):
    """The mixture and how it is cut into samples."""

    tokenizer: str
    """The tokenizer the corpora were made with: a folder, a `tokenizer.json` or a SentencePiece `.model`."""
    sequence_length: PositiveInt
    """Tokens a sample trains on; a sample holds one more (paper: 4096)."""
    corpora: tuple[CorpusConfig, ...] = Field(min_length=1)
    """The sources of the mixture."""
    held_out_share: float = Field(ge=0, lt=0.5)
    """Share of each corpus kept for validation and never trained on."""
