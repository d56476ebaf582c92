"""The command: its verbs, its help, its exit codes and its JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath import __version__, cli
from tests.support.corpora import write_inputs, write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import dsmath

HEAVY = ("torch", "megatron", "wandb", "sympy", "matplotlib", "transformers")


def verbs_of(parser: argparse.ArgumentParser, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every verb, groups followed to their ends."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name
    for group in groups:
        for word, verb in group.choices.items():
            yield from verbs_of(verb, (*name, word))


VERBS = sorted(verbs_of(cli._parser()))


def test_every_verb_of_the_interface_exists() -> None:
    words = {" ".join(verb) for verb in VERBS}
    expected = {
        "doctor",
        "evaluate",
        "grade",
        "sandbox",
        "sft build",
        "sft show",
        "verify-layouts",
        "quickstart",
        "recipe",
        "train",
        "report",
        "data tokenize",
        "data inspect",
        "data verify",
        "data merge",
        "data blend",
        "checkpoint list",
        "checkpoint verify",
        "checkpoint average",
        "import-hf",
        "export-hf",
    }
    assert expected <= words


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_has_a_valid_example(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*verb, "--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    program, *words = shown.partition("example: ")[2].split()
    assert program == "dsmath"
    cli._parser().parse_args(words)
    assert tuple(words[: len(verb)]) == verb


def test_help_of_every_verb_loads_nothing_heavy() -> None:
    lines = (
        "import sys",
        "from contextlib import redirect_stdout, suppress",
        "from io import StringIO",
        "from megatron_dsmath import cli",
        f"for verb in {[[], *map(list, VERBS)]}:",
        "    with suppress(SystemExit), redirect_stdout(StringIO()):",
        "        cli.main([*verb, '--help'])",
        f"print([name for name in {HEAVY} if name in sys.modules])",
    )
    shown = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["data"],
        ["data", "tokenise"],
        ["train"],
        ["train", "run.yaml", "--n-proc", "2"],
        ["train", "run.yaml", "--nproc", "two"],
        ["data", "tokenize", "file", "--tokenizer", "t", "--out", "o", "--bad-lines", "ignore"],
    ],
    ids=" ".join,
)
def test_an_unknown_argument_is_a_usage_error_with_a_fix(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 78
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error[usage]: ")
    assert "--help\n" in shown.err


def test_a_flag_cannot_be_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "run.yaml", "--npro", "2"]) == 78
    assert "--npro" in capsys.readouterr().err


def test_the_module_is_the_command() -> None:
    (script,) = entry_points(group="console_scripts", name="dsmath")
    assert script.load() is cli.main
    shown = subprocess.run(
        [sys.executable, "-m", "megatron_dsmath", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"dsmath {__version__}\n"
    refused = subprocess.run([sys.executable, "-m", "megatron_dsmath", "trian"], capture_output=True, check=False)
    assert refused.returncode == 78


# --- what programs read ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    assert cli.main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_json_of_tokenize_inspect_and_verify_agrees(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = inputs / "code.jsonl", tmp_path / "out"
    tokenized = printed_json(capsys, "data", "tokenize", source, "--tokenizer", inputs / "tokenizer", "--out", out)
    assert (tokenized["documents"], tokenized["bad_lines"]) == (60, 0)
    inspected = printed_json(capsys, "data", "inspect", out)
    assert (inspected["documents"], inspected["tokens"]) == (60, tokenized["tokens"])
    assert printed_json(capsys, "data", "verify", out)["holds"] is True
    merged = printed_json(capsys, "data", "merge", out, inputs / "data" / "mathematics", "--out", tmp_path / "both")
    assert merged["documents"] == 120


def test_verify_says_no_with_exit_code_1(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        printed_json(capsys, "data", "verify", inputs / "data" / "code", "--vocabulary-size", 10, code=1)["holds"]
        is False
    )


def test_blend_prints_the_plan_of_a_run(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml")
    rows = printed_json(capsys, "data", "blend", run_file, "--set", "schedule.steps=8")
    # 8 steps of 8 sequences of 32 tokens, 3 : 1
    assert [(row["name"], row["samples"], row["tokens"]) for row in rows] == [
        ("mathematics", 48, 48 * 32),
        ("code", 16, 16 * 32),
    ]
    assert cli.main(["data", "blend", str(run_file)]) == 0
    assert "mathematics" in capsys.readouterr().out


def test_checkpoints_are_listed_and_verified(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    run_file = write_run_file(inputs, output, tmp_path / "run.yaml", schedule__steps=4, schedule__drops=[])
    assert run_ranks(1, dsmath, ["train", str(run_file)])[0].code == 0
    rows = printed_json(capsys, "checkpoint", "list", output)
    assert [(row["step"], row["kind"], row["tokens"]) for row in rows] == [
        (3, "training", 3 * 8 * 32),
        (4, "training", 4 * 8 * 32),
    ]
    checkpoint = output / "checkpoints" / "step_4"
    assert printed_json(capsys, "checkpoint", "verify", checkpoint)["step"] == 4
    shard = next((checkpoint / "shards").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli.main(["checkpoint", "verify", str(checkpoint)]) == 1
    assert "error[checkpoint]: a file of the checkpoint differs from what was saved" in capsys.readouterr().err
