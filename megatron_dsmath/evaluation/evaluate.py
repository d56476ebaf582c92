"""`dsmath evaluate`: ask a model the problems of benchmarks, grade its answers, write rows, scores and pages."""

from __future__ import annotations

import json
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
from megatron_dsmath.evaluation.answering import AnswerGenerator
from megatron_dsmath.evaluation.benchmarks import Benchmark, Problem, load_benchmarks
from megatron_dsmath.evaluation.generation.token_batch import Backend
from megatron_dsmath.evaluation.protocol import Protocol, load_protocol
from megatron_dsmath.evaluation.results.results_page import write_pages
from megatron_dsmath.evaluation.results.scores import score_rows
from megatron_dsmath.evaluation.rows import Row, answer_row, append_rows, read_rows, require_same_evaluation, rows_path
from megatron_dsmath.evaluation.verdicts import AnswerGrader
from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.sandbox.pool import Sandbox

if TYPE_CHECKING:
    from megatron_dsmath.evaluation.generation.open_backend import Model

Batch = Sequence[tuple[Problem, int]]
"""Problems with sample numbers. The composition of a batch can change the last digit of a logit."""

_RECORDED_PACKAGES = ("torch", "transformers", "vllm", "tokenizers", "math-verify", "latex2sympy2_extended", "sympy")


@dataclass(frozen=True)
class EvaluationSettings:
    """The arguments of `dsmath evaluate`."""

    model: Path
    data: Path
    tasks: tuple[str, ...]
    protocol: str
    out: Path
    limit: int | None = None
    """Ask only the first `limit` problems of each task."""
    samples: int = 1
    backend: str = "own"
    batch_problems: int = 16
    """Answers that are generated together. The same rows need the same batches."""


def evaluate(settings: EvaluationSettings, lock: Callable[[Path], AbstractContextManager[None]]) -> Mapping[str, Any]:
    """Open the model and call `evaluate_model` while `lock` keeps other jobs out of the output directory.

    Raises what opening the model, the lock and `evaluate_model` raise.
    """
    _load_inputs_of(settings)  # report mistakes before minutes are spent on weights
    from megatron_dsmath.evaluation.generation.open_backend import open_model

    model = open_model(settings.model, settings.backend)
    try:
        with lock(settings.out):
            return evaluate_model(settings, model)
    finally:
        model.backend.close()


def evaluate_model(settings: EvaluationSettings, model: Model) -> Mapping[str, Any]:
    """Answer and grade every problem of every task; write `outputs/`, `results.json` and pages into `settings.out`.

    Resumes an interrupted evaluation with the same settings. Returns the content of results.json, which has no time in
    it: a resumed evaluation writes the same bytes. Raises UsageError, ConfigError, DataError, OutputError,
    DependencyError, and SandboxError if programs cannot be confined.
    """
    protocol, benchmarks = _load_inputs_of(settings)
    description = _describe(settings, protocol, benchmarks, model.fingerprint)
    require_same_evaluation(settings.out, description)
    with Evaluator(model.backend, model.tokenizer, protocol) as evaluator:
        for benchmark in benchmarks:
            _answer_benchmark(benchmark, settings, evaluator)
    rows = {benchmark.task: _read_all_rows(settings.out, benchmark, settings.samples) for benchmark in benchmarks}
    shots = {benchmark.task: protocol.shots_of(benchmark.problems[0]) for benchmark in benchmarks}
    scores = {task: score_rows(rows[task], settings.samples) for task in rows}
    results = {**description, "shots": shots, "tasks": scores}
    replace_text(settings.out / "results.json", json.dumps(results, ensure_ascii=False, indent=1) + "\n", durable=True)
    write_pages(settings.out, results, rows)
    return results


def protocol_name(protocol: str | None, mode: str | None) -> str:
    """The protocol that --protocol or --mode names. Raises UsageError unless exactly one of them is given."""
    if (protocol is None) == (mode is None):
        raise UsageError(
            "an evaluation needs exactly one protocol",
            where="--protocol, --mode",
            found="neither" if protocol is None else "both",
            expected="one of the two",
            fix="--mode cot is short for --protocol instruct-cot, --mode tool for instruct-tool",
        )
    return protocol or f"instruct-{mode}"


def load_inputs(
    name: str, data: Path, tasks: Sequence[str], limit: int | None = None
) -> tuple[Protocol, list[Benchmark]]:
    """The protocol and the benchmarks.

    Raises what `load_protocol` and `load_benchmarks` raise, and UsageError for a problem that the protocol cannot ask.
    """
    protocol, benchmarks = load_protocol(name, data), load_benchmarks(data, tasks, limit)
    for benchmark in benchmarks:
        for problem in benchmark.problems:
            protocol.prompt_of(problem)
    return protocol, benchmarks


def batches(benchmark: Benchmark, samples: int, size: int) -> Iterator[Batch]:
    """Every problem and sample in batches of `size`; a function of the arguments alone."""
    pairs = [(problem, sample) for problem in benchmark.problems for sample in range(samples)]
    for first in range(0, len(pairs), size):
        yield pairs[first : first + size]


class Evaluator:
    """Answers problems with a model, runs its programs and grades its answers; a context manager for the sandboxes.

    Raises SandboxError if the protocol needs programs and this machine cannot confine them, and what AnswerGenerator
    raises.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer, protocol: Protocol) -> None:
        with ExitStack() as stack:
            sandbox = stack.enter_context(Sandbox()) if protocol.tools else None
            self._generator = AnswerGenerator(backend, tokenizer, protocol, sandbox)
            self._grader = AnswerGrader(protocol, stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def rows(self, batch: Batch, *, sampled: bool) -> list[Row]:
        """One row per problem and sample, in order; `sampled` as in `AnswerGenerator.generate`."""
        answers = self._generator.generate(batch, sampled=sampled)
        return [answer_row(*pair) for pair in zip(answers, self._grader.grade(answers), strict=True)]


def _load_inputs_of(settings: EvaluationSettings) -> tuple[Protocol, list[Benchmark]]:
    counts = (("--limit", settings.limit), ("--samples", settings.samples), ("--batch", settings.batch_problems))
    for flag, count in counts:
        if count is not None and count < 1:
            raise UsageError("a count is too small", where=flag, found=count, expected="1 or more")
    if not settings.tasks or len(set(settings.tasks)) < len(settings.tasks):
        raise UsageError("each task must be named once", where="--tasks", found=",".join(settings.tasks) or "none")
    return load_inputs(settings.protocol, settings.data, settings.tasks, settings.limit)


def _answer_benchmark(benchmark: Benchmark, settings: EvaluationSettings, evaluator: Evaluator) -> None:
    path = rows_path(settings.out, benchmark.task)
    existing = read_rows(path)
    for batch in batches(benchmark, settings.samples, settings.batch_problems):
        if all((problem.row, sample) in existing for problem, sample in batch):
            continue
        # The whole batch is generated again, because its composition can change the last digit of a logit.
        rows = evaluator.rows(batch, sampled=settings.samples > 1)
        append_rows(path, [row for row in rows if (row["row"], row["sample"]) not in existing])
        last = benchmark.problems.index(batch[-1][0]) + 1
        print(f"{benchmark.task}: {last:,} of {len(benchmark.problems):,} problems", file=sys.stderr, flush=True)


def _read_all_rows(out: Path, benchmark: Benchmark, samples: int) -> list[Row]:
    path = rows_path(out, benchmark.task)
    rows = read_rows(path)
    expected = [(problem.row, sample) for problem in benchmark.problems for sample in range(samples)]
    if rows.keys() != set(expected):
        raise OutputError(
            "the file does not hold one row per problem and sample",
            where=path,
            found=f"{len(rows):,} rows",
            expected=f"{len(expected):,}",
            fix="another program wrote to this file: evaluate into another --out",
        )
    return [rows[key] for key in expected]


def _describe(
    settings: EvaluationSettings, protocol: Protocol, benchmarks: Sequence[Benchmark], fingerprint: str
) -> dict[str, Any]:
    """Everything that decides the results: the content of evaluation.json."""
    return {
        "model": str(settings.model),
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
        "limit": settings.limit,
        "samples": settings.samples,
        "backend": settings.backend,
        "batch_problems": settings.batch_problems,
        "versions": {"megatron_dsmath": __version__, "python": platform.python_version(), **_package_versions()},
    }


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
