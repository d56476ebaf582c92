"""Layouts that cannot be: of a model over ranks, of a batch over microbatches; rules as in `contradictions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import ConfigError, LayoutError

Rule = Callable[[RunConfig], Iterator[ConfigError]]


def heads_divide_the_model(run: RunConfig) -> Iterator[ConfigError]:
    """Attention splits the width into even-sized heads, and query heads into groups."""
    model = run.model
    if model.hidden_size % model.attention_heads:
        yield ConfigError(
            "the heads do not divide the model's width",
            where="model.attention_heads",
            found=f"{model.attention_heads} heads, hidden_size {model.hidden_size}",
            expected="a divisor of model.hidden_size",
            fix=f"for example model.attention_heads: {_nearest_divisor(model.hidden_size, model.attention_heads)}",
        )
    elif model.head_size % 2:
        yield ConfigError(
            "rotary positions turn pairs of channels, and a head has an odd number of them",
            where="model.attention_heads",
            found=f"{model.head_size} channels a head",
            expected="an even number: model.hidden_size / model.attention_heads",
            fix="choose another model.attention_heads",
        )
    if model.attention_heads % model.key_value_heads:
        yield ConfigError(
            "the query heads do not divide into the key-value groups",
            where="model.key_value_heads",
            found=f"{model.key_value_heads} groups for {model.attention_heads} heads",
            expected="a divisor of model.attention_heads",
            fix=f"for example model.key_value_heads: {_nearest_divisor(model.attention_heads, model.key_value_heads)}",
        )


def tensor_ranks_divide_the_model(run: RunConfig) -> Iterator[ConfigError]:
    """Each tensor-parallel rank holds an equal part of every matrix."""
    model, tensor = run.model, run.parallel.tensor
    keys = ("attention_heads", "key_value_heads", "ffn_hidden_size", "vocabulary_size")
    sizes = {key: getattr(model, key) for key in keys}
    undivided = {key: size for key, size in sizes.items() if size % tensor}
    if undivided:
        yield LayoutError(
            "the tensor-parallel size does not divide the model",
            where="parallel.tensor",
            found=f"{tensor}; " + ", ".join(f"model.{key} {size}" for key, size in undivided.items()),
            expected="a divisor of each",
            fix=f"for example parallel.tensor: {_nearest_divisor(gcd(*sizes.values()), tensor)}",
        )


def sequence_parallel_has_ranks_to_share(run: RunConfig) -> Iterator[ConfigError]:
    """Sequence parallelism splits each sequence over the tensor-parallel ranks."""
    parallel = run.parallel
    if parallel.sequence and parallel.tensor == 1:
        yield LayoutError(
            "sequence parallelism shares the work of tensor-parallel ranks, and there is one",
            where="parallel.sequence",
            found="true, parallel.tensor 1",
            expected="parallel.tensor of 2 or more",
            fix="set parallel.sequence: false",
        )
    elif parallel.sequence and run.data.sequence_length % parallel.tensor:
        yield LayoutError(
            "the tensor-parallel ranks cannot share the sequence evenly",
            where="data.sequence_length",
            found=f"{run.data.sequence_length}, parallel.tensor {parallel.tensor}",
            expected="a multiple of parallel.tensor",
            fix="set parallel.sequence: false, or another data.sequence_length",
        )


def stages_hold_every_layer(run: RunConfig) -> Iterator[ConfigError]:
    """No layer is dropped and none invented: an uneven split is written out (Megatron-LM issue 1304)."""
    layers, parallel = run.model.layers, run.parallel
    pieces = parallel.pipeline * parallel.virtual_stages
    if parallel.virtual_stages > 1 and parallel.pipeline == 1:
        yield LayoutError(
            "virtual stages interleave pipeline stages, and there is one",
            where="parallel.virtual_stages",
            found=f"{parallel.virtual_stages}, parallel.pipeline 1",
            expected="parallel.pipeline of 2 or more",
            fix="set parallel.virtual_stages: 1",
        )
    elif parallel.stage_layers is not None:
        if len(parallel.stage_layers) != pieces or sum(parallel.stage_layers) != layers:
            yield LayoutError(
                "the stages do not hold the model's layers",
                where="parallel.stage_layers",
                found=f"{list(parallel.stage_layers)}, {sum(parallel.stage_layers)} layers",
                expected=f"{pieces} pieces (pipeline x virtual_stages) that add up to {layers} layers",
                fix=f"for example parallel.stage_layers: {even_stages(layers, pieces)}",
            )
    elif layers % pieces:
        yield LayoutError(
            "the layers do not divide into equal stages",
            where="parallel.pipeline",
            found=f"{layers} layers, {pieces} pieces (pipeline x virtual_stages)",
            expected="a divisor of model.layers, or parallel.stage_layers written out",
            fix=f"set parallel.stage_layers: {even_stages(layers, pieces)}",
        )


def overlap_has_an_optimizer_to_overlap(run: RunConfig) -> Iterator[ConfigError]:
    """Gathering parameters behind the compute is the distributed optimizer's."""
    if run.parallel.overlap_communication and not run.parallel.distributed_optimizer:
        yield LayoutError(
            "overlapped communication needs the distributed optimizer",
            where="parallel.overlap_communication",
            found="true, parallel.distributed_optimizer false",
            expected="both true, or overlap_communication false",
            fix="set parallel.distributed_optimizer: true",
        )


def microbatches_divide_the_batch(run: RunConfig) -> Iterator[ConfigError]:
    """The global batch is a whole number of microbatches; the processes are checked at the start of a run."""
    sequences, microbatch = run.schedule.sequences_per_step, run.parallel.microbatch_sequences
    if sequences % microbatch:
        yield LayoutError(
            "the microbatches do not divide the global batch",
            where="parallel.microbatch_sequences",
            found=f"{microbatch}, schedule.sequences_per_step {sequences}",
            expected="a divisor of schedule.sequences_per_step",
            fix=f"for example parallel.microbatch_sequences: {_nearest_divisor(sequences, microbatch)}",
        )


LAYOUT_RULES: tuple[Rule, ...] = (
    heads_divide_the_model,
    tensor_ranks_divide_the_model,
    sequence_parallel_has_ranks_to_share,
    stages_hold_every_layer,
    overlap_has_an_optimizer_to_overlap,
    microbatches_divide_the_batch,
)


def world_contradictions(run: RunConfig, world_size: int) -> Iterator[ConfigError]:
    """What can only be judged once the number of processes is known."""
    parallel, sequences = run.parallel, run.schedule.sequences_per_step
    if world_size % parallel.model_size:
        yield LayoutError(
            "the processes do not divide into copies of the model",
            where="parallel.tensor, parallel.pipeline",
            found=f"{world_size} processes, tensor {parallel.tensor} x pipeline {parallel.pipeline}",
            expected=f"a multiple of {parallel.model_size} processes",
            fix=f"start {parallel.model_size} processes (--nproc {parallel.model_size}), or change the layout",
        )
        return
    data_size = world_size // parallel.model_size
    share = data_size * parallel.microbatch_sequences
    if sequences % share:
        yield LayoutError(
            "the data-parallel processes do not divide the global batch",
            where="schedule.sequences_per_step",
            found=f"{sequences} sequences, {data_size} data-parallel processes x microbatches of "
            f"{parallel.microbatch_sequences}",
            expected=f"a multiple of {share}",
            fix=f"for example schedule.sequences_per_step: {-(-sequences // share) * share}",
        )
    elif parallel.virtual_stages > 1 and (sequences // share) % parallel.pipeline:
        yield LayoutError(
            "the interleaved schedule moves microbatches in groups of the pipeline's length",
            where="parallel.virtual_stages",
            found=f"{sequences // share} microbatches, {parallel.pipeline} stages",
            expected="microbatches in a multiple of parallel.pipeline",
            fix="set parallel.virtual_stages: 1, or another schedule.sequences_per_step",
        )


def even_stages(layers: int, pieces: int) -> list[int]:
    """As even as it goes; the ends, which also hold embedding and loss, stay lightest (30 over 4: 7/8/8/7)."""
    base, extra = divmod(layers, pieces)
    first = (pieces - extra) // 2
    return [base + (first <= piece < first + extra) for piece in range(pieces)]


def _nearest_divisor(number: int, wished: int) -> int:
    divisors = [candidate for candidate in range(1, number + 1) if number % candidate == 0]
    return min(divisors, key=lambda divisor: abs(divisor - wished))
