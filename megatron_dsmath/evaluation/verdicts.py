"""Grade answers: by a reference answer, by tests, or by a proof checker, as the problem's kind requires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from megatron_dsmath.evaluation.answering import Answer, Program, program_under_test
from megatron_dsmath.evaluation.code_tests import open_test_sandbox, run_code_tests
from megatron_dsmath.evaluation.proofs import ProofCheck, check_proofs
from megatron_dsmath.evaluation.protocol import Protocol
from megatron_dsmath.grading.grade import Attempt, Grader, Verdict
from megatron_dsmath.sandbox.outcome import Limits

Judgement = Mapping[str, Any]
"""The fields of `grading.grade.Verdict`; without a verdict `correct` is None and `note` is "no verdict"."""


class AnswerGrader:
    """Grades the answers to a protocol's problems.

    Raises SandboxError if the protocol needs programs and this machine cannot confine them.
    """

    def __init__(self, protocol: Protocol, stack: ExitStack) -> None:
        """`stack` closes the sandboxes of the grader."""
        self._protocol = protocol
        if protocol.mode == "code":
            self._sandbox = stack.enter_context(open_test_sandbox())
        elif protocol.mode != "proof":
            assert protocol.grading is not None
            self._grader = stack.enter_context(Grader(timeout_seconds=protocol.grading.timeout_seconds))

    def grade(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement per answer, in order. A program that is run with tests is added to its answer."""
        if self._protocol.mode == "code":
            return self._grade_by_tests(answers)
        if self._protocol.mode == "proof":
            return self._grade_by_checker(answers)
        return [verdict._asdict() for verdict in self._grader.grade(map(self._attempt, answers))]

    def _attempt(self, answer: Answer) -> Attempt:
        is_few_shot = self._protocol.mode == "cot" and self._protocol.prompt_of(answer.problem).shots > 0
        return Attempt(answer.prediction, answer.problem.reference, answer.problem.task, is_few_shot)

    def _grade_by_tests(self, answers: Sequence[Answer]) -> list[Judgement]:
        programs = []
        for answer in answers:
            kind = self._protocol.prompt_of(answer.problem).program
            assert kind == "continued" or kind == "whole"
            programs.append(program_under_test(answer.problem.question, answer.prediction, kind))
        pairs = [
            (program, answer.problem.reference)
            for answer, program in zip(answers, programs, strict=True)
            if program is not None
        ]
        assert self._protocol.tools is not None
        limits = Limits(self._protocol.tools.timeout_seconds, self._protocol.tools.memory_mib)
        results = iter(run_code_tests(pairs, self._sandbox, limits))
        judgements: list[Judgement] = []
        for answer, program in zip(answers, programs, strict=True):
            if program is None:
                judgements.append(Verdict(False, None, False, "", "no answer")._asdict())
                continue
            passed, passed_as_the_paper, outcome = next(results)
            answer.programs.append(Program(program, outcome))
            verdict = Verdict(passed, answer.prediction, passed_as_the_paper, answer.prediction)
            judgements.append(verdict._asdict())
        return judgements

    def _grade_by_checker(self, answers: Sequence[Answer]) -> list[Judgement]:
        proofs = self._protocol.proofs
        assert proofs is not None
        if proofs.checker is None:
            no_verdict = {"correct": None, "correct_as_the_paper": None, "note": "no verdict"}
            return [{**_proof_judgement(answer, ProofCheck(False, "", "")), **no_verdict} for answer in answers]
        checks = check_proofs([(answer.problem.reference, answer.prediction) for answer in answers], proofs)
        return [_proof_judgement(*pair) for pair in zip(answers, checks, strict=True)]


def _proof_judgement(answer: Answer, check: ProofCheck) -> Judgement:
    proof = answer.prediction.strip()
    verdict = Verdict(check.is_proved, proof or None, check.is_proved, proof, check.note)
    return {**verdict._asdict(), "checker_message": check.message}
