"""The sections of a recipe file, and its loading."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, PositiveInt, ValidationError

from megatron_dsmath.config.mistakes import validation_errors
from megatron_dsmath.config.sections import Section
from megatron_dsmath.config.source import Source, lists_to_tuples, read
from megatron_dsmath.errors import ConfigError, raise_all

REFERENCE = "docs/reference/recipe.md lists every key"


class TrainSection(Section):
    """A run: `dsmath train`."""

    run: str
    """The run file."""
    set: tuple[str, ...] = ()
    """Changed keys of the run file, each as `a.b=c`."""
    initial_weights: str | None = None
    """A stage (train, export) or a path, for `model.initial_weights`; null: as in the run file."""
    tokenizer: str | None = None
    """A stage or a path, for `data.tokenizer`; null: as in the run file."""
    conversations: str | None = None
    """A stage (sft_build) or a path, for `data.conversations.prefix`; null: as in the run file."""
    nproc: PositiveInt | None = None
    """Ranks on this machine; null: one process. SLURM jobs start one rank per GPU."""


class BuildSection(Section):
    """A set of conversations: `dsmath sft build`."""

    recipe: str
    """The file that lists the sources of the set."""
    tokenizer: str
    """A stage or a path."""
    out: str
    """The prefix of the set."""
    sequence_length: PositiveInt = 4096
    """The longest example, in tokens (4096)."""
    too_long: Literal["drop", "truncate", "fail"] = "drop"
    """What to do about a longer example (drop)."""
    bad_lines: Literal["fail", "skip"] = "fail"
    """What to do about a row that is not a conversation (fail)."""
    workers: PositiveInt = 1
    """Tokenizing processes (1)."""


class ExportSection(Section):
    """A Hugging Face folder: `dsmath export-hf`."""

    weights: str
    """A stage (train) or a path: a run's directory or a checkpoint."""
    out: str
    """The folder."""
    gate: bool = True
    """Compare logits with transformers (true)."""


class EvaluateSection(Section):
    """Scores on benchmarks: `dsmath evaluate`."""

    model: str
    """A stage (train, export) or a path."""
    data: str
    """The folder of the benchmarks."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """The benchmarks."""
    protocol: str
    """The name of a protocol, or a YAML file."""
    out: str
    """The directory of the results."""
    limit: PositiveInt | None = None
    """Evaluate only the first problems of each task; null: all."""
    samples: PositiveInt = 1
    """Answers per problem (1)."""
    backend: Literal["own", "transformers", "vllm"] = "own"
    """The inference engine (own)."""
    batch: PositiveInt = 16
    """Answers that are generated together (16)."""


class StageSection(Section):
    """One stage: a name and exactly one of `train`, `sft_build`, `export` and `evaluate`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Later stages refer to it by this name; a path has a `/` in it."""
    train: TrainSection | None = None
    """A run."""
    sft_build: BuildSection | None = None
    """A set of conversations."""
    export: ExportSection | None = None
    """A Hugging Face folder."""
    evaluate: EvaluateSection | None = None
    """Scores on benchmarks."""
    sbatch: tuple[str, ...] = ()
    """Options of sbatch for the job of this stage (`launch/chain.sh`)."""

    @property
    def key(self) -> str:
        """The key of the stage's section."""
        return next(key for key in KINDS if getattr(self, key) is not None)


class RecipeFile(Section):
    """A recipe. Relative paths start at the working directory."""

    stages: tuple[StageSection, ...] = Field(min_length=1)
    """The stages in the order in which they run."""


KINDS = ("train", "sft_build", "export", "evaluate")


class LoadedRecipe(NamedTuple):
    """A recipe, and the lines of its keys."""

    stages: tuple[StageSection, ...]
    source: Source


def load_recipe_file(path: str | Path) -> LoadedRecipe:
    """Read a recipe. Raises ConfigError, or Refusals with all mistakes, each with its line."""
    source = read(path)
    errors = list(source.mistakes)
    stages: tuple[StageSection, ...] = ()
    try:
        stages = RecipeFile.model_validate(lists_to_tuples(source.tree)).stages
    except ValidationError as error:
        errors += validation_errors(error, source, RecipeFile, REFERENCE)
    first: dict[str, int] = {}
    for index, stage in enumerate(stages):
        kinds = [key for key in KINDS if getattr(stage, key) is not None]
        if len(kinds) != 1:
            errors.append(
                ConfigError(
                    "a stage does exactly one thing",
                    where=source.where(f"stages.{index}"),
                    found=" and ".join(kinds) or "nothing",
                    expected=f"one of {', '.join(KINDS)}",
                    fix="write one of these sections, or divide the stage",
                )
            )
        if first.setdefault(stage.name, index) != index:
            errors.append(
                ConfigError(
                    "two stages have the same name",
                    where=source.where(f"stages.{index}.name"),
                    found=f"{stage.name}, first at {source.where(f'stages.{first[stage.name]}.name')}",
                    expected="a different name for each stage",
                    fix="rename one",
                )
            )
    raise_all(errors)
    return LoadedRecipe(stages, source)
