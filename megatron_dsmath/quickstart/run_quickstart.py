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

import torch

from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.config import RunConfig, load
from megatron_dsmath.config.phases import total_steps
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


def run_quickstart(out: Path, write_report: Callable[[Path, Rows], Path]) -> Path:
    """Make the data, train, kill, resume, export and report under `out`; return the path of the report.

    A rerun continues where this one stopped. `write_report` writes the page of a run's directory, with the (label,
    value) rows of the quickstart, and returns its path. Raises InternalError if the validation losses of the exported
    and the trained model differ.
    """
    started = time.monotonic()
    overrides = _overrides(out)
    run = load(RUN_FILE, overrides, RANKS)
    directory = RunDirectory(Path(run.output))
    make_data(out, run)
    if directory.state() is None:
        _train_and_kill(directory, overrides, after_step=total_steps(run) * 5 // 8)
    if directory.state() != "done":
        _train(overrides)
    rows = [*_killed(directory), *_export(out / "model", directory, overrides)]
    rows.append(("Wall time of this command", f"{time.monotonic() - started:.0f} s"))
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


def _killed(directory: RunDirectory) -> Rows:
    step = directory.killed_after()
    killed = f"{step}, then continued from its newest checkpoint"
    return [] if step is None else [("Killed with SIGKILL after step", killed)]


def _export(model: Path, directory: RunDirectory, overrides: Sequence[str]) -> Rows:
    """Export the trained model, load the export into one process, and compare the validation losses of both."""
    if model.exists():
        shutil.rmtree(model)
    export(directory.root, model)
    _print(f"exported a Hugging Face folder, {model}; loading it into one process")
    alone = [f"model.initial_weights={json.dumps(str(model))}", "parallel.tensor=1", "parallel.sequence=false"]
    exported, continuation = _evaluate(load(RUN_FILE, [*overrides, *alone]))
    last_row = json.loads(directory.metrics.read_text(encoding="utf-8").splitlines()[-1])
    trained = float(last_row["validation_loss"])
    if abs(exported / trained - 1) > LARGEST_DIFFERENCE:
        raise InternalError(
            "the exported model computes another validation loss than the trained one",
            where=model,
            found=f"{exported:.6f}",
            expected=f"{trained:.6f}, as in metrics.jsonl",
        )
    return [
        ("Validation loss, two tensor-parallel processes", f"{trained:.6f} nats per token"),
        ("Validation loss of the export, one process", f"{exported:.6f} nats per token"),
        ("Hugging Face folder", str(model)),
        ("Prompt", PROMPT),
        ("Continuation", continuation),
    ]


def _evaluate(run: RunConfig) -> tuple[float, str]:
    """The validation loss (nats per token) of `model.initial_weights` on one process, and its continuation of PROMPT.

    Each token of the continuation is the most likely one.
    """
    job = open_job(run, initialize_topology(run.parallel, run.seed))
    loss = validate(job, job.start)["validation_loss"]
    model, tokens = job.model_chunks[0].eval(), job.tokenizer.encode(PROMPT)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-run.data.sequence_length :]], device=job.topology.device), None, None)
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] == job.tokenizer.end_of_document:
            break
    destroy_topology()
    return loss, job.tokenizer.decode(tokens)[len(PROMPT) :]


def _print(line: str) -> None:
    print(f"quickstart: {line}", flush=True)
