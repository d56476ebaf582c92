"""Rules about the parallel layout: the model over ranks, the batch over microbatches (see `contradictions`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import ConfigError, LayoutError

Rule = Callable[[RunConfig], Iterator[ConfigError]]


def check_heads(run: RunConfig) -> Iterator[ConfigError]:
    """Attention divides the width into heads of even size, and the query heads into groups."""
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
            "rotary embeddings rotate pairs of channels, and a head has an odd number of channels",
            where="model.attention_heads",
            found=f"{model.head_size} channels per head",
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


def check_tensor_size(run: RunConfig) -> Iterator[ConfigError]:
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


def check_sequence_parallel(run: RunConfig) -> Iterator[ConfigError]:
    """Sequence parallelism divides each sequence among the tensor-parallel ranks."""
    parallel = run.parallel
    if parallel.sequence and parallel.tensor == 1:
        yield LayoutError(
            "sequence parallelism needs several tensor-parallel ranks",
            where="parallel.sequence",
            found="true, parallel.tensor 1",
            expected="parallel.tensor of 2 or more",
            fix="set parallel.sequence: false",
        )
    elif parallel.sequence and run.data.sequence_length % parallel.tensor:
        yield LayoutError(
            "the tensor-parallel size does not divide the sequence",
            where="data.sequence_length",
            found=f"{run.data.sequence_length}, parallel.tensor {parallel.tensor}",
            expected="a multiple of parallel.tensor",
            fix="set parallel.sequence: false, or another data.sequence_length",
        )


def check_stages(run: RunConfig) -> Iterator[ConfigError]:
    """The stages hold every layer exactly once; an uneven split is written out (Megatron-LM issue 1304)."""
    layers, parallel = run.model.layers, run.parallel
    chunks = parallel.pipeline * parallel.virtual_stages
    if parallel.virtual_stages > 1 and parallel.pipeline == 1:
        yield LayoutError(
            "virtual stages need several pipeline stages",
            where="parallel.virtual_stages",
            found=f"{parallel.virtual_stages}, parallel.pipeline 1",
            expected="parallel.pipeline of 2 or more",
            fix="set parallel.virtual_stages: 1",
        )
    elif parallel.stage_layers is not None:
        if len(parallel.stage_layers) != chunks or sum(parallel.stage_layers) != layers:
            yield LayoutError(
                "the stages do not hold the model's layers",
                where="parallel.stage_layers",
                found=f"{list(parallel.stage_layers)}, {sum(parallel.stage_layers)} layers",
                expected=f"{chunks} model chunks (pipeline x virtual_stages), {layers} layers in total",
                fix=f"for example parallel.stage_layers: {even_stages(layers, chunks)}",
            )
    elif layers % chunks:
        yield LayoutError(
            "the layers do not divide into equal stages",
            where="parallel.pipeline",
            found=f"{layers} layers, {chunks} model chunks (pipeline x virtual_stages)",
            expected="a divisor of model.layers, or parallel.stage_layers written out",
            fix=f"set parallel.stage_layers: {even_stages(layers, chunks)}",
        )


def check_overlap(run: RunConfig) -> Iterator[ConfigError]:
    """Only the distributed optimizer gathers parameters during computation."""
    if run.parallel.overlap_communication and not run.parallel.distributed_optimizer:
        yield LayoutError(
            "overlapped communication needs the distributed optimizer",
            where="parallel.overlap_communication",
            found="true, parallel.distributed_optimizer false",
            expected="both true, or overlap_communication false",
            fix="set parallel.distributed_optimizer: true",
        )


def check_microbatch_size(run: RunConfig) -> Iterator[ConfigError]:
    """The global batch is a whole number of microbatches; `world_contradictions` checks the number of ranks."""
    microbatch = run.parallel.microbatch_sequences
    for key, sequences in global_batches(run).items():
        if sequences % microbatch:
            yield LayoutError(
                "the microbatches do not divide the global batch",
                where="parallel.microbatch_sequences",
                found=f"{microbatch}, {key} {sequences}",
                expected=f"a divisor of {key}",
                fix=f"for example parallel.microbatch_sequences: {_nearest_divisor(sequences, microbatch)}",
            )


def global_batches(run: RunConfig) -> dict[str, int]:
    """The different global batch sizes of a run, each with the first key that sets it."""
    schedule, found = run.schedule, dict[int, str]()
    if not schedule.phases or any(phase.sequences_per_step is None for phase in schedule.phases):
        found[schedule.sequences_per_step] = "schedule.sequences_per_step"
    for index, phase in enumerate(schedule.phases):
        if phase.sequences_per_step is not None:
            found.setdefault(phase.sequences_per_step, f"schedule.phases.{index}.sequences_per_step")
    return {key: sequences for sequences, key in found.items()}


LAYOUT_RULES: tuple[Rule, ...] = (
    check_heads,
    check_tensor_size,
    check_sequence_parallel,
    check_stages,
    check_overlap,
    check_microbatch_size,
)


def world_contradictions(run: RunConfig, world_size: int) -> Iterator[ConfigError]:
    """The rules that need the number of processes."""
    parallel = run.parallel
    if world_size % parallel.model_size:
        yield LayoutError(
            "the number of processes is not a multiple of the ranks of one copy of the model",
            where="parallel.tensor, parallel.pipeline",
            found=f"{world_size} processes, tensor {parallel.tensor} x pipeline {parallel.pipeline}",
            expected=f"a multiple of {parallel.model_size} processes",
            fix=f"start {parallel.model_size} processes (--nproc {parallel.model_size}), or change the layout",
        )
        return
    data_size = world_size // parallel.model_size
    share = data_size * parallel.microbatch_sequences
    for key, sequences in global_batches(run).items():
        if sequences % share:
            yield LayoutError(
                "the data-parallel processes do not divide the global batch",
                where=key,
                found=f"{sequences} sequences, {data_size} data-parallel processes x microbatches of "
                f"{parallel.microbatch_sequences}",
                expected=f"a multiple of {share}",
                fix=f"for example {key}: {-(-sequences // share) * share}",
            )
        elif parallel.virtual_stages > 1 and (sequences // share) % parallel.pipeline:
            yield LayoutError(
                "the interleaved schedule needs microbatches in groups of the pipeline's size",
                where="parallel.virtual_stages",
                found=f"{sequences // share} microbatches, {parallel.pipeline} stages",
                expected="a number of microbatches that is a multiple of parallel.pipeline",
                fix=f"set parallel.virtual_stages: 1, or another {key}",
            )


def even_stages(layers: int, chunks: int) -> list[int]:
    """Layers of each chunk, as even as possible; the ends, with embedding and loss, get fewer (30: 7, 8, 8, 7)."""
    base, extra = divmod(layers, chunks)
    first = (chunks - extra) // 2
    return [base + (first <= chunk < first + extra) for chunk in range(chunks)]


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [candidate for candidate in range(1, number + 1) if number % candidate == 0]
    return min(divisors, key=lambda divisor: abs(divisor - wanted))
