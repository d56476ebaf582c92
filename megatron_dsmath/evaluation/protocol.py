"""A protocol: one file with everything that decides a score. Its sha256 is in the results."""

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

FOLDER = Path(__file__).parent / "protocols"
_BASE = ("base-few-shot", "base-program", "base-code", "base-proof")
SHIPPED = ("instruct-cot", "instruct-tool", *_BASE, *(f"{name}-paper" for name in _BASE))
QUESTION = "{question}"
_REFERENCE = "docs/evaluation.md says where the shipped protocols are"

Mode = Literal["cot", "tool", "program", "code", "proof"]
Shots = Literal["none", "project", "paper", "custom"]
"""Who wrote the solved examples of a prompt: no one, this project, the paper's authors, or the user."""

_KIND: dict[Mode, Kind] = {"cot": "answer", "tool": "answer", "program": "answer", "code": "tests", "proof": "proof"}
_SECTIONS: dict[Mode, set[str]] = {
    "cot": {"grading"},
    "tool": {"tools", "grading"},
    "program": {"tools", "grading"},
    "code": {"tools"},
    "proof": {"proofs"},
}
_PROGRAMS: dict[Mode, set[str]] = {"program": {"solution", "answer"}, "code": {"continued", "whole"}}


class Prompt(Section):
    """The prompt of a task."""

    text: str
    """A text with {question} in it. In a protocol file: the name of the file that holds it, relative to the protocol's
    folder, or a mapping with the fields of `PaperText`."""
    source: str
    """The origin of the text."""
    shots: NonNegativeInt
    """The number of solved examples in the text."""
    stop: tuple[str, ...]
    """Texts that end the answer. The output is cut off before the first of them."""
    program: Literal["solution", "answer", "continued", "whole"] | None
    """Mode program: the output defines a function `solution`, or its first fenced block sets `answer` and its second
    has the imports. Mode code: the output continues the program in the question, or is a whole program."""


class Decoding(Section):
    """How tokens are chosen."""

    temperature: float = Field(ge=0)
    """With `--samples 1`. 0: the most likely token."""
    sampling_temperature: float = Field(gt=0)
    """With more samples."""
    top_p: float = Field(gt=0, le=1)
    """Sampling is from the most likely tokens that together reach this probability."""
    new_tokens: PositiveInt
    """The most tokens per round."""
    seed: NonNegativeInt
    """The seed of each problem, sample and round is derived from it."""


class Tools(Section):
    """Limits of the model's programs."""

    rounds: PositiveInt
    """Generation rounds; programs run between two rounds."""
    timeout_seconds: float = Field(gt=0)
    """Per program."""
    memory_mib: PositiveInt
    """Per program, beyond the interpreter's own memory."""
    output_characters: PositiveInt
    """A longer output is shown to the model as its first and last half of this number of characters."""


class Proofs(Section):
    """The proof checker (`evaluation.proofs`)."""

    checker: tuple[str, ...] | None = Field(min_length=1)
    """A command and its arguments; null: no checker and no verdict."""
    refused_words: tuple[str, ...]
    """A proof with one of these words is wrong, and the checker does not see it: words that give up, assume, or run
    code."""
    timeout_seconds: float = Field(gt=0)
    """Per proof."""
    memory_mib: PositiveInt
    """Writable memory of each process of the checker."""
    at_once: PositiveInt
    """The number of proofs that are checked at the same time."""


class Grading(Section):
    """The grader of answers (`grading`)."""

    timeout_seconds: float = Field(gt=0)
    """Per comparison of two formulas."""
    math_verify: str
    """The version of math-verify."""


class Protocol(Section):
    """Everything that decides a score."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    mode: Mode
    """cot: text only; tool: text and programs, whose output the model reads; program: the output of the program is the
    answer; code: the program must pass the benchmark's tests; proof: a checker must accept the output."""
    template: Literal["deepseekmath", "tokenizer"] | None
    """The chat template, as in `sft build --template`: the paper's, or the one in the model's tokenizer files; null:
    the prompt is the beginning of a document, after the BOS token if there is one."""
    prompts: dict[str, Prompt] = Field(min_length=1)
    """By task, by subject or by language (en, zh): the first of these that exists is used."""
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
        """The hash of all values, with the prompts in full. The file's comments and layout do not change it."""
        canonical = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def prompt_of(self, problem: Problem) -> Prompt:
        """The prompt for `problem`. Raises UsageError if there is none, or if the mode does not grade such problems."""
        return self.prompts[self._key(problem)]

    def shots_of(self, problem: Problem) -> Shots:
        """Who wrote the solved examples in the prompt for `problem`. Raises as `prompt_of`."""
        key = self._key(problem)
        return self._authors.get(key, "custom") if self.prompts[key].shots else "none"

    def _key(self, problem: Problem) -> str:
        keys = [key for key in (problem.task, problem.subject, problem.language) if key]
        found = [key for key in keys if key in self.prompts]
        if found and problem.kind == _KIND[self.mode]:
            return found[0]
        modes = [mode for mode, kind in _KIND.items() if kind == problem.kind]
        raise UsageError(
            f"the protocol {self.name} has no prompt for {problem.task}",
            where="--protocol",
            found=f"mode {self.mode}, prompts for {', '.join(self.prompts)}",
            expected=f"mode {' or '.join(modes)}, a prompt for {' or '.join(keys)}",
            fix=f"remove {problem.task} from --tasks, choose another protocol, or write one",
        )


def load_protocol(name: str, data: Path) -> Protocol:
    """A shipped protocol by its name, or a custom protocol by its file.

    data: the folder with the paper's few-shot texts. Raises ConfigError (Refusals for several mistakes), each with its
    line, DataError if a text of the paper is missing or differs, and DependencyError if the grader or the checker that
    the protocol names is missing.
    """
    path = FOLDER / f"{name}.yaml" if name in SHIPPED else Path(name)
    if name not in SHIPPED and path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            "there is no such protocol",
            where="--protocol",
            found=name,
            expected=f"{', '.join(SHIPPED)}, or a YAML file",
        )
    source = read(path)
    found = list(source.mistakes)
    try:
        tree, authors = _read_texts(source, data, found)
        protocol = Protocol.model_validate(lists_to_tuples(tree))
        protocol._authors.update(authors)
    except ValidationError as error:
        found += validation_errors(error, source, Protocol, _REFERENCE)
    else:
        found += _contradictions(protocol, source)
    raise_all(found)
    if protocol.grading is not None:
        _require_math_verify(protocol.grading.math_verify)
    if protocol.proofs is not None and protocol.proofs.checker is not None:
        _require_checker(protocol.proofs.checker[0])
    return protocol


def _read_texts(source: Source, data: Path, found: list[ConfigError]) -> tuple[dict[str, Any], dict[str, Shots]]:
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
                text, authors[task] = _read_file(source, task, text)
            elif isinstance(text, dict):
                text, authors[task] = read_paper_text(PaperText.model_validate(text), data), "paper"
            else:
                continue
        except ConfigError as error:
            found.append(error)
            text = QUESTION  # the text has been reported
        except ValidationError as error:
            found += validation_errors(error, source, PaperText, _REFERENCE, f"prompts.{task}.text.")
            text = QUESTION
        if text.count(QUESTION) != 1:
            found.append(
                ConfigError(
                    f"a prompt must contain {QUESTION} once",
                    where=source.where(f"prompts.{task}.text"),
                    found=f"{text.count(QUESTION)} times",
                    expected="once",
                )
            )
        tree["prompts"][task] = {**prompt, "text": text}
    return tree, authors


def _read_file(source: Source, task: str, name: str) -> tuple[str, Shots]:
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


def _contradictions(protocol: Protocol, source: Source) -> list[ConfigError]:
    """Sections and prompts that do not fit the protocol's mode."""
    found = []
    for section in ("tools", "proofs", "grading"):
        exists, is_needed = getattr(protocol, section) is not None, section in _SECTIONS[protocol.mode]
        if exists != is_needed:
            found.append(
                ConfigError(
                    f"{section} does not fit the mode",
                    where=source.where(section),
                    found=f"mode {protocol.mode}, {section if exists else f'no {section}'}",
                    expected=f"{section}: null" if exists else "the section, as in a shipped protocol",
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


def _require_math_verify(expected: str) -> None:
    try:
        installed = version("math-verify")
    except PackageNotFoundError:
        installed = "none"
    if installed != expected:
        raise DependencyError(
            "the protocol needs another version of the grader",
            where="grading.math_verify",
            found=f"math-verify {installed}",
            expected=f"math-verify {expected}",
            fix="pip install 'megatron_dsmath[evaluation]', or change the version in a copy of the protocol",
        )


def _require_checker(command: str) -> None:
    if shutil.which(command) is None:
        raise DependencyError(
            "the proof checker cannot be run",
            where="proofs.checker",
            found=command,
            expected="a program on PATH, or the path of one",
            fix="docs/evaluation.md, Proofs, describes a checker; with `checker: null` proofs get no verdict",
        )
