"""`dsmath train --evaluate`: a file of problems that the model answers during training (`training.evaluating`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_dsmath.errors import UsageError
from megatron_dsmath.evaluation.benchmarks import CUSTOM_SUFFIX, Benchmark
from megatron_dsmath.evaluation.evaluate import Evaluator, batches, load_inputs
from megatron_dsmath.evaluation.protocol import Protocol
from megatron_dsmath.evaluation.results.scores import score_rows
from megatron_dsmath.evaluation.rows import Row
from megatron_dsmath.sandbox.pool import require_sandbox

if TYPE_CHECKING:
    from megatron_dsmath.checkpoint.weight_reader import WeightReader

EVERY_STEPS = 1000
PROTOCOL = "instruct-tool"
BATCH_PROBLEMS = 16
_LOGGED_SCORES = ("accuracy", "tool_calls")


@dataclass(frozen=True)
class LiveEvaluation:
    """The problems, and the number of steps between two evaluations (a `training.evaluating.Evaluation`)."""

    every_steps: int
    benchmark: Benchmark
    protocol: Protocol
    flags: tuple[str, ...]

    def rows(self, weights: WeightReader, rank: int, ranks: int) -> list[Row]:
        """The graded answers of every `ranks`-th batch, from batch `rank` on.

        Raises what opening the weights and Evaluator raise.
        """
        from megatron_dsmath.evaluation.generation.open_backend import open_own_backend

        share = list(batches(self.benchmark, 1, BATCH_PROBLEMS))[rank::ranks]
        if not share:
            return []
        backend, tokenizer = open_own_backend(weights)
        with Evaluator(backend, tokenizer, self.protocol) as evaluator:
            return [row for batch in share for row in evaluator.rows(batch, sampled=False)]

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The scores of the rows that go to the metrics; no accuracy if the rows have no verdict."""
        scores = score_rows(rows, samples=1)
        return {name: scores[name] for name in _LOGGED_SCORES if name in scores}


def load_live_evaluation(file: str | None, every_steps: int | None, protocol: str | None) -> LiveEvaluation | None:
    """The evaluation that the flags of `dsmath train` ask for; None without --evaluate.

    Raises UsageError, the errors of the problems and the protocol, and SandboxError if programs cannot be confined: all
    before training starts.
    """
    if file is None:
        for flag, value in (("--evaluate-every", every_steps), ("--evaluate-protocol", protocol)):
            if value is not None:
                raise UsageError("the flag needs --evaluate", where=flag, expected="--evaluate FILE.jsonl beside it")
        return None
    every = EVERY_STEPS if every_steps is None else every_steps
    if every < 1:
        raise UsageError("a count is too small", where="--evaluate-every", found=every, expected="1 or more")
    if not file.endswith(CUSTOM_SUFFIX):
        raise UsageError(
            "the problems must be in a JSONL file", where="--evaluate", found=file, expected=f"FILE{CUSTOM_SUFFIX}"
        )
    name = protocol or PROTOCOL
    loaded, (benchmark,) = load_inputs(name, Path(file).parent, (Path(file).name,))
    if loaded.tools is not None:
        require_sandbox()
    flags = (f"--evaluate={file}", f"--evaluate-every={every}", f"--evaluate-protocol={name}")
    return LiveEvaluation(every, benchmark, loaded, flags)
