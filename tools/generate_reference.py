"""Write docs/reference/*.md and the JSON schema of a run file from the code.

python tools/generate_reference.py           write them
python tools/generate_reference.py --check   write nothing; exit 1 and list the stale files
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_dsmath import errors
from megatron_dsmath.config import RunConfig
from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.recipe.recipe_file import RecipeFile
from megatron_dsmath.training.metrics import METRICS, wandb_names

REPOSITORY = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by tools/generate_reference.py from the code; edits are lost. -->"
RUN_FILE = (
    "One YAML file is one complete run: there is no inheritance, and only the keys marked so may be omitted. "
    "`dsmath train RUN.yaml --set schedule.steps=100` changes a value for one start. Plain values follow YAML 1.2: "
    "`1e-4` is a number, `no` is text."
)
RECIPE_FILE = "The stages of `dsmath recipe` and `launch/chain.sh`; [recipes](../recipes.md) describes how they run."
PLAIN_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
BOUNDS = {
    "exclusiveMinimum": "above {}",
    "minimum": "{} or more",
    "exclusiveMaximum": "below {}",
    "maximum": "{} at most",
    "pattern": "matching `{}`",
}
Schema = dict[str, Any]


def pages() -> dict[str, str]:
    """The text of every generated file, by its path in the repository."""
    schema = run_schema()
    return {
        "configs/run.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        "docs/reference/config.md": keys_page("The run file", RUN_FILE, schema),
        "docs/reference/errors.md": errors_page(),
        "docs/reference/metrics.md": metrics_page(),
        "docs/reference/recipe.md": keys_page("The recipe file", RECIPE_FILE, RecipeFile.model_json_schema()),
    }


def run_schema() -> Schema:
    """The JSON schema with which an editor completes and checks a run file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunConfig.model_json_schema(),
        "title": "A run of megatron_dsmath",
    }


def keys_page(name: str, introduction: str, schema: Schema) -> str:
    """The page of the keys of a file, one table per section."""
    lines = [f"# {name}", NOTE, introduction]
    for title, section in _sections(schema, schema):
        lines += [f"## {title}" if title else "## Top level", _cell(section["description"]).strip()]
        rows = [
            (
                f"`{key}`",
                _takes(value) + ("" if key in section["required"] else "; may be omitted"),
                _meaning(value, schema),
            )
            for key, value in section["properties"].items()
        ]
        lines.append(_table(("key", "takes", "meaning"), rows))
    return "\n\n".join(lines) + "\n"


def errors_page() -> str:
    """The page of error kinds and exit codes."""
    codes = [
        (errors.EXIT_DONE, "done"),
        (errors.EXIT_ANSWER_IS_NO, "a check ran, and its answer is no"),
        (errors.EXIT_INTERNAL, "a failure that the user did not cause: a restart may help"),
        (errors.EXIT_STOPPED, "stopped on request, state saved: run the same command again"),
        (errors.EXIT_REFUSED, "refused: a restart cannot help until the mistake is corrected"),
    ]
    kinds = [(f"`{kind.kind()}`", str(kind.exit_code), kind.__doc__ or "") for kind in errors.catalogue()]
    lines = [
        "# Errors and exit codes",
        NOTE,
        "An error is printed on standard error: its kind and one sentence, then `where` (file and line, or key), "
        "`found`, `expected` and `fix`. All mistakes of a run file are printed together.",
        _table(("kind", "exit code", "meaning"), kinds),
        "## Exit codes",
        _table(("code", "meaning"), [(str(code), meaning) for code, meaning in codes]),
    ]
    return "\n\n".join(lines) + "\n"


def metrics_page() -> str:
    """The page of the metrics of a step."""
    rows = [(f"`{name}`", f"`{_wandb_name(name)}`", meaning) for name, meaning in METRICS.items()]
    lines = [
        "# Metrics",
        NOTE,
        "`metrics.jsonl` in a run's directory has one JSON object per completed step, and each step once. W&B has the "
        "same metrics with the names in the second column. A name that ends in `_by_corpus` is an object with one "
        "number per corpus.",
        _table(("in metrics.jsonl", "in W&B", "meaning"), rows),
    ]
    return "\n\n".join(lines) + "\n"


def _wandb_name(name: str) -> str:
    (sent,) = wandb_names({name: {"CORPUS": 0.0} if name.endswith("_by_corpus") else 0.0})
    return sent


def _sections(section: Schema, schema: Schema, title: str = "") -> Iterator[tuple[str, Schema]]:
    yield title, section
    for key, value in section["properties"].items():
        inner = next(
            (choice["$ref"] for choice in (value.get("items", value), *value.get("anyOf", [])) if "$ref" in choice),
            None,
        )
        if inner:
            below = f"{title}.{key}" if title else key
            yield from _sections(_resolve(inner, schema), schema, f"{below}[]" if "items" in value else below)


def _resolve(reference: str, schema: Schema) -> Schema:
    resolved: Schema = schema["$defs"][reference.removeprefix("#/$defs/")]
    return resolved


def _takes(value: Schema, plural: str = "") -> str:
    if "anyOf" in value:
        return " or ".join(_takes(choice) for choice in value["anyOf"])
    if "enum" in value:
        return f"one of {', '.join(f'`{choice}`' for choice in value['enum'])}"
    if "$ref" in value:
        return f"section{plural}"
    if value["type"] == "array":
        return f"list of {_takes(value['items'], 's')}{', at least one' if value.get('minItems') else ''}"
    if value["type"] == "null":
        return "`null`"
    bounds = ", ".join(phrase.format(value[bound]) for bound, phrase in BOUNDS.items() if bound in value)
    if value["type"] == "object":
        return f"a mapping of names to {_takes(value['additionalProperties'])}"
    return f"{PLAIN_TYPES[value['type']]}{plural}{f' ({bounds})' if bounds else ''}"


def _meaning(value: Schema, schema: Schema) -> str:
    meaning: str = value["description"] if "description" in value else _resolve(value["$ref"], schema)["description"]
    return meaning


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def stale(repository: Path) -> list[str]:
    """The generated files that are missing or out of date."""
    return [name for name, text in pages().items() if _read(repository / name) != text]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def write(repository: Path) -> None:
    """Write every generated file."""
    for name, text in pages().items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the stale files")
    if not parser.parse_args(arguments).check:
        write(REPOSITORY)
        return errors.EXIT_DONE
    found = stale(REPOSITORY)
    for name in found:
        print(f"{name} is stale: run python tools/generate_reference.py", file=sys.stderr)
    return errors.EXIT_ANSWER_IS_NO if found else errors.EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
