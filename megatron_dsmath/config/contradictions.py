"""Values that are each fine and cannot stand together: found before any process starts.

Each rule is a generator of errors. A rule that needs a value which is itself mistaken cannot be judged yet: it meets
an AttributeError on the half-built run and is passed over (`config.load`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd

from megatron_dsmath.config.run import RunConfig
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


def sequences_fit_the_positions(run: RunConfig) -> Iterator[ConfigError]:
    """A model that announces fewer positions than it was trained on misleads its users."""
    if run.data.sequence_length > run.model.max_position_embeddings:
        yield ConfigError(
            "the sequences are longer than the positions the model announces",
            where="data.sequence_length",
            found=f"{run.data.sequence_length}, model.max_position_embeddings {run.model.max_position_embeddings}",
            expected="at most model.max_position_embeddings",
            fix=f"set model.max_position_embeddings: {run.data.sequence_length}",
        )


def documents_are_kept_apart_by_our_kernels(run: RunConfig) -> Iterator[ConfigError]:
    """TransformerEngine's layers are not told where documents lie."""
    if not run.data.attend_across_documents and run.model.kernels == "transformer_engine":
        yield ConfigError(
            "TransformerEngine's attention would cross the documents of a sample",
            where="data.attend_across_documents",
            found="false, model.kernels transformer_engine",
            expected="true, or model.kernels torch",
            fix="set model.kernels: torch, which uses torch's flash kernel for documents of varying length",
        )


def a_run_reads_one_kind_of_data(run: RunConfig) -> Iterator[ConfigError]:
    """Pretraining reads a mixture of corpora, fine-tuning a set of conversations."""
    corpora, conversations = run.data.corpora, run.data.conversations
    if bool(corpora) == bool(conversations):
        yield ConfigError(
            "a run reads corpora or conversations, one of the two",
            where="data.conversations" if corpora else "data.corpora",
            found="both" if corpora else "neither",
            expected="entries under data.corpora, or data.conversations with a prefix",
            fix="set data.conversations: null, or data.corpora: []" if corpora else "name the data to train on",
        )


def corpora_have_names_of_their_own(run: RunConfig) -> Iterator[ConfigError]:
    """Metrics are told apart by the corpus' name."""
    names = [corpus.name for corpus in run.data.corpora]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ConfigError(
                "two corpora have one name",
                where=f"data.corpora.{index}.name",
                found=name,
                expected="a name of its own",
                fix=f"rename it, or add its paths to data.corpora.{names.index(name)}.paths",
            )


def drops_come_in_order(run: RunConfig) -> Iterator[ConfigError]:
    """The rate falls from one drop to the next, and the warm-up ends within the run."""
    schedule = run.schedule
    if schedule.warmup_steps > schedule.steps:
        yield ConfigError(
            "the run ends before its warm-up",
            where="schedule.warmup_steps",
            found=f"{schedule.warmup_steps}, schedule.steps {schedule.steps}",
            expected="at most schedule.steps",
            fix="shorten the warm-up or lengthen the run",
        )
    for index, (first, second) in enumerate(zip(schedule.drops, schedule.drops[1:], strict=False)):
        if second.after <= first.after:
            yield ConfigError(
                "the drops of the learning rate are not in order",
                where=f"schedule.drops.{index + 1}.after",
                found=f"{second.after} after {first.after}",
                expected="a later share of the run than the drop before",
                fix="sort schedule.drops by `after`",
            )
        if second.factor > first.factor:
            yield ConfigError(
                "a drop raises the learning rate",
                where=f"schedule.drops.{index + 1}.factor",
                found=f"{second.factor} after {first.factor}",
                expected="at most the factor of the drop before; each is a share of the peak",
                fix="write shares of the peak, the largest first",
            )


def rewinding_has_a_checkpoint_to_reach(run: RunConfig) -> Iterator[ConfigError]:
    """Where the guard goes back, one of the checkpoints that are kept is always old enough."""
    guard, saving = run.guard, run.checkpoint
    policies = {"guard.non_finite": guard.non_finite, "guard.spike": guard.spike}
    key = next((key for key, policy in policies.items() if policy == "rewind"), None)
    if key is None:
        return
    if not saving.every_steps:
        yield ConfigError(
            "the guard is to go back to a checkpoint, and none is saved at a known step",
            where=key,
            found="rewind, checkpoint.every_steps 0",
            expected="checkpoint.every_steps of 1 or more",
            fix="set checkpoint.every_steps, or pass over such data without going back: skip",
        )
    elif guard.rewind_steps > (saving.keep - 1) * saving.every_steps:  # the newest may be of the very last step
        needed = 1 - (-guard.rewind_steps // saving.every_steps)
        yield ConfigError(
            "the guard is to go back further than the checkpoints that are kept",
            where="guard.rewind_steps",
            found=f"{guard.rewind_steps}, checkpoint.keep {saving.keep}, checkpoint.every_steps {saving.every_steps}",
            expected=f"at most {(saving.keep - 1) * saving.every_steps} steps: (keep - 1) x every_steps",
            fix=f"for example checkpoint.keep: {needed}",
        )


RULES: tuple[Rule, ...] = (
    heads_divide_the_model,
    tensor_ranks_divide_the_model,
    sequence_parallel_has_ranks_to_share,
    stages_hold_every_layer,
    overlap_has_an_optimizer_to_overlap,
    microbatches_divide_the_batch,
    sequences_fit_the_positions,
    documents_are_kept_apart_by_our_kernels,
    a_run_reads_one_kind_of_data,
    corpora_have_names_of_their_own,
    drops_come_in_order,
    rewinding_has_a_checkpoint_to_reach,
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
