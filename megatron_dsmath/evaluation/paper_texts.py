"""Few-shot texts that are not shipped: read from the user's copy of DeepSeek-Math and MBPP, and checked by sha256."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from pydantic import Field

from megatron_dsmath.config.sections import Section
from megatron_dsmath.errors import DataError
from megatron_dsmath.evaluation.published import PUBLISHED

_SOURCE = "the folder evaluation/few_shot_prompts of github.com/deepseek-ai/DeepSeek-Math (MIT)"
_MBPP_TASK = "You are an expert Python programmer, and here is your task: "
_MBPP_SHOTS = slice(1, 4)  # task_id 2, 3 and 4: Austin et al. 2021 (arXiv 2108.07732), section 3.1


class PaperText(Section):
    """A prompt that is assembled from texts of a file in the folder of `--data`."""

    file: str
    """Below that folder: few_shot_prompts/NAME.py, whose string constants are read, or mbpp.jsonl."""
    template: str
    """The prompt, with {question}, and {NAME} for each text of `sha256`."""
    sha256: dict[str, str] = Field(min_length=1)
    """NAME: sha256 of a text as it enters the prompt, in UTF-8, without white space at its ends."""


def read_paper_text(text: PaperText, data: Path) -> str:
    """The prompt that `text` describes, from its file below the folder `data`.

    The file is parsed and never executed. Raises DataError if it is missing or does not hold the texts.
    """
    path = data / text.file
    try:
        found = {_sha256(constant): constant for constant in _texts(path)}
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"a file that cannot be parsed: {error}"
        raise _error(path, reason, next(iter(text.sha256.values()))) from None
    prompt = text.template
    for name, expected in text.sha256.items():
        if expected not in found:
            longest = max(found.values(), key=len, default="")
            raise _error(path, f"its longest text has sha256 {_sha256(longest)}", expected)
        prompt = prompt.replace(f"{{{name}}}", found[expected])
    return prompt


def _texts(path: Path) -> list[str]:
    """The texts of a file: MBPP's shots, or the string constants of Python code, f-strings' constant parts included."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [_mbpp_shots(content)]
    constants = [node.value for node in ast.walk(ast.parse(content)) if isinstance(node, ast.Constant)]
    return [constant.strip() for constant in constants if isinstance(constant, str)]


def _mbpp_shots(content: str) -> str:
    rows = [json.loads(line) for line in content.splitlines()[_MBPP_SHOTS]]
    return "\n".join(
        f"{_MBPP_TASK}{PUBLISHED['mbpp'].read_row(row).question}\n[BEGIN]\n{row['code'].replace(chr(13), '')}\n[DONE]"
        for row in rows
    )


def _error(path: Path, found: object, sha256: str) -> DataError:
    source = PUBLISHED["mbpp"].source if path.suffix == ".jsonl" else _SOURCE
    return DataError(
        "the paper's few-shot texts cannot be read",
        where=path,
        found=found,
        expected=f"a text with sha256 {sha256}",
        fix=f"copy {source} into the folder of --data, or use a protocol without -paper",
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
