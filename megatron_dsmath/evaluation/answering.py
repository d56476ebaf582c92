"""A batch of problems to the model's answers: asked, its programs run, asked again. A state for each problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.jinja_template import open_template
from megatron_dsmath.data.sft.template import ConversationEncoder
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.evaluation.benchmarks import Problem
from megatron_dsmath.evaluation.generation.token_batch import (
    Backend,
    Completion,
    Continuation,
    Decoding,
    Request,
    first_stop,
    seed_of,
)
from megatron_dsmath.evaluation.protocol import QUESTION, Protocol
from megatron_dsmath.sandbox.outcome import Limits, Outcome
from megatron_dsmath.sandbox.pool import Sandbox

CALL = "```output"  # what a model writes to have its programs run
_BEGIN, _END = "```python", "```"
NO_PROGRAM = "no program to run"


def programs_so_far(text: str) -> str | None:
    """All programs of a text that ends with one, as one; None where it does not.

    Of all but the last, lines that print are left out: the model has seen that (run_tool_integrated_eval.py).
    """
    text = text.rstrip()
    if not text.endswith(_END):
        return None
    blocks = [block.partition(_END)[0].strip() for block in text.split(_BEGIN)[1:] if _END in block]
    blocks = [block for block in blocks if block]
    if not blocks:
        return None
    kept = [line for block in blocks[:-1] for line in block.split("\n") if _is_kept(line)]
    return "\n".join([*kept, blocks[-1]])


def answering_program(text: str, kind: Literal["solution", "answer"]) -> str | None:
    """The program that a whole output is, made to print its answer; None where there is none (run_pal_eval.py).

    solution: a function of that name. answer: a block that sets it, then one with the imports it needs.
    """
    if kind == "solution":
        return f"{text}\n\nprint(solution())\n" if text.strip() else None
    parts = text.split(_END)
    return f"{parts[3]}\n\n{parts[1]}\n\nprint(answer)\n" if len(parts) == 5 else None


def tested_program(question: str, text: str, kind: Literal["continued", "whole"]) -> str | None:
    """The program that an output is, to be run with tests; None where there is none.

    continued: what the output adds to the question, which is the beginning of the program. whole: the output alone.
    """
    if not text.strip():
        return None
    return f"{question}{text}\n" if kind == "continued" else f"{text}\n"


def told(outcome: Outcome | None, limit_characters: int) -> str:
    """What stands in an output block, its middle left out where it is long; None: there was nothing to run."""
    if outcome is None:
        return NO_PROGRAM
    printed = outcome.stdout.strip() if outcome.verdict == "ok" else ""
    message = _shortened(outcome.error or outcome.verdict, limit_characters)
    return (
        _shortened(printed, limit_characters) or f"Runtime errors: {'' if outcome.verdict == 'ok' else message}".strip()
    )


def _is_kept(line: str) -> bool:
    return "print(" not in line or line.startswith(("    ", "import", "def "))


def _shortened(text: str, limit_characters: int) -> str:
    half = limit_characters // 2
    return text if len(text) <= limit_characters else f"{text[:half]}...{text[-half:]}"


class Program(NamedTuple):
    """What was run, and how it ended."""

    text: str
    outcome: Outcome


@dataclass
class Answer:
    """A problem, asked for one of its samples: the state it is in, and at the end all that was said."""

    problem: Problem
    sample: int
    prompt: str
    ids: list[int]
    """The prompt and all that followed, as the model reads it."""
    output: str = ""
    """All that followed the prompt: the model's text and what its programs printed."""
    programs: list[Program] = field(default_factory=list)
    calls: int = 0
    """How often the model asked for its programs to be run."""
    new_tokens: int = 0
    """Written by the model."""
    end: str = "length"
    """Of the last round: end of text, stop, length."""
    prediction: str = ""
    """What is graded."""


class Respondent:
    """A model that is asked as a protocol says."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, protocol: Protocol, sandbox: Sandbox | None) -> None:
        """`sandbox`: where programs run; None in mode cot. Raises as `open_template`."""
        self._backend, self._tokenizer, self._protocol, self._sandbox = backend, tokenizer, protocol, sandbox
        template = open_template(protocol.template or "deepseekmath", tokenizer)
        self._encoder = ConversationEncoder(template, tokenizer)
        self._continuation = Continuation(tokenizer)

    def answers(self, asked: Sequence[tuple[Problem, int]], sampled: bool) -> list[Answer]:
        """An answer for each problem and sample number, in their order.

        `sampled`: at the protocol's sampling temperature. Each draws its own numbers; but which of them share a batch
        may change the last digit of a logit, so the same batches are needed for the same answers.
        """
        answers = [self._begin(problem, sample) for problem, sample in asked]
        rounds = self._protocol.tools.rounds if self._protocol.tools and self._protocol.mode == "tool" else 1
        going_on = answers
        for number in range(rounds):
            self._write_on(going_on, number, sampled)
            if self._protocol.mode == "tool":
                self._run_programs([answer for answer in going_on if answer.end == "stop"])
            going_on = [answer for answer in going_on if answer.end != "end of text"]
            if not going_on:
                break
        if self._protocol.mode == "program":
            self._run_answering_programs(answers)
        else:
            for answer in answers:
                answer.prediction = answer.output
        return answers

    def _begin(self, problem: Problem, sample: int) -> Answer:
        question = self._protocol.prompt_of(problem).text.replace(QUESTION, problem.question.strip())
        if self._protocol.template is None:
            begin = self._tokenizer.begin_of_document
            ids = [*([] if begin is None else [begin]), *self._tokenizer.encode(question)]
            return Answer(problem, sample, question, ids)
        ids = self._encoder.encode_prompt([Message("user", question)])
        return Answer(problem, sample, self._tokenizer.decode(ids), ids)

    def _write_on(self, answers: Sequence[Answer], number: int, sampled: bool) -> None:
        decoding, is_tool = self._protocol.decoding, self._protocol.mode == "tool"
        groups: dict[tuple[str, ...], list[Answer]] = {}
        for answer in answers:
            stop = (*self._protocol.prompt_of(answer.problem).stop, *([CALL] if is_tool else []))
            groups.setdefault(stop, []).append(answer)
        for stop, group in groups.items():
            requests = [
                Request(answer.ids, seed_of(decoding.seed, *answer.problem[:2], answer.sample, number))
                for answer in group
            ]
            temperature = decoding.sampling_temperature if sampled else decoding.temperature
            completions = self._backend.generate(
                requests, Decoding(decoding.new_tokens, stop, temperature, decoding.top_p)
            )
            for answer, completion in zip(group, completions, strict=True):
                self._take(answer, completion, stop)

    def _take(self, answer: Answer, completion: Completion, stop: tuple[str, ...]) -> None:
        """Add what the model wrote, up to the stop text: a call stays, a text of the prompt's is cut off."""
        text, ids = self._continuation.text(completion.ids), completion.ids
        answer.end, answer.new_tokens = completion.end, answer.new_tokens + len(ids)
        found = first_stop(text, stop)
        if found is not None:
            place, word = found
            is_call = word == CALL and self._protocol.mode == "tool"
            answer.end = "stop" if is_call else "end of text"
            text = text[: place + len(word) if is_call else place]
            kept, rest = self._continuation.longest_within(ids, text)
            ids = [*kept, *(self._encoder.encode_continuation(rest) if rest else [])]
        answer.output += text
        answer.ids = [*answer.ids, *ids]

    def _run_programs(self, answers: Sequence[Answer]) -> None:
        """Run all programs so far of each answer that calls for it, and write what they print behind the call."""
        assert self._sandbox is not None and self._protocol.tools is not None
        texts = [programs_so_far(answer.output.removesuffix(CALL)) for answer in answers]
        outcomes = self._sandbox.run_all(((text, "") for text in texts if text is not None), self._limits)
        for answer, text in zip(answers, texts, strict=True):
            answer.calls += 1
            outcome = None if text is None else next(outcomes)
            if text is not None and outcome is not None:
                answer.programs.append(Program(text, outcome))
            block = f"\n{told(outcome, self._protocol.tools.output_characters)}\n```\n"
            answer.output += block
            answer.ids = [*answer.ids, *self._encoder.encode_continuation(block)]

    def _run_answering_programs(self, answers: Sequence[Answer]) -> None:
        """Run the program that each output is; what it prints is the answer."""
        assert self._sandbox is not None
        texts = []
        for answer in answers:
            kind = self._protocol.prompt_of(answer.problem).program
            assert kind == "solution" or kind == "answer"
            texts.append(answering_program(answer.output, kind))
        outcomes = self._sandbox.run_all(((text, "") for text in texts if text is not None), self._limits)
        for answer, text in zip(answers, texts, strict=True):
            if text is None:
                continue
            outcome = next(outcomes)
            answer.programs.append(Program(text, outcome))
            if outcome.verdict == "ok" and outcome.stdout.strip():
                answer.prediction = f"{CALL}\n{outcome.stdout.strip()}\n```\n"

    @property
    def _limits(self) -> Limits:
        assert self._protocol.tools is not None
        return Limits(self._protocol.tools.timeout_seconds, self._protocol.tools.memory_mib)
