from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_dsmath.errors import ConfigError, DependencyError, DsmathError, UsageError
from megatron_dsmath.evaluation.benchmarks import Problem
from megatron_dsmath.evaluation.protocol import FOLDER, SHIPPED, load_protocol

PROBLEM = Problem("gsm8k", 0, "How many?", "3", "en")


def copy_of(folder: Path, shipped: str, old: str = "", new: str = "") -> str:
    text = (FOLDER / f"{shipped}.yaml").read_text(encoding="utf-8").replace("text: ", f"text: {FOLDER}/")
    assert old in text
    path = folder / "mine.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("protocol", "task", "shots", "theirs"),
    [
        ("base-few-shot", "gsm8k", 8, "cot_gsm_8_shot"),
        ("base-few-shot", "math", 4, "cot_minerva_math_4_shot"),
        ("base-few-shot", "cmath", 6, "cot_cmath_6_shot"),
        ("base-few-shot", "sat", 4, "cot_math_sat_4_shot"),
        ("base-few-shot", "mmlu-stem", 4, "cot_mmlu_stem_4_shot"),
        ("base-few-shot", "gaokao-cloze", 5, "cot_gaokao_mathcloze_5_shot"),
        ("base-few-shot", "gaokao-mathqa", 5, "cot_gaokao_mathqa_5_shot"),
        ("base-program", "gsm8k", 8, "pal_gsm_8_shot"),
        ("base-program", "math", 5, "pal_math_4_shot"),
    ],
)
def test_few_shot_prompts_are_the_papers_to_the_character(
    shared_data: Path, protocol: str, task: str, shots: int, theirs: str
) -> None:
    published = json.loads((shared_data / "eval/few_shot_prompts.json").read_text(encoding="utf-8"))[theirs]
    prompt = load_protocol(protocol).prompts[task]
    values = {"few_shot_prompt": published["few_shot_prompt"], "task_input": "{question}", "task_output": ""}
    expected = published["template"]
    for name, value in values.items():
        expected = expected.replace(f"{{{name}}}", value)
    assert prompt.text == expected.rstrip()
    assert prompt.stop == tuple(published["stop_words"])
    marks = 2 if task.startswith("gaokao") else 1  # 问题 begins a question, and its solution as well
    assert prompt.shots == shots
    assert prompt.text.count(prompt.stop[0]) == marks * (shots + 1) - 1, "the first shot begins the text"


def test_the_shots_of_proofs_are_the_papers_to_the_character(shared_data: Path) -> None:
    published = json.loads((shared_data / "eval/few_shot_prompts.json").read_text(encoding="utf-8"))["minif2f_isabelle"]
    prompts = load_protocol("base-proof").prompts
    for subject, text in published["few_shot_prompt"].items():
        assert prompts[subject].text == f"{text.strip()}\n\n\n\nInformal:\n{{question}}"
        assert prompts[subject].stop == tuple(published["stop_words"])
        assert prompts[subject].shots == text.count("Informal:")


def test_the_shots_of_mbpp_are_its_second_to_fourth_row(shared_data: Path) -> None:
    lines = (shared_data / "pretrain/mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[1:4]]  # Austin et al. 2021, section 3.1: task_id 2, 3 and 4
    asked = "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:"
    shots = [
        "\n".join(
            [asked.format(row["text"]), "", *row["test_list"], "[BEGIN]", row["code"].replace("\r", ""), "[DONE]"]
        )
        for row in rows
    ]
    query = "You are an expert Python programmer, and here is your task: {question}\n[BEGIN]"
    assert load_protocol("base-code").prompts["mbpp"].text == "\n".join([*shots, query])


@pytest.mark.parametrize("mode", ["cot", "tool"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_instructions_are_the_papers_and_those_of_sft(shared_data: Path, mode: str, language: str) -> None:
    from megatron_dsmath.data.sft.template import INSTRUCTIONS

    templates = json.loads((shared_data / "eval/zero_shot_templates.json").read_text(encoding="utf-8"))
    prompt = load_protocol(f"instruct-{mode}").prompts[language]
    assert prompt.text == "{question}" + templates["zero_shot_suffix"][language][mode]
    assert prompt.text == "{question}\n" + INSTRUCTIONS[mode, language]


def test_the_shipped_protocols_decode_as_the_paper() -> None:
    for name in SHIPPED:
        protocol = load_protocol(name)
        new_tokens = 500 if name == "base-code" else 1024  # the first is DeepSeek-Coder's, evaluation/eval_pal.py
        assert (protocol.name, protocol.decoding.temperature, protocol.decoding.new_tokens) == (name, 0.0, new_tokens)
    tools = load_protocol("instruct-tool").tools
    assert tools is not None
    assert (tools.rounds, tools.timeout_seconds, tools.output_characters) == (2, 10, 100)


def test_the_hash_is_of_the_values_and_of_every_prompt(tmp_path: Path) -> None:
    shipped = load_protocol("instruct-cot")
    assert load_protocol(copy_of(tmp_path, "instruct-cot", "# Zero", "# Another remark; zero")).sha256 == shipped.sha256
    assert load_protocol(copy_of(tmp_path, "instruct-cot", "seed: 0", "seed: 1")).sha256 != shipped.sha256
    (tmp_path / "mine.txt").write_text("{question}\nPut your final answer within \\boxed{}.\n")
    named = f"{FOLDER}/prompts/instruct_cot_en.txt"
    assert load_protocol(copy_of(tmp_path, "instruct-cot", named, "mine.txt")).sha256 != shipped.sha256


@pytest.mark.parametrize(
    ("shipped", "old", "new", "line", "what"),
    [
        ("instruct-cot", "temperature: 0.0", "temperature: hot", 19, "number"),
        ("instruct-cot", "  top_p: 1.0\n", "", 18, "a key is missing"),
        ("instruct-cot", "seed: 0", "seed: 0\n  luck: 7", 24, "unknown key"),
        ("instruct-cot", "mode: cot", "mode: tool", 24, "mode tool, no tools"),
        ("base-program", "program: solution", "program: null", 12, "mode program"),
        ("base-code", "program: whole", "program: answer", 18, "continued or whole"),
        ("base-code", "grading: null", "grading: {timeout_seconds: 5.0, math_verify: 0.9.0}", 31, "grading: null"),
        ("instruct-cot", "instruct_cot_en.txt", "nowhere.txt", 7, "cannot be read"),
        ("instruct-cot", "prompts/instruct_cot_en.txt", "base-program.yaml", 7, "holds {question} not once"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, shipped: str, old: str, new: str, line: int, what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_protocol(copy_of(tmp_path, shipped, old, new))
    assert f"mine.yaml:{line}" in caught.value.text()
    assert what in caught.value.text()


def test_another_grader_than_the_protocols_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"math-verify 0\.8\.0"):
        load_protocol(copy_of(tmp_path, "instruct-cot", "0.9.0", "0.8.0"))


def test_a_checker_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="no-such-checker"):
        load_protocol(copy_of(tmp_path, "base-proof", "checker: null", "checker: [no-such-checker, --fast]"))


@pytest.mark.parametrize("name", ["instruct", "instruct-cot.yaml"])
def test_a_protocol_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(DsmathError):
        load_protocol(name)


def test_a_task_is_asked_by_its_own_prompt_else_by_its_languages() -> None:
    few_shot = load_protocol("base-few-shot")
    assert few_shot.prompt_of(PROBLEM) is few_shot.prompts["gsm8k"]
    instruct = load_protocol("instruct-cot")
    assert instruct.prompt_of(PROBLEM) is instruct.prompts["en"]
    with pytest.raises(UsageError, match=r"how to ask mgsm-zh(.|\n)*gsm8k, math, cmath"):
        few_shot.prompt_of(PROBLEM._replace(task="mgsm-zh", language="zh"))
    proof = load_protocol("base-proof")
    theorem = PROBLEM._replace(task="minif2f-test", subject="other", kind="proof")
    assert proof.prompt_of(theorem) is proof.prompts["other"]


@pytest.mark.parametrize("protocol", ["base-few-shot", "instruct-cot", "base-proof"])
def test_a_program_is_not_asked_for_where_nobody_would_run_its_tests(protocol: str) -> None:
    with pytest.raises(UsageError, match=r"how to ask humaneval(.|\n)*mode code"):
        load_protocol(protocol).prompt_of(PROBLEM._replace(task="humaneval", kind="tests"))
