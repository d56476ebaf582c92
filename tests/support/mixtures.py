"""Corpora whose tokens encode their positions, and the plan and batches of a run over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_dsmath.config.sections import CorpusConfig, DataConfig
from megatron_dsmath.data.indexed.dataset import IndexedWriter, dtype_for
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from megatron_dsmath.data.mixture.mixture_planning import MixturePhase, plan_run

VOCABULARY = 60_000
SEED = 1234


def write_shard(prefix: Path, tokens: Sequence[int], fingerprint: str | None = None, document_tokens: int = 10) -> Path:
    """Documents of `document_tokens` tokens."""
    with IndexedWriter(prefix, dtype_for(VOCABULARY)) as writer:
        for start in range(0, len(tokens), document_tokens):
            writer.add_document(tokens[start : start + document_tokens])
        if fingerprint is not None:
            writer.metadata["tokenizer"] = {"fingerprint": fingerprint}
    return prefix


def corpus(name: str, weight: float, *prefixes: Path, max_epochs: float | None = None) -> CorpusConfig:
    return CorpusConfig(name=name, weight=weight, paths=tuple(map(str, prefixes)), max_epochs=max_epochs)


def mixture(*corpora: CorpusConfig, sequence_length: int = 4, held_out_share: float = 0.0) -> DataConfig:
    return DataConfig(
        tokenizer="tokenizer",
        sequence_length=sequence_length,
        attend_across_documents=True,
        corpora=corpora,
        conversations=None,
        held_out_share=held_out_share,
    )


def only_phase(config: DataConfig, samples: int) -> MixturePhase:
    return MixturePhase({entry.name: entry.weight for entry in config.corpora}, samples)


def planned(
    config: DataConfig, earlier: MixturePlan | None = None, next_sample: int = 0, end_sample: int = 1000
) -> MixturePlan:
    return plan_run(config, SEED, Shards(None), [only_phase(config, end_sample - next_sample)], earlier, next_sample)


def opened(plan: MixturePlan) -> MixtureBatches:
    return MixtureBatches(plan, Shards(None), VOCABULARY)


def tokens_of(batches: MixtureBatches, name: str, first_sample: int, samples: int) -> list[list[int]]:
    """What a corpus gives in these samples of a run, in order."""
    (batch,) = batches.step_batches(first_sample, samples, samples, 0, 1)
    tokens: list[list[int]] = batch.tokens[batch.groups[:, 0, 0] == batches.group_names.index(name)].tolist()
    return tokens


def targets(samples: Sequence[Sequence[int]]) -> list[int]:
    return np.array(samples)[:, 1:].ravel().tolist()
