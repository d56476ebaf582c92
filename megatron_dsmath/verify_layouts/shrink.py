"""A run with small sizes, all different from each other, and with the ratios that layouts depend on."""

from __future__ import annotations

from itertools import chain
from math import lcm

from megatron_dsmath.config import layout_contradictions
from megatron_dsmath.config.contradictions import RULES
from megatron_dsmath.config.sections import ParallelConfig, RunConfig
from megatron_dsmath.errors import ConfigError
from megatron_dsmath.verify_layouts.layouts import MICROBATCH_SEQUENCES, Layout

HIDDEN_SIZE = 64  # or a little more, where the heads do not divide it
SEQUENCE_LENGTH = 64
STEPS = 2  # the second step uses the moments and the weights of the first


def tensor_sizes(run: RunConfig, ranks: int) -> tuple[int, ...]:
    """Tensor-parallel sizes up to `ranks` that divide the run's own model."""

    def divides(size: int) -> bool:
        parallel = run.parallel.model_copy(update={"tensor": size})
        split = run.model_copy(update={"parallel": parallel})
        return not list(layout_contradictions.check_tensor_size(split))

    return tuple(size for size in range(1, ranks + 1) if divides(size))


def shrink_run(run: RunConfig, ranks: int, *, on_gpu: bool = False) -> RunConfig:
    """The run at a size that one core computes in a fraction of a second, for layouts of up to `ranks` processes.

    Kept: query heads per key-value head, the ratio of the feed-forward's width to the model's, norm, rotary base, the
    optimizer's settings, and on GPUs the kernels. Each of `ranks` stages can have two virtual stages.
    """
    model = run.model
    shares = lcm(*tensor_sizes(run, ranks))  # every matrix can be split over this many ranks
    sequences = MICROBATCH_SEQUENCES * ranks  # a microbatch for each of `ranks` data-parallel ranks or virtual stages
    groups = lcm(shares, min(2, model.key_value_heads))
    heads = groups * (model.attention_heads // model.key_value_heads)
    hidden = heads * max(4, 2 * (HIDDEN_SIZE // (2 * heads)))
    ffn_share = round(hidden * model.ffn_hidden_size / model.hidden_size / shares)
    small = model.model_copy(
        update={
            "layers": 2 * ranks,
            "hidden_size": hidden,
            "ffn_hidden_size": shares * max(1, ffn_share),
            "attention_heads": heads,
            "key_value_heads": groups,
            "vocabulary_size": shares * (sequences * 10 // shares + 7),
            "max_position_embeddings": SEQUENCE_LENGTH,
            "initial_weights": None,
            "kernels": model.kernels if on_gpu else "torch",
        }
    )
    schedule = run.schedule.model_copy(
        update={
            "steps": STEPS,
            "sequences_per_step": sequences,
            "peak_learning_rate": 3e-3,  # two steps change the weights by several percent, so that a wrong step shows
            "learning_rate": "constant",
            "phases": (),
            "warmup_steps": None,
            "drops": (),
        }
    )
    # AdamW's first step is g / (|g| + epsilon): with a smaller epsilon, a gradient that is only rounding error would
    # become a full step.
    optimizer = run.optimizer.model_copy(update={"epsilon": max(1e-6, run.optimizer.epsilon)})
    data = run.data.model_copy(update={"sequence_length": SEQUENCE_LENGTH})
    return run.model_copy(
        update={"precision": "fp32", "model": small, "schedule": schedule, "optimizer": optimizer, "data": data}
    )


def with_layout(small: RunConfig, layout: Layout, run: RunConfig) -> RunConfig:
    """The small run in a layout. An uneven split follows the split of `run` if that has as many model chunks."""
    chunks = layout.pipeline * layout.virtual_stages
    parallel = ParallelConfig(
        tensor=layout.tensor,
        sequence=layout.sequence,
        pipeline=layout.pipeline,
        virtual_stages=layout.virtual_stages,
        stage_layers=uneven_stages(small.model.layers, chunks, run.parallel.stage_layers) if layout.uneven else None,
        distributed_optimizer=layout.optimizer != "noopt",
        overlap_communication=layout.optimizer == "overlap",
        recompute=layout.recompute,
        microbatch_sequences=layout.microbatch_sequences,
    )
    data = small.data.model_copy(update={"attend_across_documents": not layout.packed})
    return small.model_copy(update={"parallel": parallel, "data": data, "precision": layout.precision})


def layout_error(run: RunConfig, layout: Layout) -> ConfigError | None:
    """Why a run from `with_layout` cannot be computed; None if it can."""
    errors = chain.from_iterable(rule(run) for rule in RULES)
    return next(chain(errors, layout_contradictions.world_contradictions(run, layout.ranks)), None)


def uneven_stages(layers: int, chunks: int, own: tuple[int, ...] | None) -> tuple[int, ...]:
    """Layers of each model chunk, not all equal. Chunks that are larger in the split `own` are larger here too."""
    if own is None or len(own) != chunks or len(set(own)) == 1:
        first, *others = layout_contradictions.even_stages(layers, chunks)
        return (first - 1, *others[:-1], others[-1] + 1) if first > 1 and others else (first, *others)
    order = sorted(set(own))
    stages = [1 + order.index(held) for held in own]
    largest = [index for index, held in enumerate(own) if held == order[-1]]
    for turn in range(layers - sum(stages)):
        stages[largest[turn % len(largest)]] += 1
    return tuple(stages)
