from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from megatron_dsmath.checkpoint.from_huggingface import import_folder
from megatron_dsmath.schedule.learning_rate import learning_rate
from tests.checkpoint.llama import write_llama
from tests.parallel import faults
from tests.support.ranks import run_ranks
from tests.support.runs import run_config
from tests.support.training import Figures, deviations, global_batch, gradients, joined, train

STEPS = 10
# fp32 sums of the same numbers in another order. After one step 2e-7 at most; AdamW divides by the root of the second
# moment, so that differences in tiny gradients grow from step to step. Measured: docs/numerics.md.
FP32_TOLERANCE = 1e-5
BF16_TOLERANCE = 1e-2  # a bf16 number has 8 bits, an error up to 0.4%; in the sum of a loss most errors cancel


class Layout(NamedTuple):
    ranks: int
    parallel: dict[str, Any]


LAYOUTS = {
    "TP2": Layout(2, {"tensor": 2}),
    "TP2 with sequence parallelism": Layout(2, {"tensor": 2, "sequence": True}),
    "PP2": Layout(2, {"pipeline": 2}),
    "PP2 with virtual stages": Layout(2, {"pipeline": 2, "virtual_stages": 2}),
    "PP2 of uneven stages": Layout(2, {"pipeline": 2, "stage_layers": [1, 3]}),
    "DP2": Layout(2, {"distributed_optimizer": False}),
    "DP2 with distributed optimizer": Layout(2, {}),
    "DP2 with overlapped communication": Layout(2, {"overlap_communication": True}),
    "TP2 x PP2": Layout(4, {"tensor": 2, "pipeline": 2}),
}


def run_of(layout: Layout, **overrides: Any) -> Any:
    """Four microbatches per step (two on each of two data-parallel ranks), 10 steps: warm-up, peak and drop."""
    overrides = {"schedule__peak_learning_rate": 3e-3, **overrides}
    return run_config(**{f"parallel__{key}": value for key, value in layout.parallel.items()}, **overrides)


ALONE = Layout(1, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = run_config().model
    return write_llama(
        tmp_path_factory.mktemp("hf") / "llama",
        vocab_size=model.vocabulary_size,
        num_hidden_layers=model.layers,
        rms_norm_eps=model.norm_epsilon,
        rope_theta=model.rope_theta,
    )


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    import_folder(folder, folder.parent / "imported", gate=False)
    return folder.parent / "imported"


@pytest.fixture(scope="module")
def alone(weights: Path) -> list[Figures]:
    """The losses and norms of one process in fp32."""
    figures: list[Figures]
    (figures,) = run_ranks(1, train, run_of(ALONE), weights, STEPS)
    return figures


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_the_losses_and_norms_of_one_process(name: str, weights: Path, alone: list[Figures]) -> None:
    layout = LAYOUTS[name]
    first, *others = run_ranks(layout.ranks, train, run_of(layout), weights, STEPS)
    assert all(other == first for other in others)
    found = deviations(first, alone)
    print(f"{name}: {found}")
    assert max(found) < FP32_TOLERANCE


@pytest.mark.parametrize("name", ["one process", *LAYOUTS])
def test_bf16_has_the_losses_of_fp32(name: str, weights: Path, alone: list[Figures]) -> None:
    layout = LAYOUTS.get(name, ALONE)
    figures = run_ranks(layout.ranks, train, run_of(layout, precision="bf16"), weights, STEPS)[0]
    found = deviations(figures, alone)
    print(f"{name}: bf16 {found}")
    assert 0 < found.loss < BF16_TOLERANCE


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_activations_changes_no_bit(recompute: str, weights: Path, alone: list[Figures]) -> None:
    (figures,) = run_ranks(1, train, run_of(Layout(1, {"recompute": recompute})), weights, 3)
    assert figures == alone[:3]


def their_training(folder: Path) -> tuple[list[Figures], dict[str, torch.Tensor]]:
    """The run with transformers and torch only, and the gradients of its first step."""
    from transformers import LlamaForCausalLM

    run = run_of(ALONE)
    llama = LlamaForCausalLM.from_pretrained(folder)
    named = dict(llama.named_parameters())
    decayed = [{"params": [tensor for tensor in named.values() if tensor.ndim == 2]}]
    norms = [{"params": [tensor for tensor in named.values() if tensor.ndim == 1], "weight_decay": 0.0}]
    settings = run.optimizer
    adamw = torch.optim.AdamW(
        decayed + norms,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    figures: list[Figures] = []
    first: dict[str, Any] = {}
    for step in range(STEPS):
        batch = global_batch(run, step)
        logits = llama(batch.tokens[:, :-1]).logits
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none")
        mean = (nats * batch.loss_mask).sum() / batch.loss_mask.sum()
        mean.backward()
        first = first or {name: tensor.grad.clone() for name, tensor in named.items()}
        gradient_norm = torch.nn.utils.clip_grad_norm_(llama.parameters(), settings.gradient_clip)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(run, step)
        adamw.step()
        adamw.zero_grad()
        figures.append(Figures(mean.item(), gradient_norm.item()))
    return figures, first


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[list[Figures], dict[str, torch.Tensor]]:
    return their_training(folder)


def test_one_process_trains_like_transformers_and_torch(
    alone: list[Figures], theirs: tuple[list[Figures], dict[str, torch.Tensor]]
) -> None:
    found = deviations(alone, theirs[0])
    print(f"transformers: {found}")
    assert theirs[0][-1].loss < theirs[0][0].loss  # it learns
    assert min(figures.gradient_norm for figures in theirs[0]) > run_of(ALONE).optimizer.gradient_clip  # and is clipped
    assert max(found) < FP32_TOLERANCE


@pytest.mark.parametrize("name", ["one process", "TP2 with sequence parallelism", "PP2 with virtual stages"])
def test_each_parameters_gradient_is_that_of_transformers(
    name: str, weights: Path, theirs: tuple[list[Figures], dict[str, torch.Tensor]]
) -> None:
    layout = LAYOUTS.get(name, ALONE)
    run = run_of(layout)
    ours = joined(run, run_ranks(layout.ranks, gradients, run, weights))
    assert ours.keys() == theirs[1].keys()
    # Elements near zero are sums of large numbers that cancel; their error is the rounding of the largest.
    found = {
        parameter: ((ours[parameter] - gradient).abs().max() / gradient.abs().max()).item()
        for parameter, gradient in theirs[1].items()
    }
    print(f"{name}: gradients {max(found.values())}")
    assert [parameter for parameter, deviation in found.items() if not deviation < FP32_TOLERANCE] == []


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (faults.norm_gradients_are_not_summed, "TP2 with sequence parallelism"),
        (faults.parts_of_matrices_count_as_copies, "TP2"),
        (faults.microbatches_are_averaged, "one process"),
        (faults.microbatches_are_averaged, "DP2"),
        (faults.gradients_stay_on_their_rank, "DP2"),
        (faults.norms_decay, "one process"),
        (faults.stages_load_the_first_layers, "PP2"),
    ],
)
def test_the_comparison_detects_a_planted_error(
    fault: Callable[[], None], name: str, weights: Path, alone: list[Figures]
) -> None:
    layout = LAYOUTS.get(name, ALONE)
    figures = run_ranks(layout.ranks, faults.train_with, fault, run_of(layout), weights, 4)[0]
    found = deviations(figures, alone[:4])
    print(f"{fault.__name__}: {found}")
    assert max(found) > 10 * FP32_TOLERANCE
