"""What the model reads: a mixture of corpora (paper, section 2.3), or conversations packed into sequences (3.2)."""

from __future__ import annotations

from typing import Literal

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


class ConversationsConfig(Section):
    """A set of examples, as `dsmath sft build` writes it."""

    prefix: str
    """The prefix of the set."""
    packing: Literal["next-fit", "best-fit", "split"]
    """How its examples fill sequences (paper: random concatenation, which is next-fit; record 23)."""


class DataConfig(Section):
    """Either a mixture or conversations, and how they are cut into samples."""

    tokenizer: str
    """The tokenizer the data was made with: a folder, a `tokenizer.json` or a SentencePiece `.model`."""
    sequence_length: PositiveInt
    """Tokens a sample trains on; a sample holds one more (paper: 4096)."""
    attend_across_documents: bool
    """Whether a token sees the documents before its own in a sample, as is common in pretraining (record 17)."""
    corpora: tuple[CorpusConfig, ...]
    """The sources of the mixture; an empty list with conversations."""
    conversations: ConversationsConfig | None
    """The set to fine-tune on; null with a mixture."""
    held_out_share: float = Field(ge=0, lt=0.5)
    """Share of each corpus, or source of conversations, kept for validation and never trained on."""
