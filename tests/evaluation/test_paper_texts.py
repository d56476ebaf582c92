"""The paper's few-shot texts: read from the user's copy, and in no file of this repository."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.errors import DataError
from megatron_dsmath.evaluation.protocol import SHIPPED, load_protocol
from tests.conftest import REPOSITORY

RUN = 80
"""Characters: a longer text in common is a copy."""


@pytest.mark.parametrize(
    ("protocol", "task", "shots", "file"),
    [
        ("base-few-shot-paper", "gsm8k", 8, "cot_gsm_8_shot"),
        ("base-few-shot-paper", "math", 4, "cot_minerva_math_4_shot"),
        ("base-few-shot-paper", "cmath", 6, "cot_cmath_6_shot"),
        ("base-few-shot-paper", "ocw", 4, "cot_ocwcourses_4_shot"),
        ("base-few-shot-paper", "sat", 4, "cot_math_sat_4_shot"),
        ("base-few-shot-paper", "mmlu-stem", 4, "cot_mmlu_stem_4_shot"),
        ("base-few-shot-paper", "gaokao-cloze", 5, "cot_gaokao_mathcloze_5_shot"),
        ("base-few-shot-paper", "gaokao-mathqa", 5, "cot_gaokao_mathqa_5_shot"),
        ("base-program-paper", "gsm8k", 8, "pal_gsm_8_shot"),
        ("base-program-paper", "math", 5, "pal_math_4_shot"),
    ],
)
def test_prompts_equal_the_published_ones(
    paper_data: Path, published_prompts: dict[str, Any], protocol: str, task: str, shots: int, file: str
) -> None:
    published = published_prompts[file]
    prompt = load_protocol(protocol, paper_data).prompts[task]
    values = {"few_shot_prompt": published["few_shot_prompt"], "task_input": "{question}", "task_output": ""}
    expected = published["template"]
    for name, value in values.items():
        expected = expected.replace(f"{{{name}}}", value)
    assert prompt.text == expected.rstrip()
    assert prompt.stop == tuple(published["stop_words"])
    marks = 2 if task.startswith("gaokao") else 1  # 问题 begins a question, and its solution as well
    assert prompt.shots == shots
    assert prompt.text.count(prompt.stop[0]) == marks * (shots + 1) - 1, "the first shot begins the text"


def test_prompts_of_proofs_equal_the_published_ones(paper_data: Path, published_prompts: dict[str, Any]) -> None:
    published = published_prompts["minif2f_isabelle"]
    prompts = load_protocol("base-proof-paper", paper_data).prompts
    for subject, text in published["few_shot_prompt"].items():
        assert prompts[subject].text == f"{text.strip()}\n\n\n\nInformal:\n{{question}}"
        assert prompts[subject].stop == tuple(published["stop_words"])
        assert prompts[subject].shots == text.count("Informal:")


def test_the_shots_of_mbpp_are_its_second_to_fourth_row(paper_data: Path) -> None:
    lines = (paper_data / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[1:4]]  # Austin et al. 2021, section 3.1: task_id 2, 3 and 4
    asked = "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:"
    shots = [
        "\n".join(
            [asked.format(row["text"]), "", *row["test_list"], "[BEGIN]", row["code"].replace("\r", ""), "[DONE]"]
        )
        for row in rows
    ]
    query = "You are an expert Python programmer, and here is your task: {question}\n[BEGIN]"
    assert load_protocol("base-code-paper", paper_data).prompts["mbpp"].text == "\n".join([*shots, query])


def _changed(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_text_with_a_changed_character_is_one_error_with_both_hashes(paper_data: Path) -> None:
    _changed(paper_data / "few_shot_prompts/cot_gsm_8_shot.py", "15 trees", "16 trees")
    with pytest.raises(DataError) as caught:
        load_protocol("base-few-shot-paper", paper_data)
    text = caught.value.text()
    assert str(paper_data / "few_shot_prompts/cot_gsm_8_shot.py") in text
    assert "ff948dd847eb04493af0d564ed2b70fbb51197936c94eaa5f599cbb042bf1878" in text  # that of the published text
    assert "deepseek-ai/DeepSeek-Math" in text and text.count("sha256") == 2


def test_changed_rows_of_mbpp_are_refused(paper_data: Path) -> None:
    _changed(paper_data / "mbpp.jsonl", "similar elements", "equal elements")  # task_id 2
    with pytest.raises(DataError, match=r"mbpp\.jsonl(.|\n)*3ef5bb2c(.|\n)*DeepSeek-Coder"):
        load_protocol("base-code-paper", paper_data)


@pytest.mark.parametrize("content", [None, "few_shot_prompt = '", "", "(" * 1000, "\0"])
def test_a_file_that_is_missing_or_holds_no_text_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "few_shot_prompts/pal_gsm_8_shot.py"
    if content is not None:
        file.parent.mkdir()
        file.write_text(content)
    with pytest.raises(
        DataError,
        match=r"pal_gsm_8_shot\.py(.|\n)*sha256 [0-9a-f]{64}(.|\n)*github.com/deepseek-ai/DeepSeek-Math \(MIT\)",
    ):
        load_protocol("base-program-paper", tmp_path)


def _copied_run(text: str, published: str, blocks: frozenset[str]) -> str | None:
    """A run of RUN characters of `text` that is in `published`. Such a run holds a whole block of `blocks`."""
    size = RUN // 2
    for start in range(0, len(text), size):
        if text[start : start + size] in blocks:
            for first in range(max(0, start - size), start + 1):
                run = text[first : first + RUN]
                if len(run) == RUN and run.strip() and run in published:
                    return run
    return None


def _tracked_files() -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the files of the tree are not known")
    for name in listed.stdout.decode().split("\0")[:-1]:
        if (REPOSITORY / name).is_file():
            yield REPOSITORY / name


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def test_no_published_few_shot_text_is_in_the_tree(published_prompts: dict[str, Any]) -> None:
    published = "\0".join(_strings(published_prompts))
    blocks = frozenset(published[start : start + RUN // 2] for start in range(len(published)))
    planted = "Written here: " + published[200 : 200 + RUN]
    assert _copied_run(planted, published, blocks), "a copy is found"
    copies = {
        str(path.relative_to(REPOSITORY)): run
        for path in _tracked_files()
        if (run := _copied_run(path.read_text(encoding="utf-8", errors="replace"), published, blocks))
    }
    assert copies == {}


def test_only_the_papers_protocols_need_a_file_of_the_user(tmp_path: Path) -> None:
    for name in SHIPPED:
        if name.endswith("-paper"):
            with pytest.raises(DataError):
                load_protocol(name, tmp_path)
        else:
            load_protocol(name, tmp_path)
