"""The state of each stage, decided from what its command leaves; there is no record beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.checkpoint.huggingface_config import CONFIG
from megatron_dsmath.checkpoint.manifest import MANIFEST
from megatron_dsmath.checkpoint.store import newest_checkpoint, read_step_manifest
from megatron_dsmath.config import RunConfig
from megatron_dsmath.config.phases import total_steps, total_tokens
from megatron_dsmath.data.indexed.dataset import bin_path, idx_path
from megatron_dsmath.data.indexed.sidecar import CONVERSATIONS, read_sidecar, sidecar_path
from megatron_dsmath.data.sft.examples import labels_path, targets_path
from megatron_dsmath.evaluation.protocol import load_protocol
from megatron_dsmath.recipe.recipe_file import BuildSection, EvaluateSection, TrainSection
from megatron_dsmath.recipe.recipe_stages import Stage
from megatron_dsmath.training.run_directory import RunDirectory

CLOCKS_DIFFER_SECONDS = 5.0  # of two machines; a command loads its libraries for about as long before it begins
Status = Literal["done", "begun", "to do", "missing", "out of date"]


@dataclass(frozen=True)
class StageState:
    """The state of a stage, and what it found on the disk."""

    status: Status
    detail: str = ""
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.status == "missing":
            return f"missing: {', '.join(self.missing)}"
        return self.detail if self.status == "begun" else ": ".join(part for part in (self.status, self.detail) if part)


@dataclass(frozen=True)
class _Traces:
    """What a stage has left: when it took the output of earlier stages, when it was completed, and how far it is."""

    begun: float | None = None
    completed: float | None = None
    progress: str = ""
    differences: tuple[str, ...] = ()


def stage_states(stages: Sequence[Stage]) -> dict[str, StageState]:
    """The state of each stage by its name. Raises CheckpointError where all checkpoints of a run are damaged."""
    traces: dict[str, _Traces] = {}
    states: dict[str, StageState] = {}
    made = [stage.product.resolve() for stage in stages]
    for stage in stages:
        found = traces[stage.name] = _traces(stage)
        changed = next(_changes(stage, traces, states), None)
        inputs = dict.fromkeys(stage.inputs)
        absent = tuple(path for path in inputs if not _exists(path) and not _is_within(path, made))
        if changed is not None:
            states[stage.name] = StageState("out of date", changed)
        elif found.completed is not None:
            states[stage.name] = StageState("done")
        elif absent:
            states[stage.name] = StageState("missing", missing=absent)
        else:
            states[stage.name] = StageState("begun", found.progress) if found.progress else StageState("to do")
    return states


def plan_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """A row per stage: the columns of `dsmath recipe --plan`, and what launch/chain.sh needs."""
    states = stage_states(stages)
    rows = []
    for stage in stages:
        run = stage.run if stage.kind == "train" else None
        rows.append(
            {
                "stage": stage.name,
                "kind": stage.kind,
                "state": str(states[stage.name]),
                "steps": total_steps(run) if run else None,
                "tokens": total_tokens(run) if run else None,
                "command": shlex.join(["dsmath", *stage.local_arguments]),
                "status": states[stage.name].status,
                "missing": states[stage.name].missing,
                "depends_on": stage.depends_on,
                "output": stage.output,
                "arguments": stage.arguments,
                "sbatch": stage.sbatch,
            }
        )
    return rows


def _changes(stage: Stage, traces: dict[str, _Traces], states: dict[str, StageState]) -> Iterator[str]:
    """Why what the stage has made does not follow from the recipe and the outputs of earlier stages of today."""
    own = traces[stage.name]
    yield from own.differences
    if own.begun is None:
        return
    for name in stage.depends_on:
        if states[name].status != "done":
            yield f"it was made before {name}, which is not done ({states[name]})"
        elif (traces[name].completed or 0.0) > own.begun + CLOCKS_DIFFER_SECONDS:
            yield f"it was made before the present output of {name}"


def _traces(stage: Stage) -> _Traces:
    if isinstance(stage.section, TrainSection):
        assert stage.run is not None
        return _run_traces(stage.run)
    if isinstance(stage.section, BuildSection):
        return _set_traces(stage.output, stage.section)
    if isinstance(stage.section, EvaluateSection):
        return _evaluation_traces(stage.output, stage.section)
    written = _written(stage.output / CONFIG)  # the folder appears whole
    return _Traces(written, written)


def _run_traces(run: RunConfig) -> _Traces:
    directory, steps = RunDirectory(Path(run.output)), total_steps(run)
    checkpoint = newest_checkpoint(directory.root)
    if checkpoint is None:
        return _Traces()
    step = read_step_manifest(checkpoint).step
    is_complete = step >= steps and directory.state() == "done"
    return _Traces(
        begun=directory.first_start(),
        completed=_written(checkpoint / MANIFEST) if is_complete else None,
        progress=f"at step {step:,} of {steps:,}",
    )


def _set_traces(prefix: Path, section: BuildSection) -> _Traces:
    files = (bin_path, sidecar_path, targets_path, labels_path, idx_path)
    written = [_written(path(prefix)) for path in files]
    if None in written:
        return _Traces()
    facts: dict[str, Any] = (read_sidecar(prefix) or {}).get(CONVERSATIONS, {})  # type: ignore[assignment]
    options = facts.get("options", {})
    asked = {"sequence_length": section.sequence_length, "too_long": section.too_long, "bad_lines": section.bad_lines}
    return _Traces(written[-1], written[-1], differences=_differences(options, asked))


def _evaluation_traces(out: Path, section: EvaluateSection) -> _Traces:
    description = out / "evaluation.json"
    begun = _written(description)
    if begun is None:
        return _Traces()
    asked: dict[str, Any] = {
        "protocol_sha256": load_protocol(section.protocol, Path(section.data)).sha256,
        "benchmarks": {Path(task).stem if task.endswith(".jsonl") else task for task in section.tasks},
        "limit": section.limit,
        "samples": section.samples,
        "backend": section.backend,
        "batch_problems": section.batch,
    }
    found = json.loads(description.read_text(encoding="utf-8"))
    found["benchmarks"] = set(found["benchmarks"])
    answers = sum(path.read_bytes().count(b"\n") for path in (out / "outputs").glob("*.jsonl"))
    # report.html is written after results.json.
    completed = _written(out / "results.json") if (out / "report.html").is_file() else None
    return _Traces(begun, completed, f"after {answers:,} answers", _differences(found, asked))


def _differences(found: dict[str, Any], asked: dict[str, Any]) -> tuple[str, ...]:
    differing = [key for key in asked if found.get(key) != asked[key]]
    return tuple(f"it was made with {key} {found.get(key)}, the recipe has {asked[key]}" for key in differing)


def _written(path: Path) -> float | None:
    """When a file was written; None if there is none."""
    return path.stat().st_mtime if path.is_file() else None


def _exists(path: str) -> bool:
    return Path(path).exists() or bool(glob(path, recursive=True))  # noqa: PTH207, pathlib matches no absolute pattern


def _is_within(path: str, folders: Sequence[Path]) -> bool:
    return any(Path(path).resolve().is_relative_to(folder) for folder in folders)
