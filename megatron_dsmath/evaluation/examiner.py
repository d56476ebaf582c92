"""Batches of problems to graded rows: what evaluating stored weights and a model in training have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from megatron_dsmath.data.tokenizer import Tokenizer
from megatron_dsmath.evaluation.answering import Respondent
from megatron_dsmath.evaluation.benchmarks import Benchmark, Problem, load
from megatron_dsmath.evaluation.generation.backend import Backend
from megatron_dsmath.evaluation.protocol import Protocol, load_protocol
from megatron_dsmath.evaluation.rows import Row, row_of
from megatron_dsmath.evaluation.sandbox.pool import Sandbox
from megatron_dsmath.evaluation.verdicts import Judges

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
    read, benchmarks = load_protocol(protocol), load(data, tasks, limit)
    for benchmark in benchmarks:
        for problem in benchmark.problems:
            read.prompt_of(problem)
    return read, benchmarks


def batches(benchmark: Benchmark, samples: int, problems: int) -> Iterator[Batch]:
    """Every problem and sample in batches of `problems`: the same ones whoever asks, and whenever."""
    pairs = [(problem, sample) for problem in benchmark.problems for sample in range(samples)]
    for first in range(0, len(pairs), problems):
        yield pairs[first : first + problems]
