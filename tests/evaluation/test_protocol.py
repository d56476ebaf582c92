from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_dsmath.errors import ConfigError, DependencyError, DsmathError, UsageError
from megatron_dsmath.evaluation.benchmarks import Problem
from megatron_dsmath.evaluation.evaluate import EvaluationSettings, evaluate_model
from megatron_dsmath.evaluation.protocol import FOLDER, SHIPPED, Protocol, load_protocol
from tests.evaluation.scripted import rows_of, scripted_model

PROBLEM = Problem("gsm8k", 0, "How many?", "3", "en")


def copy_of(folder: Path, shipped: str, old: str = "", new: str = "") -> str:
    text = (FOLDER / f"{shipped}.yaml").read_text(encoding="utf-8").replace("text: ", f"text: {FOLDER}/")
    assert old in text
    path = folder / "mine.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


def load_shipped(name: str) -> Protocol:
    return load_protocol(name, Path("no-such-folder"))


@pytest.mark.parametrize(
    ("protocol", "task", "shots"),
    [
        ("base-few-shot", "gsm8k", 8),
        ("base-few-shot", "math", 4),
        ("base-few-shot", "cmath", 6),
        ("base-few-shot", "ocw", 4),
        ("base-few-shot", "sat", 4),
        ("base-few-shot", "mmlu-stem", 4),
        ("base-few-shot", "gaokao-cloze", 5),
        ("base-few-shot", "gaokao-mathqa", 5),
        ("base-program", "gsm8k", 8),
        ("base-program", "math", 5),
        ("base-code", "mbpp", 3),
        ("base-proof", "numbertheory", 7),
        ("base-proof", "other", 6),
    ],
)
def test_the_projects_prompts_have_the_papers_form_and_count_of_shots(protocol: str, task: str, shots: int) -> None:
    prompt = load_shipped(protocol).prompts[task]
    marks = 2 if task.startswith("gaokao") else 1  # 问题 begins a question, and its solution as well
    first = 1 if task == "mbpp" else 0  # [DONE] ends a shot; the other stop texts begin the next question
    assert prompt.shots == shots
    assert prompt.text.count(prompt.stop[0]) == marks * (shots + 1) - 1 - first + (task == "mbpp")


def test_the_papers_protocols_differ_from_the_projects_only_in_name_texts_and_sources(paper_data: Path) -> None:
    for name in ("base-few-shot", "base-program", "base-code", "base-proof"):
        project, paper = (load_protocol(each, paper_data).model_dump() for each in (name, f"{name}-paper"))
        assert paper.pop("name") == f"{project.pop('name')}-paper"
        for prompt in (*project["prompts"].values(), *paper["prompts"].values()):
            del prompt["text"], prompt["source"]
        assert project == paper


@pytest.mark.parametrize(
    ("protocol", "tasks"),
    [
        ("instruct-cot", "gsm8k,cmath"),
        ("instruct-tool", "gsm8k,cmath"),
        ("base-few-shot", "gsm8k,math,cmath,ocw,sat,mmlu-stem,gaokao-cloze,gaokao-mathqa"),
        ("base-program", "gsm8k,math"),
        ("base-code", "humaneval,mbpp"),
        ("base-proof", "minif2f-valid,minif2f-test"),
    ],
)
def test_every_shipped_protocol_asks_its_benchmarks(
    paper_data: Path, tmp_path: Path, protocol: str, tasks: str
) -> None:
    model = scripted_model(tmp_path / "model", lambda read, seed: " I do not know.")
    for name, author in ((protocol, "project"), (f"{protocol}-paper", "paper")):
        if name not in SHIPPED:
            continue
        asked = EvaluationSettings(
            tmp_path / "model", paper_data, tuple(tasks.split(",")), name, tmp_path / name, limit=1
        )
        results = evaluate_model(asked, model)
        loaded = load_protocol(name, paper_data)
        for task in asked.tasks:
            (row,) = rows_of(asked.out, task)
            key = next(key for key in (task, row["subject"], row["language"]) if key in loaded.prompts)
            assert loaded.prompts[key].text.replace("{question}", row["question"].strip()) in row["prompt"]
            assert results["shots"][task] == (author if loaded.prompts[key].shots else "none")


@pytest.mark.parametrize("mode", ["cot", "tool"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_instructions_are_the_papers_and_those_of_sft(shared_data: Path, mode: str, language: str) -> None:
    from megatron_dsmath.data.sft.template import INSTRUCTIONS

    templates = json.loads((shared_data / "eval/zero_shot_templates.json").read_text(encoding="utf-8"))
    prompt = load_shipped(f"instruct-{mode}").prompts[language]
    assert prompt.text == "{question}" + templates["zero_shot_suffix"][language][mode]
    assert prompt.text == "{question}\n" + INSTRUCTIONS[mode, language]


def test_the_shipped_protocols_decode_as_the_paper() -> None:
    for name in SHIPPED:
        if name.endswith("-paper"):  # equal to these but for their texts
            continue
        protocol = load_shipped(name)
        new_tokens = 500 if name == "base-code" else 1024  # the first is DeepSeek-Coder's, evaluation/eval_pal.py
        assert (protocol.name, protocol.decoding.temperature, protocol.decoding.new_tokens) == (name, 0.0, new_tokens)
    tools = load_shipped("instruct-tool").tools
    assert tools is not None
    assert (tools.rounds, tools.timeout_seconds, tools.output_characters) == (2, 10, 100)


def test_the_hash_covers_all_values_and_every_prompt(tmp_path: Path) -> None:
    shipped = load_shipped("instruct-cot")
    assert load_shipped(copy_of(tmp_path, "instruct-cot", "# Zero", "# Another comment; zero")).sha256 == shipped.sha256
    assert load_shipped(copy_of(tmp_path, "instruct-cot", "seed: 0", "seed: 1")).sha256 != shipped.sha256
    (tmp_path / "mine.txt").write_text("{question}\nPut your final answer within \\boxed{}.\n")
    named = f"{FOLDER}/prompts/instruct_cot_en.txt"
    assert load_shipped(copy_of(tmp_path, "instruct-cot", named, "mine.txt")).sha256 != shipped.sha256


@pytest.mark.parametrize(
    ("shipped", "old", "new", "line", "what"),
    [
        ("instruct-cot", "temperature: 0.0", "temperature: hot", 19, "number"),
        ("instruct-cot", "  top_p: 1.0\n", "", 18, "'top_p' is missing"),
        ("instruct-cot", "seed: 0", "seed: 0\n  luck: 7", 24, "unknown key"),
        ("instruct-cot", "mode: cot", "mode: tool", 24, "mode tool, no tools"),
        ("base-program", "program: solution", "program: null", 12, "mode program"),
        ("base-code", "program: whole", "program: answer", 19, "continued or whole"),
        ("base-code", "grading: null", "grading: {timeout_seconds: 5.0, math_verify: 0.9.0}", 32, "grading: null"),
        ("instruct-cot", "instruct_cot_en.txt", "nowhere.txt", 7, "cannot be read"),
        ("base-code-paper", "        shots: 3ef5", "        shots: 3 # 3ef5", 19, "expected: text"),
        ("instruct-cot", "prompts/instruct_cot_en.txt", "base-program.yaml", 7, "must contain {question} once"),
    ],
)
def test_a_mistake_is_reported_with_its_line(
    tmp_path: Path, shipped: str, old: str, new: str, line: int, what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_shipped(copy_of(tmp_path, shipped, old, new))
    assert f"mine.yaml:{line}" in caught.value.text()
    assert what in caught.value.text()


def test_another_version_of_the_grader_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"math-verify 0\.8\.0"):
        load_shipped(copy_of(tmp_path, "instruct-cot", "0.9.0", "0.8.0"))


def test_a_missing_checker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="no-such-checker"):
        load_shipped(copy_of(tmp_path, "base-proof", "checker: null", "checker: [no-such-checker, --fast]"))


@pytest.mark.parametrize("name", ["instruct", "instruct-cot.yaml"])
def test_an_unknown_protocol_is_refused(name: str) -> None:
    with pytest.raises(DsmathError):
        load_shipped(name)


def test_a_prompt_is_chosen_by_task_then_subject_then_language() -> None:
    few_shot = load_shipped("base-few-shot")
    assert few_shot.prompt_of(PROBLEM) is few_shot.prompts["gsm8k"]
    instruct = load_shipped("instruct-cot")
    assert instruct.prompt_of(PROBLEM) is instruct.prompts["en"]
    with pytest.raises(UsageError, match=r"no prompt for mgsm-zh(.|\n)*gsm8k, math, cmath"):
        few_shot.prompt_of(PROBLEM._replace(task="mgsm-zh", language="zh"))
    proof = load_shipped("base-proof")
    theorem = PROBLEM._replace(task="minif2f-test", subject="other", kind="proof")
    assert proof.prompt_of(theorem) is proof.prompts["other"]


@pytest.mark.parametrize("protocol", ["base-few-shot", "instruct-cot", "base-proof"])
def test_only_mode_code_asks_problems_with_tests(protocol: str) -> None:
    with pytest.raises(UsageError, match=r"no prompt for humaneval(.|\n)*mode code"):
        load_shipped(protocol).prompt_of(PROBLEM._replace(task="humaneval", kind="tests"))
