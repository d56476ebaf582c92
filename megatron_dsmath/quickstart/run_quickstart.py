"""The whole story in miniature, on two CPU processes: text, tokens, training, a kill, a resume, an export, a report."""

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

from megatron_dsmath.config import RunConfig, load
from megatron_dsmath.errors import EXIT_DONE, InternalError
from megatron_dsmath.parallel.topology import destroy_topology, initialize_topology
from megatron_dsmath.training.evaluating import validate
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.run_directory import RunDirectory

NEW_TOKENS = 48


class Reading(NamedTuple):
    """The validation loss in nats per token, and the most likely continuation of a prompt."""

    validation_loss: float
    continuation: str


def read(run: RunConfig, prompt: str) -> Reading:
    """Load `model.initial_weights` of a run of one process and try it."""
    job = open_job(run, initialize_topology(run.parallel, run.seed))
    loss = validate(job)["validation_loss"]
    model, tokens = job.model_chunks[0].eval(), job.tokenizer.encode(prompt)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-run.data.sequence_length :]], device=job.topology.device), None, None)
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] == job.tokenizer.end_of_document:
            break
    destroy_topology()
    return Reading(loss, job.tokenizer.decode(tokens)[len(prompt) :])


RUN_FILE = Path(__file__).with_name("pretrain.yaml")
RANKS = 2
Rows = list[tuple[str, str]]
WriteReport = Callable[[Path, Rows], Path]
LARGEST_DIFFERENCE = 1e-4  # relative, of two fp32 forward passes that add in another order
PROMPT = "Example 1. Solve $3x + 5 = 20$ for $x$.\nSolution."


def tell(out: Path, write_report: WriteReport) -> Path:
    """Do all of it under `out`; a rerun continues where this one stopped. Returns the report's path.

    `write_report` writes a run directory's page, with rows of ours on it, and returns its path.

    Raises InternalError when the export does not compute what the trained model computed.
    """
    started = time.monotonic()
    overrides = _placed_in(out)
    run = load(RUN_FILE, overrides, RANKS)
    directory = RunDirectory(Path(run.output))
    make_data(out, run)
    if directory.state() is None:
        _train_and_kill(directory, overrides, after_step=run.schedule.steps * 5 // 8)
    if directory.state() != "done":
        _train(overrides)
    reading = _export(out, run, overrides)
    rows = _rows(out, directory, reading, time.monotonic() - started)
    page = write_report(directory.root, rows)
    for label, value in rows:
        _say(f"{label}: {value}")
    return page


def make_data(out: Path, run: RunConfig) -> None:
    """Write the corpora, train a tokenizer on them, and tokenize them, unless that is done."""
    from megatron_dsmath.data.indexed.dataset import idx_path
    from megatron_dsmath.data.tokenizing.tokenize import tokenize
    from megatron_dsmath.quickstart.corpora import write_corpora
    from megatron_dsmath.quickstart.small_tokenizer import train_tokenizer

    if all(idx_path(corpus.paths[0]).exists() for corpus in run.data.corpora):  # the last file of a corpus to appear
        return
    _say("writing five corpora: generated mathematics, and code and prose that Python carries")
    texts = write_corpora(out / "corpora", run.seed)
    _say(f"training a tokenizer of {run.model.vocabulary_size:,} words")
    train_tokenizer(list(texts.values()), Path(run.data.tokenizer), run.model.vocabulary_size)
    for corpus in run.data.corpora:
        facts = tokenize([texts[corpus.name]], run.data.tokenizer, corpus.paths[0], shuffle_seed=run.seed)
        _say(f"{corpus.name}: {facts.documents:,} documents, {facts.tokens:,} tokens")


def _placed_in(out: Path) -> list[str]:
    """The run file's paths, moved under `out`."""
    corpora = load(RUN_FILE).data.corpora
    return [
        f"output={json.dumps(str(out / 'run'))}",
        f"data.tokenizer={json.dumps(str(out / 'tokenizer'))}",
        *(
            f"data.corpora.{index}.paths={json.dumps([str(out / 'data' / corpus.name)])}"
            for index, corpus in enumerate(corpora)
        ),
    ]


def _command(overrides: Sequence[str]) -> list[str]:
    settings = [part for assignment in overrides for part in ("--set", assignment)]
    return [sys.executable, "-m", "megatron_dsmath", "train", str(RUN_FILE), "--nproc", str(RANKS), *settings]


def _train_and_kill(directory: RunDirectory, overrides: Sequence[str], after_step: int) -> None:
    """Train, and kill every process without warning once `after_step` is done."""
    _say(f"training on {RANKS} processes, tensor and sequence parallel; a kill comes after step {after_step}")
    process = subprocess.Popen(_command(overrides))
    try:
        while process.poll() is None and directory.last_step() < after_step:
            time.sleep(0.1)
    finally:
        process.kill()  # the ranks die with the process that started them
    if process.wait() != -signal.SIGKILL:
        raise InternalError("training ended before it could be killed", found=f"exit code {process.returncode}")
    _say(f"killed with SIGKILL after step {directory.last_step()}; starting it again")


def _train(overrides: Sequence[str]) -> None:
    code = subprocess.run(_command(overrides), check=False).returncode
    if code != EXIT_DONE:
        raise InternalError(
            "training did not end", found=f"exit code {code}", fix="see the messages above, run it again"
        )


def _export(out: Path, run: RunConfig, overrides: Sequence[str]) -> Reading:
    """Export the trained model, load the export into one process, and compare what both lose on held-out text."""
    from megatron_dsmath.checkpoint.to_huggingface import export

    pass

    model = out / "model"
    if model.exists():
        shutil.rmtree(model)
    export(Path(run.output), model)
    _say(f"exported a Hugging Face folder, {model}; loading it into one process")
    alone = [f"model.initial_weights={json.dumps(str(model))}", "parallel.tensor=1", "parallel.sequence=false"]
    reading = read(load(RUN_FILE, [*overrides, *alone]), PROMPT)
    trained = _validation_loss(RunDirectory(Path(run.output)))
    if abs(reading.validation_loss / trained - 1) > LARGEST_DIFFERENCE:
        raise InternalError(
            "the export does not compute what the trained model computed",
            where=model,
            found=f"validation loss {reading.validation_loss:.6f}",
            expected=f"{trained:.6f}, as in metrics.jsonl",
        )
    return reading


def _validation_loss(directory: RunDirectory) -> float:
    last = directory.metrics.read_text(encoding="utf-8").splitlines()[-1]
    return float(json.loads(last)["validation_loss"])


def _rows(out: Path, directory: RunDirectory, reading: Reading, seconds: float) -> Rows:
    trained, killed_after = _validation_loss(directory), directory.killed_after()
    killed = f"{killed_after}, then continued from its newest checkpoint"
    rows = [("Killed without warning after step", killed)] if killed_after is not None else []
    return [
        *rows,
        ("Validation loss, two tensor-parallel processes", f"{trained:.6f} nats a token"),
        ("The same of the export, in one process", f"{reading.validation_loss:.6f} nats a token"),
        ("Hugging Face folder", str(out / "model")),
        ("The model reads", PROMPT),
        ("and continues", reading.continuation),
        ("Wall time of this command", f"{seconds:.0f} s"),
    ]


def _say(line: str) -> None:
    print(f"quickstart: {line}", flush=True)
