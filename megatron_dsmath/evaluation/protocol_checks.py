"""What a protocol must hold beyond the types of its values: sections that fit its mode, judges that are there."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from megatron_dsmath.config.dialect import write_inline
from megatron_dsmath.config.source import Source
from megatron_dsmath.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from megatron_dsmath.evaluation.protocol import Protocol

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


def mistake(item: Any, source: Source) -> ConfigError:
    """What pydantic found, as an error with its line."""
    key = ".".join(map(str, item["loc"]))
    what = {"missing": "a key is missing", "extra_forbidden": "unknown key"}.get(
        item["type"], "a value is not what its key takes"
    )
    return ConfigError(
        what,
        where=source.where(key),
        found="nothing" if item["type"] == "missing" else f"{write_inline(item['input']):.200}",
        expected=item["msg"].removeprefix("Input should be "),
        fix="compare it with a shipped protocol (docs/evaluation.md says where they are)",
    )


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
