"""The stages of a recipe: the command of each, what it reads and what it writes.

A stage depends on an earlier one if it reads a path that the earlier one writes, whether the recipe names the stage or
the path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from megatron_dsmath.config import RunConfig, load
from megatron_dsmath.config.source import Source
from megatron_dsmath.data.sft.sources import load_recipe
from megatron_dsmath.errors import ConfigError
from megatron_dsmath.evaluation.benchmarks import CUSTOM_SUFFIX
from megatron_dsmath.evaluation.protocol import SHIPPED
from megatron_dsmath.evaluation.published import PUBLISHED
from megatron_dsmath.recipe.recipe_file import (
    BuildSection,
    EvaluateSection,
    ExportSection,
    StageSection,
    TrainSection,
)


@dataclass(frozen=True)
class Stage:
    """One stage with all references resolved to paths."""

    name: str
    key: str
    """Where it is in the recipe: `stages.0`."""
    section: TrainSection | BuildSection | ExportSection | EvaluateSection
    arguments: tuple[str, ...]
    """Of `dsmath`, without `--nproc`."""
    output: Path
    """The run's directory, the prefix of the set, or the folder."""
    inputs: tuple[str, ...]
    """Files, folders and patterns of files that must exist before the stage starts."""
    run: RunConfig | None = None
    """The run of a train stage, and the run that an export stage exports."""
    tokenizer: str | None = None
    """The path of the tokenizer, where the recipe or a run file has it."""
    depends_on: tuple[str, ...] = ()
    """The names of the earlier stages whose output it reads."""
    sbatch: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The verb of `dsmath`."""
        return " ".join(self.arguments[:2]) if self.arguments[0] == "sft" else self.arguments[0]

    @property
    def product(self) -> Path:
        """The path by which later stages read the output."""
        return Path(f"{self.output}.idx") if isinstance(self.section, BuildSection) else self.output

    @property
    def local_arguments(self) -> tuple[str, ...]:
        """The arguments of `dsmath` on this machine."""
        ranks = self.section.nproc if isinstance(self.section, TrainSection) else None
        return self.arguments if ranks is None else (*self.arguments, "--nproc", str(ranks))

    def reads(self, other: Stage) -> bool:
        """Whether an input of this stage is the output of the other, or within it."""
        product = other.product.resolve()
        return any(Path(path).resolve().is_relative_to(product) for path in self.inputs)


class UnknownStageError(Exception):
    """A stage refers to one that has mistakes of its own, which are reported already."""


def build_stage(sections: Sequence[StageSection], index: int, earlier: Sequence[Stage], source: Source) -> Stage:
    """The stage `index`. Raises ConfigError and Refusals for its mistakes, UnknownStageError for those of another."""
    section, references = sections[index], _References(sections, index, earlier, source)
    if section.train is not None:
        stage = _train(section.name, section.train, references)
    elif section.sft_build is not None:
        stage = _build(section.name, section.sft_build, references)
    elif section.export is not None:
        stage = _export(section.name, section.export, references)
    else:
        assert section.evaluate is not None  # `recipe_file` has checked it
        stage = _evaluate(section.name, section.evaluate, references)
    depends_on = tuple(other.name for other in earlier if stage.reads(other))
    return replace(stage, depends_on=depends_on, sbatch=section.sbatch)


class _References:
    """Finds the stages that one stage names."""

    def __init__(self, sections: Sequence[StageSection], index: int, earlier: Sequence[Stage], source: Source) -> None:
        self.key = f"stages.{index}"
        self._names, self._own_index = [section.name for section in sections], index
        self._earlier, self._source = {stage.name: stage for stage in earlier}, source

    def find(self, key: str, value: str, kinds: Sequence[str]) -> Stage | None:
        """The earlier stage with the name `value`, of one of `kinds`; None for a path, which has a `/`."""
        if "/" in value:
            return None
        where = self._source.where(f"{self.key}.{key}")
        before = ", ".join(self._names[: self._own_index]) or "none"
        if value not in self._names:
            matches = get_close_matches(value, self._names, n=1)
            raise ConfigError(
                "there is no such stage",
                where=where,
                found=value,
                expected=f"an earlier stage ({before}), or a path with a /",
                fix=f"write {matches[0]}" if matches else f"for a file in this directory write ./{value}",
            )
        if self._names.index(value) >= self._own_index:
            raise ConfigError(
                "a stage takes something from a later stage, or from itself",
                where=where,
                found=value,
                expected=f"an earlier stage ({before})",
                fix="stages run in the order of the file: move one of them",
            )
        if value not in self._earlier:
            raise UnknownStageError
        stage = self._earlier[value]
        if stage.kind not in kinds:
            raise ConfigError(
                "the stage does not make what is taken from it",
                where=where,
                found=f"{value}, which is {stage.kind}",
                expected=f"a stage of {' or '.join(kinds)}",
                fix="name another stage, or a path",
            )
        return stage

    def output(self, key: str, value: str, *kinds: str) -> str:
        """The output of the stage `value`, or the path `value`."""
        stage = self.find(key, value, kinds)
        return value if stage is None else str(stage.output)

    def tokenizer(self, key: str, value: str) -> str:
        """The tokenizer of the stage `value`, or the path `value`."""
        stage = self.find(key, value, ("train", "sft build", "export-hf"))
        if stage is None:
            return value
        return stage.tokenizer if stage.tokenizer is not None else str(stage.output)


def _train(name: str, section: TrainSection, references: _References) -> Stage:
    changes = list(section.set)
    if section.initial_weights is not None:
        weights = references.output("train.initial_weights", section.initial_weights, "train", "export-hf")
        changes.append(_assignment("model.initial_weights", weights))
    if section.tokenizer is not None:
        changes.append(_assignment("data.tokenizer", references.tokenizer("train.tokenizer", section.tokenizer)))
    if section.conversations is not None:
        prefix = references.output("train.conversations", section.conversations, "sft build")
        changes.append(_assignment("data.conversations.prefix", prefix))
    run = load(section.run, changes)
    inputs = [run.data.tokenizer, *(f"{prefix}.idx" for corpus in run.data.corpora for prefix in corpus.paths)]
    inputs += [f"{run.data.conversations.prefix}.idx"] if run.data.conversations else []
    inputs += [run.model.initial_weights] if run.model.initial_weights else []
    arguments = ("train", section.run, *(word for change in changes for word in ("--set", change)))
    return Stage(
        name, references.key, section, arguments, Path(run.output), tuple(inputs), run, tokenizer=run.data.tokenizer
    )


def _build(name: str, section: BuildSection, references: _References) -> Stage:
    tokenizer = references.tokenizer("sft_build.tokenizer", section.tokenizer)
    paths = [path for entry in load_recipe(section.recipe).sources for path in entry.paths]
    inputs = [tokenizer, *(paths or [f"{section.recipe}: sources[].paths"])]
    flags = ["--recipe", section.recipe, "--tokenizer", tokenizer, "--out", section.out]
    flags += ["--sequence-length", str(section.sequence_length), "--too-long", section.too_long]
    flags += ["--bad-lines", section.bad_lines, "--workers", str(section.workers)]
    arguments = ("sft", "build", *flags)
    return Stage(name, references.key, section, arguments, Path(section.out), tuple(inputs), tokenizer=tokenizer)


def _export(name: str, section: ExportSection, references: _References) -> Stage:
    stage = references.find("export.weights", section.weights, ("train",))
    weights = section.weights if stage is None else str(stage.output)
    arguments = ("export-hf", weights, "--out", section.out, *([] if section.gate else ["--no-gate"]))
    run = stage.run if stage else None
    return Stage(name, references.key, section, arguments, Path(section.out), (weights,), run)


def _evaluate(name: str, section: EvaluateSection, references: _References) -> Stage:
    model = references.output("evaluate.model", section.model, "train", "export-hf")
    flags = ["--model", model, "--data", section.data, "--tasks", ",".join(section.tasks)]
    flags += ["--protocol", section.protocol, "--samples", str(section.samples), "--backend", section.backend]
    flags += ["--batch", str(section.batch), *(["--limit", str(section.limit)] if section.limit else [])]
    files = [benchmark_file(section, task) for task in section.tasks]
    inputs = [model, *files, *([] if section.protocol in SHIPPED else [section.protocol])]
    arguments = ("evaluate", *flags, "--out", section.out)
    return Stage(name, references.key, section, arguments, Path(section.out), tuple(inputs))


def benchmark_file(section: EvaluateSection, task: str) -> str:
    """The path of the problems of a task; an unknown task is its own file name."""
    name = task if task.endswith(CUSTOM_SUFFIX) or task not in PUBLISHED else PUBLISHED[task].file
    return str(Path(section.data) / name)


def _assignment(key: str, path: str) -> str:
    return f"{key}={json.dumps(path, ensure_ascii=False)}"
