"""`dsmath evaluate`: a model and a protocol to rows, results and a page."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from megatron_dsmath import __version__
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.errors import OutputError, UsageError
from megatron_dsmath.evaluation.answering import Respondent
from megatron_dsmath.evaluation.benchmarks import Benchmark, Problem, load
from megatron_dsmath.evaluation.generation.token_batch import Backend
from megatron_dsmath.evaluation.protocol import Protocol, load_protocol
from megatron_dsmath.evaluation.results.results_files import write_results
from megatron_dsmath.evaluation.results.results_page import write_pages
from megatron_dsmath.evaluation.results.scores import summary
from megatron_dsmath.evaluation.rows import Row, append_rows, path_of, read_rows, require_same, row_of
from megatron_dsmath.evaluation.verdicts import Judges
from megatron_dsmath.sandbox.pool import Sandbox

if TYPE_CHECKING:
    from megatron_dsmath.evaluation.generation.open_backend import Model

Batch = Sequence[tuple[Problem, int]]
"""Problems, each with the number of its sample; what shares a batch decides the last digit of a logit."""


class Examiner:
    """Asks a model as a protocol says, runs its programs and grades it; a context manager, which ends the sandboxes.

    Raises SandboxError where the protocol has tools and programs cannot be confined, and what Respondent does.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer, protocol: Protocol) -> None:
        with ExitStack() as stack:
            sandbox = stack.enter_context(Sandbox()) if protocol.tools else None
            self._respondent = Respondent(backend, tokenizer, protocol, sandbox)
            self._judges = stack.enter_context(Judges(protocol))
            self._stack = stack.pop_all()

    def __enter__(self) -> Examiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def rows(self, batch: Batch, *, sampled: bool) -> list[Row]:
        """A row for each problem and sample, in their order; `sampled` as `Respondent.answers` has it."""
        answers = self._respondent.answers(batch, sampled=sampled)
        return [row_of(*pair) for pair in zip(answers, self._judges.judge(answers), strict=True)]


def prepared(
    protocol: str, data: Path, tasks: Sequence[str], limit: int | None = None
) -> tuple[Protocol, list[Benchmark]]:
    """The protocol and the problems, every one of which it can ask. Raises what `load_protocol` and `load` do."""
    read, benchmarks = load_protocol(protocol, data), load(data, tasks, limit)
    for benchmark in benchmarks:
        for problem in benchmark.problems:
            read.prompt_of(problem)
    return read, benchmarks


def batches(benchmark: Benchmark, samples: int, problems: int) -> Iterator[Batch]:
    """Every problem and sample in batches of `problems`: the same ones whoever asks, and whenever."""
    pairs = [(problem, sample) for problem in benchmark.problems for sample in range(samples)]
    for first in range(0, len(pairs), problems):
        yield pairs[first : first + problems]


_DECIDING_PACKAGES = ("torch", "transformers", "vllm", "tokenizers", "math-verify", "latex2sympy2_extended", "sympy")
_PROTOCOL_OF_MODE = {"cot": "instruct-cot", "tool": "instruct-tool"}


@dataclass(frozen=True)
class Evaluation:
    """What is asked for."""

    model: Path
    data: Path
    tasks: tuple[str, ...]
    protocol: str
    out: Path
    limit: int | None = None
    """The first so many problems of each task."""
    samples: int = 1
    backend: str = "own"
    batch_problems: int = 16
    """Answers that are written at once; rows of one batch are the same only in the same batch."""


def protocol_named(protocol: str | None, mode: str | None) -> str:
    """The protocol that --protocol or --mode means. Raises UsageError unless exactly one of them is given."""
    if (protocol is None) == (mode is None):
        raise UsageError(
            "which protocol decides the score?",
            where="--protocol, --mode",
            found="neither" if protocol is None else "both",
            expected="one of the two",
            fix="--mode cot is short for --protocol instruct-cot, --mode tool for instruct-tool",
        )
    return protocol or _PROTOCOL_OF_MODE[str(mode)]


def evaluate(asked: Evaluation, hold: Callable[[Path], AbstractContextManager[None]]) -> Mapping[str, Any]:
    """Open the model and do as `evaluate_model`, which `hold` keeps other jobs from; raises what both do as well."""
    _prepared(asked)  # before minutes are spent on weights
    from megatron_dsmath.evaluation.generation.open_backend import open_model

    model = open_model(asked.model, asked.backend)
    try:
        with hold(asked.out):
            return evaluate_model(asked, model)
    finally:
        model.backend.close()


def evaluate_model(asked: Evaluation, model: Model) -> Mapping[str, Any]:
    """Answer every problem of every task, grade, write `outputs/`, `results.json` and `report.html` into `asked.out`.

    Goes on where a killed evaluation of the same stopped. Returns what is in results.json. Raises UsageError,
    ConfigError, DataError, OutputError, DependencyError, and SandboxError where programs cannot be confined.
    """
    protocol, benchmarks = _prepared(asked)
    evaluation = _described(asked, protocol, benchmarks, model.fingerprint)
    require_same(asked.out, evaluation)
    with Examiner(model.backend, model.tokenizer, protocol) as examiner:
        for benchmark in benchmarks:
            _answer_all(benchmark, asked, examiner)
    rows = {benchmark.task: _all_rows(asked.out, benchmark, asked.samples) for benchmark in benchmarks}
    shots = {benchmark.task: protocol.shots_of(benchmark.problems[0]) for benchmark in benchmarks}
    tasks = {task: summary(rows[task], asked.samples) for task in rows}
    results = {**evaluation, "shots": shots, "tasks": tasks}
    write_results(asked.out, results)
    write_pages(asked.out, results, rows)
    return results


def _prepared(asked: Evaluation) -> tuple[Protocol, list[Benchmark]]:
    _require_counts(asked)
    return prepared(asked.protocol, asked.data, asked.tasks, asked.limit)


def _answer_all(benchmark: Benchmark, asked: Evaluation, examiner: Examiner) -> None:
    path = path_of(asked.out, benchmark.task)
    done = read_rows(path)
    for batch in batches(benchmark, asked.samples, asked.batch_problems):
        if all((problem.row, sample) in done for problem, sample in batch):
            continue
        # Whole, also where a part is there: what shares a batch decides the last digit of a logit.
        rows = examiner.rows(batch, sampled=asked.samples > 1)
        append_rows(path, [row for row in rows if (row["row"], row["sample"]) not in done])
        last = benchmark.problems.index(batch[-1][0]) + 1
        print(f"{benchmark.task}: {last:,} of {len(benchmark.problems):,} problems", file=sys.stderr, flush=True)


def _all_rows(out: Path, benchmark: Benchmark, samples: int) -> list[Row]:
    path = path_of(out, benchmark.task)
    rows = read_rows(path)
    wanted = [(problem.row, sample) for problem in benchmark.problems for sample in range(samples)]
    if rows.keys() != set(wanted):
        raise OutputError(
            "the rows are not one for each problem and sample",
            where=path,
            found=f"{len(rows):,} rows",
            expected=f"{len(wanted):,}",
            fix="something else wrote this file: evaluate into another --out",
        )
    return [rows[key] for key in wanted]


def _described(
    asked: Evaluation, protocol: Protocol, benchmarks: Sequence[Benchmark], fingerprint: str
) -> dict[str, Any]:
    return {
        "model": str(asked.model),
        "model_sha256": fingerprint,
        "protocol": protocol.name,
        "protocol_sha256": protocol.sha256,
        "protocol_text": protocol.model_dump(mode="json"),
        "benchmarks": {
            benchmark.task: {
                "file": benchmark.file,
                "sha256": benchmark.sha256,
                "rows": benchmark.rows,
                "problems": len(benchmark.problems),
            }
            for benchmark in benchmarks
        },
        "limit": asked.limit,
        "samples": asked.samples,
        "backend": asked.backend,
        "batch_problems": asked.batch_problems,
        "versions": {"megatron_dsmath": __version__, "python": platform.python_version(), **_installed()},
    }


def _installed() -> dict[str, str]:
    found = {}
    for package in _DECIDING_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _require_counts(asked: Evaluation) -> None:
    for flag, count in (("--limit", asked.limit), ("--samples", asked.samples), ("--batch", asked.batch_problems)):
        if count is not None and count < 1:
            raise UsageError("a count is wrong", where=flag, found=count, expected="1 or more")
    if not asked.tasks or len(set(asked.tasks)) < len(asked.tasks):
        raise UsageError("tasks are named once each", where="--tasks", found=",".join(asked.tasks) or "none")
