"""Generate the answers to a batch of problems: prompts, tool calls and the programs in the model's text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    ContinuationDecoder,
    GenerationSettings,
    Request,
    derive_seed,
    find_stop,
)
from megatron_dsmath.evaluation.protocol import QUESTION, Protocol
from megatron_dsmath.sandbox.outcome import Limits, Outcome
from megatron_dsmath.sandbox.pool import Sandbox

TOOL_CALL = "```output"  # the model writes this to have its programs run
_CODE_START, _FENCE = "```python", "```"


class Program(NamedTuple):
    """A program that was run, and its outcome."""

    text: str
    outcome: Outcome


@dataclass
class Answer:
    """The answer to one sample of a problem, while it is generated and afterwards."""

    problem: Problem
    sample: int
    prompt: str
    ids: list[int]
    """The prompt and everything after it, as tokens."""
    output: str = ""
    """The text after the prompt: the model's, and what its programs printed."""
    programs: list[Program] = field(default_factory=list)
    calls: int = 0
    """The number of tool calls."""
    new_tokens: int = 0
    """Tokens that the model generated."""
    end: str = "length"
    """How the last round ended: end of text, stop, length."""
    prediction: str = ""
    """The text that is graded."""


class AnswerGenerator:
    """A model with a protocol's prompts, decoding and tools."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, protocol: Protocol, sandbox: Sandbox | None) -> None:
        """`sandbox` runs the programs; None if the protocol has no tools. Raises what `open_template` raises."""
        self._backend, self._tokenizer, self._protocol, self._sandbox = backend, tokenizer, protocol, sandbox
        template = open_template(protocol.template or "deepseekmath", tokenizer)
        self._encoder = ConversationEncoder(template, tokenizer)
        self._decoder = ContinuationDecoder(tokenizer)

    def generate(self, batch: Sequence[tuple[Problem, int]], sampled: bool) -> list[Answer]:
        """One answer per problem and sample number, in order.

        `sampled` selects the protocol's sampling temperature. Each answer has its own random numbers, but the batch can
        change the last digit of a logit: the same answers need the same batches.
        """
        answers = [self._start(problem, sample) for problem, sample in batch]
        is_tool = self._protocol.mode == "tool"
        rounds = self._protocol.tools.rounds if self._protocol.tools and is_tool else 1
        unfinished = answers
        for number in range(rounds):
            self._generate_round(unfinished, number, sampled)
            if is_tool:
                self._run_tool_calls([answer for answer in unfinished if answer.end == "stop"])
            unfinished = [answer for answer in unfinished if answer.end != "end of text"]
            if not unfinished:
                break
        if self._protocol.mode == "program":
            self._run_answer_programs(answers)
        else:
            for answer in answers:
                answer.prediction = answer.output
        return answers

    def _start(self, problem: Problem, sample: int) -> Answer:
        prompt = self._protocol.prompt_of(problem).text.replace(QUESTION, problem.question.strip())
        if self._protocol.template is None:
            begin = self._tokenizer.begin_of_document
            ids = [*([] if begin is None else [begin]), *self._tokenizer.encode(prompt)]
            return Answer(problem, sample, prompt, ids)
        ids = self._encoder.encode_prompt([Message("user", prompt)])
        return Answer(problem, sample, self._tokenizer.decode(ids), ids)

    def _generate_round(self, answers: Sequence[Answer], number: int, sampled: bool) -> None:
        decoding, is_tool = self._protocol.decoding, self._protocol.mode == "tool"
        by_stop: dict[tuple[str, ...], list[Answer]] = {}
        for answer in answers:
            stop = (*self._protocol.prompt_of(answer.problem).stop, *([TOOL_CALL] if is_tool else []))
            by_stop.setdefault(stop, []).append(answer)
        temperature = decoding.sampling_temperature if sampled else decoding.temperature
        for stop, group in by_stop.items():
            requests = [
                Request(answer.ids, derive_seed(decoding.seed, *answer.problem[:2], answer.sample, number))
                for answer in group
            ]
            settings = GenerationSettings(decoding.new_tokens, stop, temperature, decoding.top_p)
            for answer, completion in zip(group, self._backend.generate(requests, settings), strict=True):
                self._append(answer, completion, stop)

    def _append(self, answer: Answer, completion: Completion, stop: tuple[str, ...]) -> None:
        """Append the completion up to the first stop text. A tool call is kept; another stop text is cut off."""
        text, ids = self._decoder.decode(completion.ids), completion.ids
        answer.end, answer.new_tokens = completion.end, answer.new_tokens + len(ids)
        found = find_stop(text, stop)
        if found is not None:
            position, word = found
            is_call = word == TOOL_CALL and self._protocol.mode == "tool"
            answer.end = "stop" if is_call else "end of text"
            text = text[: position + len(word) if is_call else position]
            kept, rest = self._decoder.split(ids, text)
            ids = [*kept, *(self._encoder.encode_continuation(rest) if rest else [])]
        answer.output += text
        answer.ids = [*answer.ids, *ids]

    def _run_tool_calls(self, answers: Sequence[Answer]) -> None:
        """Run the programs of each answer, and append what they print."""
        assert self._protocol.tools is not None
        texts = [combined_program(answer.output.removesuffix(TOOL_CALL)) for answer in answers]
        for answer, outcome in zip(answers, self._run(answers, texts), strict=True):
            answer.calls += 1
            block = f"\n{tool_output(outcome, self._protocol.tools.output_characters)}\n```\n"
            answer.output += block
            answer.ids = [*answer.ids, *self._encoder.encode_continuation(block)]

    def _run_answer_programs(self, answers: Sequence[Answer]) -> None:
        """Run the program that each output is; what it prints becomes the prediction."""
        texts = []
        for answer in answers:
            kind = self._protocol.prompt_of(answer.problem).program
            assert kind == "solution" or kind == "answer"
            texts.append(answer_program(answer.output, kind))
        for answer, outcome in zip(answers, self._run(answers, texts), strict=True):
            if outcome is not None and outcome.verdict == "ok" and outcome.stdout.strip():
                answer.prediction = f"{TOOL_CALL}\n{outcome.stdout.strip()}\n```\n"

    def _run(self, answers: Sequence[Answer], texts: Sequence[str | None]) -> Iterator[Outcome | None]:
        """The outcome of each text, which is added to its answer's programs; None for None."""
        assert self._sandbox is not None and self._protocol.tools is not None
        limits = Limits(self._protocol.tools.timeout_seconds, self._protocol.tools.memory_mib)
        outcomes = self._sandbox.run_all(((text, "") for text in texts if text is not None), limits)
        for answer, text in zip(answers, texts, strict=True):
            outcome = None if text is None else next(outcomes)
            if text is not None and outcome is not None:
                answer.programs.append(Program(text, outcome))
            yield outcome


def combined_program(text: str) -> str | None:
    """All programs of a text that ends with one, joined; None if it does not end with one.

    Lines that print are removed from all but the last: the model has read their output (run_tool_integrated_eval.py).
    """
    text = text.rstrip()
    if not text.endswith(_FENCE):
        return None
    blocks = [block.partition(_FENCE)[0].strip() for block in text.split(_CODE_START)[1:] if _FENCE in block]
    blocks = [block for block in blocks if block]
    if not blocks:
        return None
    lines = [line for block in blocks[:-1] for line in block.split("\n")]
    kept = [line for line in lines if "print(" not in line or line.startswith(("    ", "import", "def "))]
    return "\n".join([*kept, blocks[-1]])


def answer_program(text: str, kind: Literal["solution", "answer"]) -> str | None:
    """The output as a program that prints its answer; None if the output is not a program (run_pal_eval.py).

    solution: the output defines a function of that name. answer: one fenced block sets that variable, the next one has
    the imports.
    """
    if kind == "solution":
        return f"{text}\n\nprint(solution())\n" if text.strip() else None
    parts = text.split(_FENCE)
    return f"{parts[3]}\n\n{parts[1]}\n\nprint(answer)\n" if len(parts) == 5 else None


def program_under_test(question: str, text: str, kind: Literal["continued", "whole"]) -> str | None:
    """The output as a program to be run with tests; None if it is empty.

    continued: the question is the beginning of the program and the output continues it. whole: the output alone.
    """
    if not text.strip():
        return None
    return f"{question}{text}\n" if kind == "continued" else f"{text}\n"


def tool_output(outcome: Outcome | None, limit_characters: int) -> str:
    """The content of an output block, with its middle left out beyond the limit; `outcome` None: no program."""
    if outcome is None:
        return "no program to run"
    if outcome.verdict == "ok":
        return _shorten(outcome.stdout.strip(), limit_characters) or "Runtime errors:"
    return f"Runtime errors: {_shorten(outcome.error or outcome.verdict, limit_characters)}".strip()


def _shorten(text: str, limit_characters: int) -> str:
    half = limit_characters // 2
    return text if len(text) <= limit_characters else f"{text[:half]}...{text[-half:]}"
