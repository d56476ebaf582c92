"""A run's state to a checkpoint and back, on all ranks together."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.background_writer import Answer, BackgroundWriter
from megatron_dsmath.checkpoint.manifest import FileEntry, Manifest
from megatron_dsmath.errors import DsmathError, InternalError, OutputError
from megatron_dsmath.fault_injection import fault_factor, fault_point
from megatron_dsmath.files import directories
from megatron_dsmath.parallel.collectives import broadcast_object, gather_objects
from megatron_dsmath.parallel.optimizer import weights_are_finite
from megatron_dsmath.parallel.shards import ShardSerializer
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.inputs import STATE_BYTES_PER_PARAMETER, deciding_keys
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.state import State

Facts = Mapping[str, Any]


def machine(topology: Topology) -> dict[str, Any]:
    """Of this process: how it sums, on what."""
    on_gpu = topology.device.type == "cuda"
    return {
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(topology.device) if on_gpu else "cpu",
        "torch": torch.__version__,
    }


def resume_differences(before: Facts, now: Facts) -> list[str]:
    """What is not as it was, as people read it: `threads 2 then, 1 now`."""
    names = [name for name in now if before.get(name) != now[name]]
    return [f"{name} {_shown(before.get(name))} then, {_shown(now[name])} now" for name in names]


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)


@cache
def _processor() -> str:
    """The model, and the instructions that torch chose for it."""
    described = Path("/proc/cpuinfo")  # Linux; `platform` knows no model there
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


SHARDS, TOKENIZER = "shards", "tokenizer"


class _Saving(NamedTuple):
    """A checkpoint that is not published yet."""

    folder: Path
    manifest: Manifest
    refused: OutputError | None = None  # what this rank was to write beside its writer
    is_written: bool = False  # by all ranks; what is left is to publish it


class Saver:
    """Saves a run's state, of which the run waits for a copy in memory only; writing is another process' work.

    All ranks call every method alike. Older checkpoints go once a newer one is published. What the disk refuses
    (OutputError, known to every rank some steps later) is told to `report` with the step; it is raised once there are
    more than `checkpoint.max_failures` in a row, and where the last save of all is one of them.
    """

    def __init__(self, job: Job, report: Callable[[int, OutputError], None]) -> None:
        self._job, self._topology, self._report = job, job.topology, report
        self._failures: list[OutputError] = []  # since the last checkpoint that was published
        self._is_first = job.topology.rank == 0
        self._snapshots: ShardSerializer | None = None
        self._writer: BackgroundWriter | None = None
        self._saving: _Saving | None = None
        self._last_save_time = time.monotonic()
        if self._is_first:
            directories.remove_leftovers(job.directory.checkpoints, "step_*")

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self.finish()
                if self._failures:
                    raise self._failures[-1]
        finally:
            if self._writer is not None:
                self._writer.close()

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint is not published yet; `advance` updates it."""
        return self._saving is not None

    @property
    def size_bytes(self) -> int:
        """Of this rank's part of the state; 0 before the first save."""
        return 0 if self._snapshots is None else self._snapshots.size_bytes

    def is_due(self, state: State) -> bool:
        """Whether this rank is to save the state; the clocks of the ranks may differ, so that all must agree."""
        settings = self._job.run.checkpoint
        if state.step == self._job.run.schedule.steps:
            return True
        if settings.every_steps and state.step % settings.every_steps == 0:
            return True
        minutes = (time.monotonic() - self._last_save_time) / 60
        return 0 < settings.every_minutes < minutes

    def is_writing(self) -> bool:
        """Whether this rank's writer is still busy with the checkpoint that is being saved."""
        return self._saving is not None and self._opened()[1].is_busy

    def save(self, state: State) -> None:
        """Copy the state and have it written to `checkpoints/step_N`, which is there once it is whole.

        Waits for the checkpoint before, if that is still being written, and says so. Raises InternalError where a
        weight is no number.
        """
        self._wait_for_the_one_before(state)
        _require_finite_weights(self._job, state.step)
        self._last_save_time = time.monotonic()
        folder: Path | OutputError = broadcast_object(self._begin(state) if self._is_first else None)
        if isinstance(folder, OutputError):
            self._fail(state.step, folder)
            return
        try:
            refused = self._copy(state, folder)
        except BaseException:
            if self._is_first:
                directories.discard(folder)
            raise
        self._saving = _Saving(folder, _manifest(self._job, state), refused)
        if not self._job.run.checkpoint.asynchronous:
            self.finish()

    def advance(self) -> None:
        """Take the next step of the save in progress, if there is one: publish what is written, or note the result.

        Waits for the writers of all ranks. It does not block where no rank's `is_writing` is True.
        """
        if self._saving is not None:
            self._advance()

    def finish(self) -> None:
        """Wait until nothing is left to write or to publish."""
        while self._saving is not None:
            self._advance()

    def _begin(self, state: State) -> Path | OutputError:
        """The directory to fill, made on one rank; or why there can be none."""
        root, folder = self._job.directory.checkpoints, None
        try:
            store.require_space(root, self._job.run.model.parameters * STATE_BYTES_PER_PARAMETER)
            store.set_aside_damaged(root / f"step_{state.step}")
            folder = directories.begin(root / f"step_{state.step}")
            with directories.report_write_errors(folder):
                fault_point("checkpoint.begun", state.step)
                (folder / SHARDS).mkdir()
                (folder / TOKENIZER).mkdir()
                for file in self._job.tokenizer.files:
                    shutil.copyfile(file, folder / TOKENIZER / file.name)
        except OutputError as error:
            if folder is not None:
                directories.discard(folder)
            return error
        return folder

    def _copy(self, state: State, folder: Path) -> OutputError | None:
        """Leave the state to this rank's writer; returns why it cannot be written."""
        snapshots, writer = self._opened()
        fault_point("checkpoint.copying", state.step)
        small = snapshots.serialize(writer.memory)
        fault_point("checkpoint.copied", state.step)
        present = [f"{SHARDS}/{name}" for name in small]
        if self._is_first:
            present += [f"{TOKENIZER}/{file.name}" for file in self._job.tokenizer.files]
        try:
            with directories.report_write_errors(folder):
                for name, content in small.items():
                    (folder / SHARDS / name).write_bytes(content)
        except OutputError as error:
            return error
        staged = {f"{SHARDS}/{snapshots.file_name}": snapshots.size_bytes}
        writer.ask("write", folder=str(folder), staged=staged, present=present)
        return None

    def _opened(self) -> tuple[ShardSerializer, BackgroundWriter]:
        if self._snapshots is None or self._writer is None:
            self._snapshots = ShardSerializer(self._job.model_chunks, self._job.optimizer, self._topology)
            self._writer = BackgroundWriter(max(1, self._snapshots.size_bytes))
            self._snapshots.prepare(self._writer.memory)
        return self._snapshots, self._writer

    def _advance(self) -> None:
        assert self._saving is not None
        folder, manifest, refused, is_written = self._saving
        _, writer = self._opened()
        answers = gather_objects(writer.answer() if refused is None else Answer(refused=refused), self._topology)
        refusals = [answer.refused for answer in answers if answer.refused is not None]
        if refusals:
            self._saving = None
            if self._is_first:
                directories.discard(folder)
            self._fail(manifest.step, min(refusals, key=lambda error: isinstance(error, OutputError)))
            return
        if is_written:
            self._saving = None
            self._failures.clear()
            return
        self._saving = self._saving._replace(is_written=True)
        if self._is_first:
            parts = [answer.done or {} for answer in answers]
            files = {name: FileEntry(**entry) for part in parts for name, entry in part.items()}
            writer.ask(
                "publish",
                folder=str(folder),
                manifest=manifest.model_copy(update={"files": files}).to_json(),
                keep=self._job.run.checkpoint.keep,
                sync=[str(self._job.ledger.steps_file)],
            )

    def _fail(self, step: int, error: DsmathError) -> None:
        """The save of `step` came to nothing: go on without it, or raise the error."""
        if not isinstance(error, OutputError):
            raise error
        self._failures.append(error)
        if len(self._failures) > self._job.run.checkpoint.max_failures:
            raise error
        self._report(step, error)

    def _wait_for_the_one_before(self, state: State) -> None:
        if self._saving is None:
            return
        started, folder = time.monotonic(), self._saving.folder
        self.finish()
        if self._is_first and not self._failures:
            before = folder.name.partition(".")[0]
            seconds = time.monotonic() - started
            print(f"step {state.step} waited {seconds:.1f} s to be saved, until {before} was written", flush=True)


def _require_finite_weights(job: Job, step: int) -> None:
    """Raise InternalError on all ranks if a weight is NaN or infinite on any: such a state is not worth saving."""
    factor = fault_factor("save.weights", step)
    if factor != 1.0:
        job.optimizer.get_parameters()[-1].data.view(-1)[0] *= factor
    are_finite = gather_objects(weights_are_finite(job.optimizer), job.topology)
    bad = [str(rank) for rank, is_finite in enumerate(are_finite) if not is_finite]
    if bad:
        raise InternalError(
            "a weight is no number",
            where=f"step {step}, rank {', '.join(bad)}",
            expected="finite weights: the loss and the gradients were",
            fix="nothing was saved; run it again: it goes on from its newest checkpoint. If it is the same rank again, "
            "look at its machine",
        )


def layout(job: Job) -> dict[str, Any]:
    """How the run's ranks are arranged."""
    return {**job.run.parallel.model_dump(mode="json"), "world_size": job.topology.world_size}


def _manifest(job: Job, state: State) -> Manifest:
    run = job.run
    return Manifest(
        kind="training",
        step=state.step,
        next_sample=state.next_sample,
        consumed_tokens=state.consumed_tokens,
        model=run.model,
        layout=layout(job),
        precision=run.precision,
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        state=state.as_dict(),
        run=deciding_keys(run),
        machine=machine(job.topology),
    )
