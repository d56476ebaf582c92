"""Prompts, stop texts, tool calls and programs, with a model that answers from a script."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.template import ConversationEncoder, DeepSeekMathTemplate
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.evaluation.answering import answer_program, combined_program, tool_output
from megatron_dsmath.evaluation.evaluate import evaluate_model
from megatron_dsmath.evaluation.generation.open_backend import Model
from megatron_dsmath.evaluation.protocol import FOLDER, load_protocol
from megatron_dsmath.sandbox import confinement
from megatron_dsmath.sandbox.outcome import Outcome
from tests.evaluation.scripted import ScriptedBackend, evaluation_of, rows_of, scripted_model, write_problems

SUMS = [{"question": f"What is {a} + {a + 1}?", "answer": 2 * a + 1} for a in range(10)]
needs_sandbox = pytest.mark.skipif(not confinement.is_supported(), reason="this machine cannot confine a program")


def programs(read: str, seed: int) -> str:
    if "```output" in read:
        shown = read.rpartition("```output\n")[2].partition("\n```")[0]
        return f"So the answer is $\\boxed{{{shown}}}$."
    a, b = re.findall(r"What is (\d+) \+ (\d+)", read)[-1]
    return f" Let us compute.\n```python\nprint({a} + {b})\n```\n```output\n999\n```\nSo it is $\\boxed{{999}}$."


def test_the_prompt_equals_that_of_sft(tmp_path: Path) -> None:
    chinese = "小明有3个苹果，又买了2个，一共几个？"
    write_problems(tmp_path / "problems.jsonl", [SUMS[0], {"question": chinese, "answer": 5}])
    model = scripted_model(tmp_path / "model", lambda read, seed: " $\\boxed{5}$")
    evaluate_model(evaluation_of(tmp_path, "instruct-cot"), model)
    assert isinstance(model.backend, ScriptedBackend)
    instructions = (
        "Please reason step by step, and put your final answer within \\boxed{}.",
        "请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。",
    )
    assert model.backend.prompts_read == [
        f"<s>User: {question}\n{instruction}\n\nAssistant:"
        for question, instruction in zip(("What is 0 + 1?", chinese), instructions, strict=True)
    ]


def test_template_tokenizer_uses_the_models_chat_template(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_problems(tmp_path / "problems.jsonl", SUMS[:1])
    model = scripted_model(tmp_path / "model", lambda read, seed: " $\\boxed{1}$")
    config = tmp_path / "model/tokenizer_config.json"
    turns = "{% for m in messages %}{{ bos_token + m.role + '\n' + m.content + eos_token + '\n' }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    shipped = (FOLDER / "instruct-cot.yaml").read_text(encoding="utf-8").replace("text: ", f"text: {FOLDER}/")
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(shipped.replace("template: deepseekmath", "template: tokenizer"), encoding="utf-8")
    evaluate_model(evaluation_of(tmp_path, str(protocol)), model)
    assert isinstance(model.backend, ScriptedBackend)
    (((request,), _),) = model.backend.calls
    prompt = load_protocol("instruct-cot", tmp_path).prompts["en"].text
    question = prompt.replace("{question}", str(SUMS[0]["question"]))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model").apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    assert list(request.ids) == theirs


@needs_sandbox
def test_a_tools_output_replaces_the_models_guess(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", programs)
    results = evaluate_model(evaluation_of(tmp_path, "instruct-tool"), model)
    figures = results["tasks"]["problems"]
    assert (figures["accuracy"], figures["tool_calls"], figures["programs"], figures["program_errors"]) == (
        1,
        10,
        10,
        0,
    )
    row = rows_of(tmp_path / "out")[3]
    assert row["output"] == (
        " Let us compute.\n```python\nprint(3 + 4)\n```\n```output\n7\n```\nSo the answer is $\\boxed{7}$."
    )
    assert [program["stdout"] for program in row["programs"]] == ["7\n"]


def asks_read_as_training_writes(folder: Path, model: Model) -> None:
    """The tokens after the second round equal the tokens of the same turn in SFT."""
    write_problems(folder / "problems.jsonl", SUMS[3:4])
    evaluate_model(evaluation_of(folder, "instruct-tool"), model)
    assert isinstance(model.backend, ScriptedBackend)
    _, ((second,), _) = model.backend.calls
    (row,) = rows_of(folder / "out")
    tokenizer = model.tokenizer
    question = load_protocol("instruct-tool", folder).prompts["en"].text.replace("{question}", SUMS[3]["question"])
    messages = [Message("user", question), Message("assistant", row["output"].removeprefix(" "))]
    taught = ConversationEncoder(DeepSeekMathTemplate(tokenizer), tokenizer).encode([messages]).tokens.tolist()
    said = tokenizer.encode("So the answer is $\\boxed{7}$.")
    assert [*second.ids, *said, tokenizer.end_of_document] == taught


@needs_sandbox
def test_the_tokens_of_a_tool_call_are_those_of_training(tmp_path: Path) -> None:
    asks_read_as_training_writes(tmp_path, scripted_model(tmp_path / "model", programs))


@needs_sandbox
def test_the_tokens_of_a_tool_call_with_deepseeks_vocabulary(tmp_path: Path, shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizer/deepseek_llm")
    asks_read_as_training_writes(tmp_path, Model(ScriptedBackend(tokenizer, programs), tokenizer, "of the script"))


@needs_sandbox
def test_the_model_reads_an_error_and_the_rounds_end(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", SUMS[:1])
    model = scripted_model(tmp_path / "model", lambda read, seed: " Again.\n```python\nprint(1 / 0)\n```\n```output")
    results = evaluate_model(evaluation_of(tmp_path, "instruct-tool"), model)
    figures = results["tasks"]["problems"]
    assert (figures["tool_calls"], figures["program_errors"], figures["no_answer"]) == (2, 2, 0)
    round_text = (
        " Again.\n```python\nprint(1 / 0)\n```\n```output\nRuntime errors: ZeroDivisionError: division by zero\n```\n"
    )
    assert rows_of(tmp_path / "out")[0]["output"] == 2 * round_text


@needs_sandbox
def test_a_cut_off_output_continues_in_the_next_round(tmp_path: Path) -> None:
    """As in the paper's harness, where only the end-of-text token ends an answer."""
    protocol = own_protocol(tmp_path, "instruct-tool", "en", "en")
    protocol.write_text(
        protocol.read_text(encoding="utf-8").replace("new_tokens: 1024", "new_tokens: 8"), encoding="utf-8"
    )
    write_problems(tmp_path / "problems.jsonl", SUMS[:1])
    text = "0123456789abcdefgh"
    model = scripted_model(tmp_path / "model", lambda read, seed: text[len(read.rpartition("Assistant:")[2]) :])
    results = evaluate_model(evaluation_of(tmp_path, str(protocol)), model)
    (row,) = rows_of(tmp_path / "out")
    assert (row["output"], row["new_tokens"], row["end"]) == (text[:16], 16, "length")
    assert results["tasks"]["problems"]["cut_off"] == 1


@needs_sandbox
def test_a_base_models_program_is_its_answer(tmp_path: Path) -> None:
    def program(read: str, seed: int) -> str:
        a, b = re.findall(r"What is (\d+) \+ (\d+)", read)[-1]
        body = "return missing" if a == "9" else f"return {a} + {b}"
        return f'\n\n\ndef solution():\n    """A docstring"""\n    {body}\n\n\n\n\n\nQ: Another?\n'

    protocol = own_protocol(tmp_path, "base-program", "gsm8k", "en")
    write_problems(tmp_path / "problems.jsonl", SUMS)
    model = scripted_model(tmp_path / "model", program)
    results = evaluate_model(evaluation_of(tmp_path, str(protocol)), model)
    figures = results["tasks"]["problems"]
    assert (figures["accuracy"], figures["program_errors"], figures["no_answer"]) == (0.9, 1, 1)
    row = rows_of(tmp_path / "out")[9]
    assert row["programs"][0]["error"] == "NameError: name 'missing' is not defined"
    assert row["output"].endswith("return missing" + 5 * "\n"), "the sixth belongs to the stop text"


def test_a_few_shot_prompt_begins_a_document_and_stops_before_a_next_question(tmp_path: Path) -> None:
    protocol = own_protocol(tmp_path, "base-few-shot", "gsm8k", "en")
    write_problems(tmp_path / "problems.jsonl", SUMS[:1])
    model = scripted_model(tmp_path / "model", lambda read, seed: " 0 + 1 is 1. The answer is 1.\n\n\nQ: Other?\nA: 7")
    evaluate_model(evaluation_of(tmp_path, str(protocol)), model)
    (row,) = rows_of(tmp_path / "out")
    assert (row["output"], row["extracted"], row["correct"]) == (" 0 + 1 is 1. The answer is 1.\n\n", "1", True)
    assert isinstance(model.backend, ScriptedBackend)
    assert model.backend.prompts_read[0].startswith("<s>Q: A mountain railway has 24 seats")
    assert model.backend.prompts_read[0].endswith("\n\n\nQ: What is 0 + 1?\nA:")


def own_protocol(folder: Path, shipped: str, task: str, name: str) -> Path:
    """A shipped protocol with the prompt of one task under another name."""
    text = (FOLDER / f"{shipped}.yaml").read_text(encoding="utf-8")
    text = text.replace(f"  {task}:\n", f"  {name}:\n").replace("text: prompts/", f"text: {FOLDER}/prompts/")
    path = folder / "protocol.yaml"
    path.write_text(text, encoding="utf-8")
    return path


FIRST = "Let us see.\n```python\nimport math\nx = 3\ndef double(n):\n    print(n)\n    return 2 * n\nprint(x)\n```\n"


def test_the_second_program_continues_the_first_without_its_prints() -> None:
    text = FIRST + "```output\n3\n```\nSo\n```python\nprint(double(x))\n```\n"
    assert combined_program(text) == (
        "import math\nx = 3\ndef double(n):\n    print(n)\n    return 2 * n\nprint(double(x))"
    )


def test_a_program_may_begin_the_text() -> None:
    assert combined_program("```python\nprint(1)\n```") == "print(1)"


@pytest.mark.parametrize("text", ["", "no program", FIRST + "So it is 3.", "```\nprint(1)\n```", "```python\n```"])
def test_a_call_without_a_program_runs_nothing(text: str) -> None:
    assert combined_program(text) is None


def test_the_program_of_a_word_problem_prints_its_solution() -> None:
    program = answer_program("\n\ndef solution():\n    return 7", "solution")
    assert program == "\n\ndef solution():\n    return 7\n\nprint(solution())\n"
    assert answer_program(" \n", "solution") is None


def test_the_imports_of_a_math_program_come_first() -> None:
    output = "\n```\nanswer = sqrt(2)\n```\nThe imports required are\n```\nfrom sympy import sqrt\n```\nI hope"
    program = answer_program(output, "answer")
    assert program == "\nfrom sympy import sqrt\n\n\n\nanswer = sqrt(2)\n\n\nprint(answer)\n"
    assert answer_program("\n```\nanswer = 2\n```\n", "answer") is None


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome("ok", " 7\n", "", "", 0.1), "7"),
        (Outcome("ok", "a" * 60 + "b" * 60, "", "", 0.1), "a" * 50 + "..." + "b" * 50),
        (Outcome("ok", "a" * 100, "", "", 0.1), "a" * 100),
        (Outcome("ok", "", "", "", 0.1), "Runtime errors:"),
        (Outcome("error", "7\n", "trace", "NameError: x", 0.1), "Runtime errors: NameError: x"),
        (Outcome("timeout", "", "", "", 9.0), "Runtime errors: timeout"),
        (None, "no program to run"),
    ],
)
def test_tool_output_is_what_the_model_reads(outcome: Outcome | None, expected: str) -> None:
    assert tool_output(outcome, 100) == expected
