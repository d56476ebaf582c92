"""The verdict on each answer, by what its problem holds it to: a reference, tests, a statement to prove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from megatron_dsmath.evaluation.answering import Answer, Program, tested_program
from megatron_dsmath.evaluation.code_tests import CodeTests
from megatron_dsmath.evaluation.proofs import Checked, check_all
from megatron_dsmath.evaluation.protocol import Protocol
from megatron_dsmath.grading.grade import Attempt, Grader, Verdict
from megatron_dsmath.sandbox.outcome import Limits

Judgement = Mapping[str, Any]
"""What a row says of an answer: the fields of `Verdict`. Where nobody could judge, `correct` is None and `note` says
"no verdict"."""


class Judges:
    """Whoever judges under a protocol; a context manager, which ends their sandboxes.

    Raises SandboxError where a protocol with programs meets a machine that cannot confine them.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol, self._stack = protocol, ExitStack()
        if protocol.mode == "code":
            assert protocol.tools is not None
            limits = Limits(protocol.tools.timeout_seconds, protocol.tools.memory_mib)
            self._tests = self._stack.enter_context(CodeTests(limits))
        elif protocol.mode != "proof":
            assert protocol.grading is not None
            self._grader = self._stack.enter_context(Grader(timeout_seconds=protocol.grading.timeout_seconds))

    def __enter__(self) -> Judges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def judge(self, answers: Sequence[Answer]) -> list[Judgement]:
        """A judgement for each answer, in their order; a program that was run with tests stays with its answer."""
        if self._protocol.mode == "code":
            return self._by_tests(answers)
        if self._protocol.mode == "proof":
            return self._by_checker(answers)
        return [verdict._asdict() for verdict in self._grader.grade(map(self._attempt, answers))]

    def _attempt(self, answer: Answer) -> Attempt:
        is_few_shot = self._protocol.mode == "cot" and self._protocol.prompt_of(answer.problem).shots > 0
        return Attempt(answer.prediction, answer.problem.reference, answer.problem.task, is_few_shot)

    def _by_tests(self, answers: Sequence[Answer]) -> list[Judgement]:
        programs = [self._program(answer) for answer in answers]
        asked = [
            (program, answer.problem.reference)
            for answer, program in zip(answers, programs, strict=True)
            if program is not None
        ]
        tested = iter(self._tests.run_all(asked))
        judgements: list[Judgement] = []
        for answer, program in zip(answers, programs, strict=True):
            if program is None:
                judgements.append(Verdict(False, None, False, "", "no answer")._asdict())
                continue
            passed, passed_as_the_paper, outcome = next(tested)
            answer.programs.append(Program(program, outcome))
            verdict = Verdict(passed, answer.prediction, passed_as_the_paper, answer.prediction)
            judgements.append(verdict._asdict())
        return judgements

    def _program(self, answer: Answer) -> str | None:
        kind = self._protocol.prompt_of(answer.problem).program
        assert kind == "continued" or kind == "whole"
        return tested_program(answer.problem.question, answer.prediction, kind)

    def _by_checker(self, answers: Sequence[Answer]) -> list[Judgement]:
        proofs = self._protocol.proofs
        assert proofs is not None
        if proofs.checker is None:
            return [_unjudged(answer) for answer in answers]
        pairs = [(answer.problem.reference, answer.prediction) for answer in answers]
        checked = check_all(pairs, proofs)
        return [_of_proof(*pair) for pair in zip(answers, checked, strict=True)]


def _unjudged(answer: Answer) -> Judgement:
    nobody_said = {"correct": None, "correct_as_the_paper": None, "note": "no verdict"}
    return {**_of_proof(answer, Checked(False, "", "")), **nobody_said}


def _of_proof(answer: Answer, checked: Checked) -> Judgement:
    proof = answer.prediction.strip()
    verdict = Verdict(checked.is_proved, proof or None, checked.is_proved, proof, checked.note)
    return {**verdict._asdict(), "checker_message": checked.message}
