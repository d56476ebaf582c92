"""Grade MATH's 5,000 answers against their own and against other problems, and one answer that hangs.

python benchmarks/grading.py /path/to/math_test.jsonl
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from pathlib import Path

from megatron_dsmath.grading.grade import Attempt, Grader, reference_of

HANGING = r"5^{5^{5^{5^{5}}}}"  # huggingface/Math-Verify#65
TARGET_SECONDS = 60


def main(file: Path) -> None:
    """Print wall time, CPU time, number of correct answers and load."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    references = [reference_of(row["solution"]) for row in rows]
    others = random.Random(0).sample(references, len(references))
    with Grader(workers=2) as grader:
        grader.grade([Attempt(r"\boxed{1+x}", "x+1")])  # starts the interpreters
        for name, answers in (("own problem", references), ("other problem", others)):
            attempts = [
                Attempt(rf"so it is $\boxed{{{answer}}}$.", reference, "math")
                for answer, reference in zip(answers, references, strict=True)
            ]
            seconds, correct = _timed(grader, attempts)
            print(
                f"{name}: {len(attempts):,} answers in {seconds:.1f} s (target {TARGET_SECONDS}), {correct:,} correct"
            )
        seconds, _ = _timed(grader, [Attempt(rf"\boxed{{{HANGING}}}", r"\sqrt{7}")])
        print(f"one answer that hangs: {seconds:.1f} s")
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"CPU time {used:.1f} s in all; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


def _timed(grader: Grader, attempts: list[Attempt]) -> tuple[float, int]:
    started = time.monotonic()
    correct = sum(verdict.correct for verdict in grader.grade(attempts))
    return time.monotonic() - started, correct


if __name__ == "__main__":
    main(Path(sys.argv[1]))
