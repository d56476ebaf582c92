"""Documents packed into one sequence have the loss per token of each document alone, in every layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder
from megatron_dsmath.model.loss import sum_by_group
from megatron_dsmath.parallel.attention import document_bounds
from megatron_dsmath.parallel.pipeline import DeviceBatch, run_microbatches
from tests.parallel import faults
from tests.support import training
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

LENGTH = 32
# Lengths of the documents in each row: a single one, single tokens at both ends and inside, few and many.
DOCUMENTS = [[32], [1, 30, 1], [7, 25], [25, 7], [1, 1, 1, 12, 1, 16], [16, 16], [2, 3, 5, 8, 14], [31, 1]]
TOLERANCE = 1e-5  # fp32 sums of the same numbers in another order, through 4 layers
# Average change of the loss, in nats per token, by attention across documents; shows that equality is meaningful.
LEAK = 0.1

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "one process, selective recompute": (1, {"recompute": "selective"}),
    "one process, full recompute": (1, {"recompute": "full"}),
    "TP2": (2, {"tensor": 2}),
    "TP2 with sequence parallelism": (2, {"tensor": 2, "sequence": True}),
    "PP2": (2, {"pipeline": 2}),
    "PP2 with virtual stages": (2, {"pipeline": 2, "virtual_stages": 2}),
    "PP4": (4, {"pipeline": 4}),
    "PP4, full recompute": (4, {"pipeline": 4, "recompute": "full"}),
    "DP2": (2, {}),
    "TP2 x PP2": (4, {"tensor": 2, "sequence": True, "pipeline": 2}),
}


class Found(NamedTuple):
    """The results of a rank after one step without an update."""

    data_rank: int
    nats: list[np.ndarray]  # per microbatch; empty except on the last stage
    gradients: training.Parts


class Results(NamedTuple):
    """The results of all ranks together."""

    nats: np.ndarray  # [tokens], in the order of the batch
    gradients: dict[str, torch.Tensor]  # of the mean over these tokens, by Hugging Face's names


def run_of(name: str, *, across: bool = False) -> RunConfig:
    layout = {f"parallel__{key}": value for key, value in LAYOUTS[name][1].items()}
    # Without the distributed optimizer every data-parallel rank has complete gradients.
    apart = {"data__attend_across_documents": across, "parallel__distributed_optimizer": False}
    return run_config(**apart, **layout)


def packed(run: RunConfig) -> DeviceBatch:
    """All rows; every token is a target."""
    rows, generator = len(DOCUMENTS), torch.Generator().manual_seed(11)
    tokens = torch.randint(0, run.model.vocabulary_size, (rows, LENGTH + 1), generator=generator)
    starts = [np.cumsum([0, *lengths]) for lengths in DOCUMENTS]  # the last starts at the end of the row's inputs
    bounds = None if run.data.attend_across_documents else torch.from_numpy(document_bounds(starts, LENGTH))
    return DeviceBatch(tokens, torch.ones(rows, LENGTH), torch.zeros(rows, 1, 1).long(), torch.arange(rows), bounds)


def one_by_one(batch: DeviceBatch) -> list[DeviceBatch]:
    """Each document in its own microbatch, with the same targets as in its row."""
    alone = []
    for row, lengths in enumerate(DOCUMENTS):
        for start, end in pairwise(np.cumsum([0, *lengths]).tolist()):
            tokens, loss_mask = batch.tokens[row, start : end + 1], batch.loss_mask[row, start:end]
            alone.append(DeviceBatch(tokens[None], loss_mask[None], batch.groups[:1], batch.samples[:1], None))
    return alone


def computed(run: RunConfig, alone: bool = False, fault: Callable[[], None] | None = None) -> Found:
    """The results of this rank for the packed batch, or for single documents."""
    if fault is not None:
        fault()
    opened = training.start(run)
    nats: list[np.ndarray] = []

    def loss_of(found: torch.Tensor, batch: DeviceBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        nats.append(found.detach().numpy().copy())
        return sum_by_group(found, batch, training.CORPORA)

    whole = packed(run)
    own = training.microbatches(whole, run.parallel.microbatch_sequences, opened.topology)
    run_microbatches(opened.model_chunks, one_by_one(whole) if alone else own, loss_of, backward=True)
    named = decoder.named_parameters(opened.model_chunks)
    gradients = {name: tensor.main_grad for name, tensor in named}  # type: ignore[attr-defined]
    return Found(opened.topology.data_rank, nats, training.parts(opened, gradients))


def run_layout(name: str, *, across: bool = False, **how: Any) -> Results:
    """The results of all ranks of a layout."""
    run = run_of(name, across=across)
    ranks = run_ranks(LAYOUTS[name][0], partial(computed, run, **how))
    by_data_rank = {rank.data_rank: rank.nats for rank in ranks if rank.nats}
    in_order = chain.from_iterable(zip(*(by_data_rank[rank] for rank in sorted(by_data_rank)), strict=True))
    nats = np.concatenate([microbatch.ravel() for microbatch in in_order])
    return Results(nats, training.joined(run, [rank.gradients for rank in ranks if rank.data_rank == 0]))


def differences(results: Results, reference: Results) -> tuple[float, float]:
    """The largest relative differences of a token's nats and of a parameter's gradient (L2 norms)."""
    assert results.nats.shape == reference.nats.shape == (len(DOCUMENTS) * LENGTH,)
    assert results.gradients.keys() == reference.gradients.keys()
    gradients = [
        ((results.gradients[name] - gradient).norm() / gradient.norm()).item()
        for name, gradient in reference.gradients.items()
    ]
    return float(np.abs(results.nats / reference.nats - 1).max()), max(gradients)


@pytest.fixture(scope="module")
def alone() -> Results:
    """Single documents, in one process."""
    return run_layout("one process", alone=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_packed_documents_have_the_loss_of_each_alone(name: str, alone: Results) -> None:
    nats, gradients = differences(run_layout(name), alone)
    print(f"{name}: nats {nats:.1e}, gradients {gradients:.1e}")
    assert nats < TOLERANCE
    assert gradients < TOLERANCE


def test_single_documents_have_the_loss_of_transformers(alone: Results) -> None:
    nats, gradients = differences(alone, transformers_documents())
    print(f"transformers: nats {nats:.1e}, gradients {gradients:.1e}")
    assert nats < TOLERANCE
    assert gradients < TOLERANCE


def test_the_comparison_detects_attention_across_documents(alone: Results) -> None:
    across = run_layout("one process", across=True)
    leaks = np.abs(across.nats - alone.nats)
    print(f"across documents: {leaks.mean():.2f} nats per token")
    assert leaks.mean() > LEAK
    first = [row * LENGTH + token for row, lengths in enumerate(DOCUMENTS) for token in range(lengths[0])]
    # The first document of a row has no earlier one.
    np.testing.assert_allclose(across.nats[first], alone.nats[first], rtol=TOLERANCE)


def test_the_comparison_detects_missing_bounds_on_middle_stages(alone: Results) -> None:
    nats, gradients = differences(run_layout("PP4", fault=faults.middle_stages_see_no_documents), alone)
    print(f"middle stages without documents: nats {nats:.1e}, gradients {gradients:.1e}")
    assert nats > 1000 * TOLERANCE
    assert gradients > 1000 * TOLERANCE


def transformers_documents() -> Results:
    """Single documents with transformers' Llama and the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    run = run_of("one process")
    model = run.model
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocabulary_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.layers,
            num_attention_heads=model.attention_heads,
            num_key_value_heads=model.key_value_heads,
            rms_norm_eps=model.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
            tie_word_embeddings=False,
        )
    )
    source, named = decoder.WeightsFromSeed(model, run.seed), dict(llama.named_parameters())
    nats = []
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(source.read(name, tuple(tensor.shape), (slice(None),) * tensor.ndim))
    for document in one_by_one(packed(run)):
        logits = llama(document.tokens[:, :-1]).logits
        nats.append(torch.nn.functional.cross_entropy(logits[0], document.tokens[0, 1:], reduction="none"))
    gradients = torch.autograd.grad(torch.cat(nats).mean(), list(named.values()))
    return Results(torch.cat(nats).detach().numpy(), dict(zip(named, gradients, strict=True)))
