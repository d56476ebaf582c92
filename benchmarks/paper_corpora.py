"""Corpora with the paper's sizes but without tokens: an .idx with as many documents and a sparse .bin."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_dsmath.config.sections import CorpusConfig, DataConfig
from megatron_dsmath.data.indexed.index_file import CODES, HEADER, MAGIC, VERSION

SEQUENCE_LENGTH = 4096
WEIGHTS = {"math": 56.0, "algebraic_stack": 4.0, "arxiv": 10.0, "code": 20.0, "natural_language": 10.0}
# Tokens and documents. The paper gives the first three token counts and the first document count; the others are
# assumed: code and natural language as many tokens as the run draws, and usual lengths of papers, files and pages.
SIZES = {
    "math": (120_200_000_000, 35_500_000),
    "algebraic_stack": (10_300_000_000, 3_400_000),
    "arxiv": (28_000_000_000, 1_600_000),
    "code": (100_000_000_000, 80_000_000),
    "natural_language": (50_000_000_000, 50_000_000),
}


def write_corpora(folder: Path, scale: float) -> None:
    """Write the five corpora at `scale` times their size, unless they exist."""
    for seed, (name, (tokens, documents)) in enumerate(SIZES.items()):
        index, count = folder / f"{name}.idx", int(documents * scale)
        if index.exists():
            continue
        bounds = np.sort(np.random.default_rng(seed).integers(1, int(tokens * scale), count - 1))
        starts = np.concatenate([[0], bounds])
        lengths = np.diff(np.append(starts, int(tokens * scale)))
        with index.open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, CODES[np.dtype(np.int32)], count, count + 1))
            lengths.astype("<i4").tofile(file)
            (4 * starts).astype("<i8").tofile(file)
            np.arange(count + 1, dtype="<i8").tofile(file)
        with (folder / f"{name}.bin").open("wb") as file:
            file.truncate(4 * int(tokens * scale))


def mixture(folder: Path, sequence_length: int = SEQUENCE_LENGTH) -> DataConfig:
    """Return the paper's mixture of the corpora in `folder`."""
    corpora = [CorpusConfig(name=name, weight=weight, paths=(str(folder / name),)) for name, weight in WEIGHTS.items()]
    return DataConfig(
        tokenizer="",
        sequence_length=sequence_length,
        attend_across_documents=True,
        corpora=tuple(corpora),
        conversations=None,
        held_out_share=0.0005,
    )
