"""`dsmath quickstart`: from corpora to a report on two CPU processes, with a kill and a resume on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.config import RunConfig, load
from megatron_dsmath.data.indexed.dataset import idx_path
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.errors import EXIT_DONE, InternalError
from megatron_dsmath.parallel.topology import destroy_topology, initialize_topology
from megatron_dsmath.quickstart import corpora
from megatron_dsmath.quickstart.small_tokenizer import train_tokenizer
from megatron_dsmath.training.evaluating import validate
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.run_directory import RunDirectory

RUN_FILE = Path(__file__).with_name("pretrain.yaml")
RANKS = 2
LARGEST_DIFFERENCE = 1e-4  # relative, of two fp32 forward passes that add in different orders
PROMPT = "Example 1. Solve $3x + 5 = 20$ for $x$.\nSolution."
NEW_TOKENS = 48
Rows = list[tuple[str, str]]
WriteReport = Callable[[Path, Rows], Path]


def run_quickstart(out: Path, write_report: WriteReport) -> Path:
    """Make the data, train, kill, resume, export and report under `out`; return the path of the report.

    A rerun continues where this one stopped. `write_report` writes the page of a run's directory, with (label, value)
    rows of the quickstart on it, and returns its path. Raises InternalError when the exported model computes another
    validation loss than the trained one.
    """
    started = time.monotonic()
    overrides = _overrides(out)
    run = load(RUN_FILE, overrides, RANKS)
    directory = RunDirectory(Path(run.output))
    make_data(out, run)
    if directory.state() is None:
        _train_and_kill(directory, overrides, after_step=run.schedule.steps * 5 // 8)
    if directory.state() != "done":
        _train(overrides)
    exported = _export(out, run, overrides)
    rows = _rows(out, directory, exported, time.monotonic() - started)
    page = write_report(directory.root, rows)
    for label, value in rows:
        _print(f"{label}: {value}")
    return page


def make_data(out: Path, run: RunConfig) -> None:
    """Write the corpora, train a tokenizer on them, and tokenize them, unless that is done."""
    if all(idx_path(corpus.paths[0]).exists() for corpus in run.data.corpora):  # written last for each corpus
        return
    _print("writing five corpora: generated mathematics, and code and prose that Python carries")
    texts = corpora.write_corpora(out / "corpora", run.seed)
    _print(f"training a tokenizer of {run.model.vocabulary_size:,} words")
    train_tokenizer(list(texts.values()), Path(run.data.tokenizer), run.model.vocabulary_size)
    for corpus in run.data.corpora:
        facts = tokenize([texts[corpus.name]], run.data.tokenizer, corpus.paths[0], shuffle_seed=run.seed)
        _print(f"{corpus.name}: {facts.documents:,} documents, {facts.tokens:,} tokens")


def _overrides(out: Path) -> list[str]:
    """Assignments that move the paths of the run file under `out`."""
    return [
        f"output={json.dumps(str(out / 'run'))}",
        f"data.tokenizer={json.dumps(str(out / 'tokenizer'))}",
        *(
            f"data.corpora.{index}.paths={json.dumps([str(out / 'data' / corpus.name)])}"
            for index, corpus in enumerate(load(RUN_FILE).data.corpora)
        ),
    ]


def _command(overrides: Sequence[str]) -> list[str]:
    settings = [part for assignment in overrides for part in ("--set", assignment)]
    return [sys.executable, "-m", "megatron_dsmath", "train", str(RUN_FILE), "--nproc", str(RANKS), *settings]


def _train_and_kill(directory: RunDirectory, overrides: Sequence[str], after_step: int) -> None:
    """Train, and kill every process with SIGKILL once `after_step` is done."""
    _print(f"training on {RANKS} processes, tensor and sequence parallel; a kill comes after step {after_step}")
    process = subprocess.Popen(_command(overrides))
    try:
        while process.poll() is None and directory.last_step() < after_step:
            time.sleep(0.1)
    finally:
        process.kill()  # the ranks die with the process that started them
    if process.wait() != -signal.SIGKILL:
        raise InternalError("training ended before it could be killed", found=f"exit code {process.returncode}")
    _print(f"killed with SIGKILL after step {directory.last_step()}; starting it again")


def _train(overrides: Sequence[str]) -> None:
    code = subprocess.run(_command(overrides), check=False).returncode
    if code != EXIT_DONE:
        raise InternalError("training failed", found=f"exit code {code}", fix="see the messages above, run it again")


class ExportedModel(NamedTuple):
    """The validation loss of the exported model in nats per token, and its most likely continuation of PROMPT."""

    validation_loss: float
    continuation: str


def _export(out: Path, run: RunConfig, overrides: Sequence[str]) -> ExportedModel:
    """Export the trained model, load the export into one process, and compare the validation losses of both."""
    model = out / "model"
    if model.exists():
        shutil.rmtree(model)
    export(Path(run.output), model)
    _print(f"exported a Hugging Face folder, {model}; loading it into one process")
    alone = [f"model.initial_weights={json.dumps(str(model))}", "parallel.tensor=1", "parallel.sequence=false"]
    exported = _evaluate(load(RUN_FILE, [*overrides, *alone]))
    trained = _validation_loss(RunDirectory(Path(run.output)))
    if abs(exported.validation_loss / trained - 1) > LARGEST_DIFFERENCE:
        raise InternalError(
            "the exported model computes another validation loss than the trained one",
            where=model,
            found=f"{exported.validation_loss:.6f}",
            expected=f"{trained:.6f}, as in metrics.jsonl",
        )
    return exported


def _evaluate(run: RunConfig) -> ExportedModel:
    """Load `model.initial_weights` of a run of one process, validate, and continue PROMPT."""
    job = open_job(run, initialize_topology(run.parallel, run.seed))
    loss = validate(job)["validation_loss"]
    model, tokens = job.model_chunks[0].eval(), job.tokenizer.encode(PROMPT)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-run.data.sequence_length :]], device=job.topology.device), None, None)
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] == job.tokenizer.end_of_document:
            break
    destroy_topology()
    return ExportedModel(loss, job.tokenizer.decode(tokens)[len(PROMPT) :])


def _validation_loss(directory: RunDirectory) -> float:
    last = directory.metrics.read_text(encoding="utf-8").splitlines()[-1]
    return float(json.loads(last)["validation_loss"])


def _rows(out: Path, directory: RunDirectory, exported: ExportedModel, seconds: float) -> Rows:
    killed_after = directory.killed_after()
    killed = f"{killed_after}, then continued from its newest checkpoint"
    return [
        *([("Killed with SIGKILL after step", killed)] if killed_after is not None else []),
        ("Validation loss, two tensor-parallel processes", f"{_validation_loss(directory):.6f} nats per token"),
        ("Validation loss of the export, one process", f"{exported.validation_loss:.6f} nats per token"),
        ("Hugging Face folder", str(out / "model")),
        ("Prompt", PROMPT),
        ("Continuation", exported.continuation),
        ("Wall time of this command", f"{seconds:.0f} s"),
    ]


def _print(line: str) -> None:
    print(f"quickstart: {line}", flush=True)
