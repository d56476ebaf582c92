"""A run in miniature: the shape of everything is kept, the sizes become small and unlike each other."""

from __future__ import annotations

from itertools import chain
from math import lcm

from megatron_dsmath.config.contradictions import RULES
from megatron_dsmath.config.layout_contradictions import (
    even_stages,
    tensor_ranks_divide_the_model,
    world_contradictions,
)
from megatron_dsmath.config.sections import ParallelConfig, RunConfig
from megatron_dsmath.errors import ConfigError
from megatron_dsmath.verify_layouts.layouts import MICROBATCH_SEQUENCES, Layout

HIDDEN_SIZE = 64  # or a little more, where the heads do not divide it
SEQUENCE_LENGTH = 64
STEPS = 2  # the second is the first to use moments, and weights that a step has moved


def tensor_sizes(run: RunConfig, ranks: int) -> tuple[int, ...]:
    """Tensor-parallel sizes up to `ranks` that divide the run's own model."""
    return tuple(
        size for size in range(1, ranks + 1) if not list(tensor_ranks_divide_the_model(_with_tensor(run, size)))
    )


def shrunk(run: RunConfig, ranks: int, *, on_gpu: bool = False) -> RunConfig:
    """The run at a size that one core computes in a fraction of a second, for layouts of up to `ranks` processes.

    Kept: query heads per key-value head, the feed-forward's width as a multiple of the model's, norm, rotary base, the
    optimizer's numbers, and `on_gpu` the kernels. Layers suffice for two virtual stages on each of `ranks` stages.
    """
    model = run.model
    shares = lcm(*tensor_sizes(run, ranks))  # each matrix divides among that many ranks
    groups = lcm(shares, min(2, model.key_value_heads))
    heads = groups * (model.attention_heads // model.key_value_heads)
    head_size = max(4, 2 * (HIDDEN_SIZE // (2 * heads)))
    hidden = heads * head_size
    ffn_share = round(hidden * model.ffn_hidden_size / model.hidden_size / shares)
    small = model.model_copy(
        update={
            "layers": 2 * ranks,
            "hidden_size": hidden,
            "ffn_hidden_size": shares * max(1, ffn_share),
            "attention_heads": heads,
            "key_value_heads": groups,
            "vocabulary_size": shares * (_sequences(ranks) * 10 // shares + 7),
            "max_position_embeddings": SEQUENCE_LENGTH,
            "initial_weights": None,
            "kernels": model.kernels if on_gpu else "torch",
        }
    )
    schedule = run.schedule.model_copy(
        # A rate at which two steps move the weights by several percent, so that a wrong step shows.
        update={
            "steps": STEPS,
            "sequences_per_step": _sequences(ranks),
            "peak_learning_rate": 3e-3,
            "warmup_steps": 0,
            "drops": (),
        }
    )
    # AdamW's first step is g / (|g| + epsilon): where a gradient is of the size of rounding, a smaller epsilon would
    # make a whole step of it.
    optimizer = run.optimizer.model_copy(update={"epsilon": max(1e-6, run.optimizer.epsilon)})
    data = run.data.model_copy(update={"sequence_length": SEQUENCE_LENGTH})
    return run.model_copy(
        update={"precision": "fp32", "model": small, "schedule": schedule, "optimizer": optimizer, "data": data}
    )


def arranged(small: RunConfig, layout: Layout, run: RunConfig) -> RunConfig:
    """The small run in a layout; an uneven split is the own of `run`, where it has one of as many pieces."""
    pieces = layout.pipeline * layout.virtual_stages
    parallel = ParallelConfig(
        tensor=layout.tensor,
        sequence=layout.sequence,
        pipeline=layout.pipeline,
        virtual_stages=layout.virtual_stages,
        stage_layers=uneven_stages(small.model.layers, pieces, run.parallel.stage_layers) if layout.uneven else None,
        distributed_optimizer=layout.optimizer != "noopt",
        overlap_communication=layout.optimizer == "overlap",
        recompute=layout.recompute,
        microbatch_sequences=layout.microbatch_sequences,
    )
    data = small.data.model_copy(update={"attend_across_documents": not layout.packed})
    return small.model_copy(update={"parallel": parallel, "data": data, "precision": layout.precision})


def contradiction(run: RunConfig, layout: Layout) -> ConfigError | None:
    """Why an arranged run cannot be computed; None where it can."""
    rules = chain.from_iterable(rule(run) for rule in RULES)
    return next(chain(rules, world_contradictions(run, layout.ranks)), None)


def uneven_stages(layers: int, pieces: int, own: tuple[int, ...] | None) -> tuple[int, ...]:
    """Stages of which some hold more layers than others: larger where the run's own split has larger ones."""
    if own is None or len(own) != pieces or len(set(own)) == 1:
        first, *others = even_stages(layers, pieces)
        return (first - 1, *others[:-1], others[-1] + 1) if first > 1 and others else (first, *others)
    order = sorted(set(own))
    stages = [1 + order.index(held) for held in own]
    largest = [index for index, held in enumerate(own) if held == order[-1]]
    for turn in range(layers - sum(stages)):
        stages[largest[turn % len(largest)]] += 1
    return tuple(stages)


def _sequences(ranks: int) -> int:
    """A microbatch for each of `ranks` data-parallel ranks or interleaved stages, several where there are fewer."""
    return MICROBATCH_SEQUENCES * ranks


def _with_tensor(run: RunConfig, tensor: int) -> RunConfig:
    return run.model_copy(update={"parallel": run.parallel.model_copy(update={"tensor": tensor})})
