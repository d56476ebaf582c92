"""Saves the state of a run as a checkpoint, on all ranks together."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from megatron_dsmath.checkpoint import store, tokenizer_files
from megatron_dsmath.checkpoint.background_writer import Answer, BackgroundWriter
from megatron_dsmath.checkpoint.checkpoint_weights import SHARDS_FOLDER
from megatron_dsmath.checkpoint.manifest import FileEntry, Manifest
from megatron_dsmath.config.phases import total_steps
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


class _Saving(NamedTuple):
    """A checkpoint that is not published yet."""

    folder: Path
    manifest: Manifest
    refused: OutputError | None = None  # the error of a file that this rank writes itself
    is_written: bool = False  # by all ranks; only publishing is left


class Saver:
    """Saves the state of a run: training waits for a copy in memory, and another process writes it to the disk.

    All ranks call every method together, except `is_due` and `is_writing`. Older checkpoints are deleted once a newer
    one is published. An OutputError of the writer reaches all ranks some steps later. It is passed to `report` with its
    step. It is raised after more than `checkpoint.max_failures` in a row, and where the last save of the run fails.
    """

    def __init__(self, job: Job, report: Callable[[int, OutputError], None]) -> None:
        self._job, self._topology, self._report = job, job.topology, report
        self._failures: list[OutputError] = []  # since the last published checkpoint
        self._is_first = job.topology.rank == 0
        self._serializer: ShardSerializer | None = None
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
        """The size of this rank's part of the state; 0 before the first save."""
        return 0 if self._serializer is None else self._serializer.size_bytes

    def is_due(self, state: State) -> bool:
        """Whether the state is to be saved, by this rank's clock; the ranks must agree on it."""
        settings = self._job.run.checkpoint
        if state.step == total_steps(self._job.run):
            return True
        if settings.every_steps and state.step % settings.every_steps == 0:
            return True
        minutes = (time.monotonic() - self._last_save_time) / 60
        return 0 < settings.every_minutes < minutes

    def is_writing(self) -> bool:
        """Whether this rank's writer is still busy with the checkpoint that is being saved."""
        return self._saving is not None and self._open_writer()[1].is_busy

    def save(self, state: State) -> None:
        """Copy the state, and begin to write it to `checkpoints/step_N`, which exists once it is complete.

        Waits for the previous checkpoint if it is still being written, and prints that. Raises InternalError where a
        weight is not finite.
        """
        self._wait_for_previous(state)
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

    def finish(self) -> None:
        """Wait until the save in progress, if there is one, is published or has failed."""
        while self._saving is not None:
            self.advance()

    def advance(self) -> None:
        """Take the next step of the save in progress, if there is one: publish what is written, or note the result.

        Waits for the writers of all ranks. It does not block where no rank's `is_writing` is True.
        """
        if self._saving is None:
            return
        folder, manifest, refused, is_written = self._saving
        _, writer = self._open_writer()
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

    def _begin(self, state: State) -> Path | OutputError:
        """Make the directory of a checkpoint, on one rank; returns it, or the error where it cannot be made."""
        root, folder = self._job.directory.checkpoints, None
        try:
            store.require_space(root, self._job.run.model.parameters * STATE_BYTES_PER_PARAMETER)
            store.set_aside_damaged(root / f"step_{state.step}")
            folder = directories.begin(root / f"step_{state.step}")
            with directories.report_write_errors(folder):
                fault_point("checkpoint.begun", state.step)
                (folder / SHARDS_FOLDER).mkdir()
                (folder / tokenizer_files.FOLDER).mkdir()
                for file in self._job.tokenizer.files:
                    shutil.copyfile(file, folder / tokenizer_files.FOLDER / file.name)
        except OutputError as error:
            if folder is not None:
                directories.discard(folder)
            return error
        return folder

    def _copy(self, state: State, folder: Path) -> OutputError | None:
        """Copy the state for this rank's writer and start it; returns the error where a file cannot be written."""
        serializer, writer = self._open_writer()
        fault_point("checkpoint.copying", state.step)
        small = serializer.serialize(writer.memory)
        fault_point("checkpoint.copied", state.step)
        present = [f"{SHARDS_FOLDER}/{name}" for name in small]
        if self._is_first:
            present += [f"{tokenizer_files.FOLDER}/{file.name}" for file in self._job.tokenizer.files]
        try:
            with directories.report_write_errors(folder):
                for name, content in small.items():
                    (folder / SHARDS_FOLDER / name).write_bytes(content)
        except OutputError as error:
            return error
        staged = {f"{SHARDS_FOLDER}/{serializer.file_name}": serializer.size_bytes}
        writer.ask("write", folder=str(folder), staged=staged, present=present)
        return None

    def _open_writer(self) -> tuple[ShardSerializer, BackgroundWriter]:
        if self._serializer is None or self._writer is None:
            self._serializer = ShardSerializer(self._job.model_chunks, self._job.optimizer, self._topology)
            self._writer = BackgroundWriter(max(1, self._serializer.size_bytes))
            self._serializer.prepare(self._writer.memory)
        return self._serializer, self._writer

    def _fail(self, step: int, error: DsmathError) -> None:
        """Count the failed save of `step`, and report its error; raise it where the run may not continue."""
        if not isinstance(error, OutputError):
            raise error
        self._failures.append(error)
        if len(self._failures) > self._job.run.checkpoint.max_failures:
            raise error
        self._report(step, error)

    def _wait_for_previous(self, state: State) -> None:
        if self._saving is None:
            return
        started, folder = time.monotonic(), self._saving.folder
        self.finish()
        if self._is_first and not self._failures:
            previous = folder.name.partition(".")[0]
            seconds = time.monotonic() - started
            print(f"the save of step {state.step} waited {seconds:.1f} s until {previous} was written", flush=True)


def _require_finite_weights(job: Job, step: int) -> None:
    """Raise InternalError on all ranks if a weight is NaN or infinite on any rank."""
    factor = fault_factor("save.weights", step)
    if factor != 1.0:
        job.optimizer.get_parameters()[-1].data.view(-1)[0] *= factor
    are_finite = gather_objects(weights_are_finite(job.optimizer), job.topology)
    bad = [str(rank) for rank, is_finite in enumerate(are_finite) if not is_finite]
    if bad:
        raise InternalError(
            "a weight is not finite",
            where=f"step {step}, rank {', '.join(bad)}",
            expected="finite weights, since the loss and the gradients of the step were finite",
            fix="nothing was saved; run it again: it continues from its newest checkpoint; if the same rank fails "
            "again, check its machine",
        )


def layout(job: Job) -> dict[str, Any]:
    """The layout of the run's ranks, as a manifest records it."""
    return {**job.run.parallel.model_dump(mode="json"), "world_size": job.topology.world_size}


def machine(topology: Topology) -> dict[str, Any]:
    """The properties of this process that change the last bits of sums, as a manifest records them."""
    on_gpu = topology.device.type == "cuda"
    return {
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(topology.device) if on_gpu else "cpu",
        "torch": torch.__version__,
    }


@cache
def _processor() -> str:
    """The model of the processor, and the instruction set that torch uses on it."""
    file = Path("/proc/cpuinfo")  # on Linux, `platform` does not know the model
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


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
        run=deciding_keys(run, state.step),
        machine=machine(job.topology),
    )
