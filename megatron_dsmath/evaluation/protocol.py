"""A protocol: everything that decides a score, in one file. Its hash goes into the results."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr, ValidationError

from megatron_dsmath.config.mistakes import validation_errors
from megatron_dsmath.config.sections import Section
from megatron_dsmath.config.source import Source, lists_to_tuples, read
from megatron_dsmath.errors import ConfigError, DependencyError, UsageError, raise_all
from megatron_dsmath.evaluation.benchmarks import Problem
from megatron_dsmath.evaluation.paper_texts import PaperText, read_paper_text
from megatron_dsmath.evaluation.published import Kind

_SECTIONS = {
    "cot": {"grading"},
    "tool": {"tools", "grading"},
    "program": {"tools", "grading"},
    "code": {"tools"},
    "proof": {"proofs"},
}
_PROGRAMS: dict[str, set[str]] = {"program": {"solution", "answer"}, "code": {"continued", "whole"}}


def contradictions(protocol: Protocol, source: Source) -> list[ConfigError]:
    """Sections and prompts that do not fit the protocol's mode."""
    found = []
    for section in ("tools", "proofs", "grading"):
        is_there, is_needed = getattr(protocol, section) is not None, section in _SECTIONS[protocol.mode]
        if is_there != is_needed:
            found.append(
                ConfigError(
                    f"mode and {section} contradict each other",
                    where=source.where(section),
                    found=f"mode {protocol.mode}, {section if is_there else f'no {section}'}",
                    expected=f"{section}: null" if is_there else "the section, as in a shipped protocol",
                )
            )
    allowed = _PROGRAMS.get(protocol.mode, set())
    for task, prompt in protocol.prompts.items():
        if (prompt.program or "null") not in (allowed or {"null"}):
            found.append(
                ConfigError(
                    "a prompt does not fit the mode",
                    where=source.where(f"prompts.{task}.program"),
                    found=f"mode {protocol.mode}, program {prompt.program or 'null'}",
                    expected=" or ".join(sorted(allowed)) or "null",
                )
            )
    return found


def require_judges(protocol: Protocol) -> None:
    """Raise DependencyError where the grader or the checker that the protocol asks for is not there."""
    if protocol.grading is not None:
        _require_grader(protocol.grading.math_verify)
    if protocol.proofs is not None and protocol.proofs.checker is not None:
        _require_checker(protocol.proofs.checker[0])


def _require_grader(wanted: str) -> None:
    try:
        installed = version("math-verify")
    except PackageNotFoundError:
        installed = "none"
    if installed != wanted:
        raise DependencyError(
            "the grader is not the protocol's",
            where="grading.math_verify",
            found=f"math-verify {installed}",
            expected=f"math-verify {wanted}",
            fix="pip install 'megatron_dsmath[evaluation]', or change the version in a copy of the protocol",
        )


def _require_checker(command: str) -> None:
    if shutil.which(command) is None:
        raise DependencyError(
            "the proof checker is not there",
            where="proofs.checker",
            found=command,
            expected="a program that can be run: on PATH, or with its folder",
            fix="docs/evaluation.md, Proofs, says what it must do; `checker: null` does without, and without a verdict",
        )


FOLDER = Path(__file__).parent / "protocols"
_BASE = ("base-few-shot", "base-program", "base-code", "base-proof")
SHIPPED = ("instruct-cot", "instruct-tool", *_BASE, *(f"{name}-paper" for name in _BASE))
QUESTION = "{question}"
REFERENCE = "docs/evaluation.md says where the shipped protocols are"

Mode = Literal["cot", "tool", "program", "code", "proof"]
Shots = Literal["none", "project", "paper", "custom"]
"""Who wrote the solved examples of a prompt: no one, this project, the paper's authors, or the user."""
_KIND: dict[Mode, Kind] = {"cot": "answer", "tool": "answer", "program": "answer", "code": "tests", "proof": "proof"}


class Prompt(Section):
    """How a task's questions are asked."""

    text: str
    """A text with {question} in it. In a protocol file: the name of the file that holds it, relative to the protocol's
    folder, or a mapping with the fields of `PaperText`."""
    source: str
    """Where the text comes from."""
    shots: NonNegativeInt
    """Solved examples in the text."""
    stop: tuple[str, ...]
    """Texts at which the model has said enough; what it says from there on does not count."""
    program: Literal["solution", "answer", "continued", "whole"] | None
    """Of mode program: the whole output is a program with a function `solution`, or the first of two fenced blocks
    sets `answer` and the second imports what it needs. Of mode code: the output goes on with the question's own
    program, or is a program by itself."""


class Decoding(Section):
    """How the model's next token is chosen."""

    temperature: float = Field(ge=0)
    """0: the most likely token. Only for `--samples 1`."""
    sampling_temperature: float = Field(gt=0)
    """For more samples."""
    top_p: float = Field(gt=0, le=1)
    """Of sampling: the most likely tokens that together reach this probability."""
    new_tokens: PositiveInt
    """At most, each time the model is asked to go on."""
    seed: NonNegativeInt
    """Every problem and sample draws its own numbers from it."""


class Tools(Section):
    """Programs of the model."""

    rounds: PositiveInt
    """How often the model is asked; between two rounds its programs are run."""
    timeout_seconds: float = Field(gt=0)
    """Of one program."""
    memory_mib: PositiveInt
    """Of one program, beyond the interpreter's own."""
    output_characters: PositiveInt
    """What the model is shown of a longer output: the first and the last half of so many."""


class Proofs(Section):
    """What judges proofs (`evaluation.proofs`)."""

    checker: tuple[str, ...] | None = Field(min_length=1)
    """A command and its arguments; null: there is none, and so no verdict."""
    refused_words: tuple[str, ...]
    """A proof with one of them is none, and no checker sees it: words that give up, assume, or run code."""
    timeout_seconds: float = Field(gt=0)
    """Of one proof."""
    memory_mib: PositiveInt
    """Of each process of the checker: what it may write to."""
    at_once: PositiveInt
    """Proofs that are checked side by side."""


class Grading(Section):
    """The graders (`evaluation.grading`)."""

    timeout_seconds: float = Field(gt=0)
    """Of one comparison of formulas."""
    math_verify: str
    """The version of math-verify."""


class Protocol(Section):
    """All that decides a score."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    mode: Mode
    """cot: words alone; tool: words and programs, whose output the model reads; program: what the program prints is
    the answer; code: the program must pass the benchmark's tests; proof: a checker must accept the output."""
    template: Literal["deepseekmath", "tokenizer"] | None
    """The chat's, as `sft build --template` has it: the paper's, or the one in the model's own tokenizer files; null:
    the prompt is the beginning of a document, behind the BOS token if there is one."""
    prompts: dict[str, Prompt] = Field(min_length=1)
    """By task; what has none is asked as its subject says, or its language (en, zh)."""
    decoding: Decoding
    tools: Tools | None
    """Null in modes cot and proof."""
    proofs: Proofs | None
    """Null in every mode but proof."""
    grading: Grading | None
    """Null in modes code and proof."""

    _authors: dict[str, Shots] = PrivateAttr(default_factory=dict)
    """By prompt. Not part of the hash: the texts are."""

    @cached_property
    def sha256(self) -> str:
        """Of every value, prompts in full, whatever the file looks like."""
        canonical = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def prompt_of(self, problem: Problem) -> Prompt:
        """How `problem` is asked. Raises UsageError where the protocol does not say, or is for other problems."""
        return self.prompts[self._key(problem)]

    def shots_of(self, problem: Problem) -> Shots:
        """Who wrote the solved examples with which `problem` is asked. Raises as `prompt_of`."""
        key = self._key(problem)
        return self._authors.get(key, "custom") if self.prompts[key].shots else "none"

    def _key(self, problem: Problem) -> str:
        keys = [key for key in (problem.task, problem.subject, problem.language) if key]
        found = [key for key in keys if key in self.prompts]
        if found and problem.kind == _KIND[self.mode]:
            return found[0]
        modes = [mode for mode, kind in _KIND.items() if kind == problem.kind]
        raise UsageError(
            f"the protocol {self.name} does not say how to ask {problem.task}",
            where="--protocol",
            found=f"mode {self.mode}, prompts for {', '.join(self.prompts)}",
            expected=f"mode {' or '.join(modes)}, a prompt for {' or '.join(keys)}",
            fix=f"leave {problem.task} out of --tasks, choose another protocol, or write one",
        )


def load_protocol(name: str, data: Path) -> Protocol:
    """A shipped protocol by its name, or your own by its file.

    data: the folder with the paper's few-shot texts. Raises ConfigError (Refusals for several mistakes), each with its
    line, DataError where a text of the paper is missing or differs, and DependencyError where the grader or the checker
    that the protocol names is missing.
    """
    path = FOLDER / f"{name}.yaml" if name in SHIPPED else Path(name)
    if name not in SHIPPED and path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            "no such protocol",
            where="--protocol",
            found=name,
            expected=f"{', '.join(SHIPPED)}, or a YAML file",
        )
    source = read(path)
    found = list(source.mistakes)
    try:
        tree, authors = _with_texts(source, data, found)
        protocol = Protocol.model_validate(lists_to_tuples(tree))
        protocol._authors.update(authors)
    except ValidationError as error:
        found += validation_errors(error, source, Protocol, REFERENCE)
    else:
        found += contradictions(protocol, source)
    raise_all(found)
    require_judges(protocol)
    return protocol


def _with_texts(source: Source, data: Path, found: list[ConfigError]) -> tuple[dict[str, Any], dict[str, Shots]]:
    """The protocol with each prompt's text in full, and who wrote its shots; mistakes are added to `found`."""
    tree, prompts, authors = dict(source.tree), source.tree.get("prompts"), dict[str, Shots]()
    if not isinstance(prompts, dict):
        return tree, authors
    tree["prompts"] = {}
    for task, prompt in prompts.items():
        tree["prompts"][task] = prompt
        text = prompt.get("text") if isinstance(prompt, dict) else None
        try:
            if isinstance(text, str):
                text, authors[task] = _text_of_file(source, task, text)
            elif isinstance(text, dict):
                text, authors[task] = read_paper_text(PaperText.model_validate(text), data), "paper"
            else:
                continue
        except ConfigError as error:
            found.append(error)
            text = QUESTION  # the text has been reported
        except ValidationError as error:
            found += validation_errors(error, source, PaperText, REFERENCE, f"prompts.{task}.text.")
            text = QUESTION
        if text.count(QUESTION) != 1:
            found.append(
                ConfigError(
                    f"a prompt must hold {QUESTION} once",
                    where=source.where(f"prompts.{task}.text"),
                    found=f"{text.count(QUESTION)} times",
                    expected="once",
                )
            )
        tree["prompts"][task] = {**prompt, "text": text}
    return tree, authors


def _text_of_file(source: Source, task: str, name: str) -> tuple[str, Shots]:
    file = source.path.parent / name
    try:
        text = file.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            "a prompt cannot be read",
            where=source.where(f"prompts.{task}.text"),
            found=error.strerror if isinstance(error, OSError) else error,
            expected="a text file in UTF-8, named relative to the protocol's folder",
        ) from None
    return text, "project" if file.resolve().is_relative_to(FOLDER.resolve()) else "custom"
