"""`dsmath train --evaluate`: a small set of problems, answered by the model in training (`training.evaluating`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_dsmath.errors import UsageError
from megatron_dsmath.evaluation.benchmarks import OWN_FILE, Benchmark
from megatron_dsmath.evaluation.evaluate import Examiner, batches, prepared
from megatron_dsmath.evaluation.protocol import Protocol
from megatron_dsmath.evaluation.results.scores import summary
from megatron_dsmath.evaluation.rows import Row
from megatron_dsmath.sandbox.pool import require_sandbox

if TYPE_CHECKING:
    from megatron_dsmath.checkpoint.weight_reader import WeightReader

EVERY_STEPS = 1000
PROTOCOL = "instruct-tool"
PROBLEMS_AT_ONCE = 16
_KEPT = ("accuracy", "tool_calls")


@dataclass(frozen=True)
class LiveEvaluation:
    """What is asked, and how often (a `training.evaluating.Evaluation`)."""

    every_steps: int
    benchmark: Benchmark
    protocol: Protocol
    flags: tuple[str, ...]

    def rows(self, weights: WeightReader, rank: int, ranks: int) -> list[Row]:
        """Every `ranks`-th batch from `rank` on, answered and graded. Raises what opening weights and Examiner do."""
        from megatron_dsmath.evaluation.generation.open_backend import own_model

        share = list(batches(self.benchmark, 1, PROBLEMS_AT_ONCE))[rank::ranks]
        if not share:
            return []
        backend, tokenizer = own_model(weights)
        with Examiner(backend, tokenizer, self.protocol) as examiner:
            return [row for batch in share for row in examiner.rows(batch, sampled=False)]

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Of `dsmath evaluate`'s figures those that are worth a curve; no accuracy where nobody judged."""
        figures = summary(rows, samples=1)
        return {name: figures[name] for name in _KEPT if name in figures}


def live_evaluation(file: str | None, every_steps: int | None, protocol: str | None) -> LiveEvaluation | None:
    """What the flags of `dsmath train` ask for; None where they ask for none.

    Raises UsageError, and what is wrong with the problems, the protocol and this machine's sandbox: before training.
    """
    if file is None:
        for flag, value in (("--evaluate-every", every_steps), ("--evaluate-protocol", protocol)):
            if value is not None:
                raise UsageError("there is nothing to evaluate", where=flag, expected="--evaluate FILE.jsonl beside it")
        return None
    every = EVERY_STEPS if every_steps is None else every_steps
    if every < 1:
        raise UsageError("a count is wrong", where="--evaluate-every", found=every, expected="1 or more")
    if not file.endswith(OWN_FILE):
        raise UsageError("problems are a file of one's own", where="--evaluate", found=file, expected=f"FILE{OWN_FILE}")
    read, (benchmark,) = prepared(protocol or PROTOCOL, Path(file).parent, (Path(file).name,))
    if read.tools is not None:
        require_sandbox()
    flags = (f"--evaluate={file}", f"--evaluate-every={every}", f"--evaluate-protocol={protocol or PROTOCOL}")
    return LiveEvaluation(every, benchmark, read, flags)
