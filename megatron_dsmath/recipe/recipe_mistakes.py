"""Loads a recipe and finds every mistake of it before a process starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_dsmath.checkpoint.huggingface_config import CONFIG, model_from
from megatron_dsmath.checkpoint.manifest import MANIFEST, check_same_model, read_manifest
from megatron_dsmath.checkpoint.store import newest_checkpoint
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.config.source import Source
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import CheckpointError, ConfigError, DsmathError, Refusals, TokenizerError, raise_all
from megatron_dsmath.evaluation.benchmarks import CUSTOM_SUFFIX, load_benchmarks
from megatron_dsmath.evaluation.protocol import load_protocol
from megatron_dsmath.evaluation.published import PUBLISHED
from megatron_dsmath.recipe.recipe_file import EvaluateSection, load_recipe_file
from megatron_dsmath.recipe.recipe_stages import Stage, UnknownStageError, benchmark_file, build_stage


def load_stages(path: str | Path) -> list[Stage]:
    """The stages of a recipe. Raises the error, or Refusals with all mistakes of the recipe and its files.

    Run files, sources and protocols are loaded. Of what later stages take, models, tokenizers and paths are compared.
    """
    sections, source = load_recipe_file(path)
    stages: list[Stage] = []
    errors: list[DsmathError] = []
    for index in range(len(sections)):
        try:
            stages.append(build_stage(sections, index, stages, source))
        except UnknownStageError:
            continue
        except Refusals as refusals:
            errors += refusals.errors
        except DsmathError as error:
            errors.append(error)
    for index, stage in enumerate(stages):
        errors += _path_mistakes(stages, index, source)
        errors += _model_mistakes(stage, stages[:index], source)
        errors += _tokenizer_mistakes(stage, stages[:index], source)
        errors += _evaluation_mistakes(stage, source)
    raise_all(errors)
    return stages


def _path_mistakes(stages: Sequence[Stage], index: int, source: Source) -> Iterator[DsmathError]:
    """Two stages with one output, and a stage that reads a later one's."""
    stage = stages[index]
    for other in stages[:index]:
        if other.output.resolve() == stage.output.resolve():
            yield ConfigError(
                "two stages have the same output",
                where=source.where(stage.key),
                found=f"{stage.output}, also of {other.name}",
                expected="a different output for each stage",
                fix="change one of them",
            )
    for other in stages[index:]:
        if stage.reads(other):
            yield ConfigError(
                "a stage reads the output of a later stage, or its own",
                where=source.where(stage.key),
                found=f"{stage.name} reads {other.product}, the output of {other.name}",
                expected="stages in the order in which they run",
                fix="move one of them",
            )


def _model_mistakes(stage: Stage, earlier: Sequence[Stage], source: Source) -> Iterator[DsmathError]:
    """Initial weights that do not fit the run."""
    if stage.kind != "train" or stage.run is None or stage.run.model.initial_weights is None:
        return
    weights = Path(stage.run.model.initial_weights)
    makers = [other for other in earlier if weights.resolve().is_relative_to(other.product.resolve())]
    try:
        found = makers[-1].run.model if makers and makers[-1].run else _stored_model(weights)
    except DsmathError as error:
        yield error
        return
    try:
        if found is not None:
            check_same_model(found, stage.run.model)
    except CheckpointError as error:
        where = f"{source.where(stage.key)}, weights of {makers[-1].name if makers else weights}"
        yield CheckpointError(error.what, where=where, found=error.found, expected=error.expected, fix=error.fix)


def _stored_model(weights: Path) -> ModelConfig | None:
    """The shape of weights on the disk; None if there are none yet."""
    if (weights / CONFIG).is_file():
        return model_from(json.loads((weights / CONFIG).read_text(encoding="utf-8")), weights / CONFIG)
    checkpoint = weights if (weights / MANIFEST).is_file() else newest_checkpoint(weights)
    return read_manifest(checkpoint).model if checkpoint is not None else None


def _tokenizer_mistakes(stage: Stage, earlier: Sequence[Stage], source: Source) -> Iterator[DsmathError]:
    """A tokenizer that differs from that of an earlier stage, as far as both are on the disk."""
    for other in earlier:
        if other.name not in stage.depends_on or stage.tokenizer is None or other.tokenizer is None:
            continue
        paths = [Path(stage.tokenizer), Path(other.tokenizer)]
        if paths[0].resolve() == paths[1].resolve() or not all(path.exists() for path in paths):
            continue
        try:
            found, expected = (load_tokenizer(path).fingerprint for path in paths)
        except DsmathError as error:
            yield error
            continue
        if found != expected:
            yield TokenizerError(
                "two stages that depend on one another have different tokenizers",
                where=source.where(stage.key),
                found=f"{paths[0]}, fingerprint {found}",
                expected=f"fingerprint {expected} of {paths[1]}, the tokenizer of {other.name}",
                fix=f"set tokenizer: {other.name} in {stage.name}",
            )


def _evaluation_mistakes(stage: Stage, source: Source) -> Iterator[DsmathError]:
    """Tasks that do not exist, and what loading the benchmarks and the protocol finds in the files that exist."""
    section = stage.section
    if not isinstance(section, EvaluateSection):
        return
    for index, task in enumerate(section.tasks):
        if task in section.tasks[:index] or (task not in PUBLISHED and not task.endswith(CUSTOM_SUFFIX)):
            yield ConfigError(
                "a task is unknown or named twice",
                where=source.where(f"{stage.key}.evaluate.tasks.{index}"),
                found=task,
                expected=f"{', '.join(PUBLISHED)}, or FILE{CUSTOM_SUFFIX} in the folder of `data`, each once",
                fix="remove it, or write one of these",
            )
            return
    tasks = [task for task in section.tasks if Path(benchmark_file(section, task)).is_file()]
    try:
        protocol = load_protocol(section.protocol, Path(section.data))
        for benchmark in load_benchmarks(Path(section.data), tasks):
            for problem in benchmark.problems:
                protocol.prompt_of(problem)
    except Refusals as refusals:
        yield from refusals.errors
    except DsmathError as error:
        yield error
