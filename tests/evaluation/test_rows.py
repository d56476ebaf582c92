"""An evaluation from problems to results, with a model that answers from a script."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.errors import OutputError, UsageError
from megatron_dsmath.evaluation.evaluate import evaluate_model, protocol_name
from megatron_dsmath.evaluation.generation.token_batch import Completion, GenerationSettings
from tests.evaluation.scripted import (
    ScriptedBackend,
    evaluation_of,
    rows_of,
    scripted_model,
    write_problems,
)

SUMS = [{"question": f"What is {a} + {a + 1}?", "answer": 2 * a + 1, "level": f"Level {a % 2}"} for a in range(10)]


def words(read: str, seed: int) -> str:
    """Right for even numbers, one too much for odd ones, no answer for 9."""
    a, b = map(int, re.findall(r"What is (\d+) \+ (\d+)", read)[-1])
    return " I do not know." if a == 9 else f" It is $\\boxed{{{a + b + a % 2}}}$."


def test_accuracy_counts_and_levels_equal_those_of_the_script(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", words)
    results = evaluate_model(evaluation_of(tmp_path, "instruct-cot", batch_problems=3), model)
    figures = results["tasks"]["problems"]
    assert (figures["problems"], figures["accuracy"], figures["no_answer"]) == (10, 0.5, 1)
    assert {name: level["accuracy"] for name, level in figures["by_level"].items()} == {"Level 0": 1.0, "Level 1": 0.0}
    assert figures["by_language"]["en"]["problems"] == 10
    assert [row["extracted"] for row in rows_of(tmp_path / "out")][:3] == ["1", "4", "5"]
    assert json.loads((tmp_path / "out/results.json").read_text())["tasks"] == json.loads(json.dumps(results["tasks"]))


class Killed(Exception):
    """Ends the evaluation as a kill would."""


def test_a_killed_evaluation_resumes_to_the_same_results(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    asked: dict[str, Any] = {"protocol": "instruct-cot", "batch_problems": 3, "samples": 2}

    def drawn(read: str, seed: int) -> str:
        return words(read, seed) if seed % 2 else " $\\boxed{0}$"

    evaluate_model(evaluation_of(tmp_path, **asked, out=tmp_path / "whole"), scripted_model(tmp_path / "model", drawn))

    class KilledBackend(ScriptedBackend):
        def generate(self, requests: Any, settings: GenerationSettings) -> list[Completion]:
            if len(self.calls) == 3:
                raise Killed
            return super().generate(requests, settings)

    model = scripted_model(tmp_path / "model", drawn)
    with pytest.raises(Killed):
        evaluate_model(evaluation_of(tmp_path, **asked), model._replace(backend=KilledBackend(model.tokenizer, drawn)))
    rows = tmp_path / "out/outputs/problems.jsonl"
    rows.write_bytes(rows.read_bytes()[:-40])  # the last row is only half on the disk
    again = scripted_model(tmp_path / "model", drawn)
    evaluate_model(evaluation_of(tmp_path, **asked), again)

    assert (tmp_path / "out/results.json").read_bytes() == (tmp_path / "whole/results.json").read_bytes()
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    assert isinstance(again.backend, ScriptedBackend)
    assert len(again.backend.calls) == 7 - 2, "the batch with the broken row and those after it, whole"


def test_every_problem_and_sample_has_its_own_seed(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", words)
    results = evaluate_model(evaluation_of(tmp_path, "instruct-cot", samples=4), model)
    assert isinstance(model.backend, ScriptedBackend)
    seeds = [request.seed for requests, _ in model.backend.calls for request in requests]
    assert len(seeds) == len(set(seeds)) == 40
    assert {settings.temperature for _, settings in model.backend.calls} == {0.7}
    figures = results["tasks"]["problems"]
    assert figures["pass_at"] == {"1": 0.5, "2": 0.5, "4": 0.5}  # the script does not draw
    assert figures["majority"] == 0.5


def test_other_settings_do_not_resume_this_evaluation(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", words)
    evaluate_model(evaluation_of(tmp_path, "instruct-cot", limit=2), model)
    with pytest.raises(OutputError, match="limit 2"):
        evaluate_model(evaluation_of(tmp_path, "instruct-cot", limit=3), model)


@pytest.mark.parametrize(
    ("line", "what"),
    [("{}", r"problems\.jsonl:11"), ('{"row": 10, "sample": 0}', "11 rows(.|\n)*10"), ("row", "jsonl:11")],
)
def test_a_row_that_no_evaluation_wrote_is_refused(tmp_path: Path, line: str, what: str) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", words)
    evaluate_model(evaluation_of(tmp_path, "instruct-cot"), model)
    with (tmp_path / "out/outputs/problems.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(OutputError, match=what):
        evaluate_model(evaluation_of(tmp_path, "instruct-cot"), model)


def test_only_problems_within_the_limit_are_asked(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", words)
    results = evaluate_model(evaluation_of(tmp_path, "instruct-cot", limit=4), model)
    assert results["limit"] == 4
    assert results["benchmarks"]["problems"]["rows"] == 10
    assert results["tasks"]["problems"]["problems"] == len(rows_of(tmp_path / "out")) == 4


def test_the_models_text_is_escaped_on_the_page(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS[:1])
    hostile = "<script>alert(1)</script></pre> \udc80".encode("utf-8", "replace").decode()
    evaluate_model(
        evaluation_of(tmp_path, "instruct-cot"), scripted_model(tmp_path / "model", lambda read, seed: hostile)
    )
    page = (tmp_path / "out/problems-problems.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;/pre&gt;" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tasks": ("gsm9k",)}, "no such task"),
        ({"limit": 0}, "--limit"),
        ({"samples": 0}, "--samples"),
        ({"tasks": ("problems.jsonl", "problems.jsonl")}, "named once"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", words)
    with pytest.raises(UsageError, match=what):
        evaluate_model(evaluation_of(tmp_path, "instruct-cot", **changes), model)


def test_mode_is_short_for_a_protocol() -> None:
    assert protocol_name(None, "tool") == "instruct-tool"
    assert protocol_name("base-program", None) == "base-program"
    with pytest.raises(UsageError, match="both"):
        protocol_name("instruct-cot", "tool")
    with pytest.raises(UsageError, match="neither"):
        protocol_name(None, None)
