from __future__ import annotations

import pytest

from megatron_dsmath.grading.extraction import extract

OUTPUTS: list[tuple[str, str | None, str | None]] = [
    ("so \\boxed{5} and then \\boxed{\\frac{1}{2}}.", None, "\\frac{1}{2}"),
    ("The solutions are $\\boxed{1}$ and $\\boxed{2}$.", "math", "1, 2"),
    ("\\boxed 5 is it", None, "5"),
    ("\\boxed5.", None, "5"),
    ("\\boxed{\\{1,2\\}}", None, "\\{1,2\\}"),
    ("\\boxed{\\text{a}_{b}}", None, "\\text{a}_{b}"),
    ("\\boxed{3} wait \\boxed{4", None, "3"),
    ("\\boxed{} hmm The answer is 7.", None, "7"),
    ("\\fbox{8}", None, "8"),
    ("The answer is 18 dollars.", "gsm8k", "18 dollars"),
    ("The answer is: $18.50.", None, "$18.50"),
    ("So the answer is 3.5.", None, "3.5"),
    ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "math", "$\\frac{1}{2}$"),
    ("The answer is 1. No, the answer is 2.", None, "2"),
    ("答案是18元。", "cmath", "18元"),
    ("答案是：18\n问题：别的", "cmath", "18"),
    ("所以答案为 三分之一。", None, "三分之一"),
    ("因此，答案是$x=5$。", None, "$x=5$"),
    ("答案是3，因为1+2=3。", "cmath", "3"),
    ("He has 3 apples.\n#### 1,234", "gsm8k", "1,234"),
    ("A: 18", "gsm8k", "18"),
    ("blah 3 + 4 = 7 total", "gsm8k", "7"),
    ("It costs $1,200.50 then.", "gsm8k", "1,200.50"),
    ("```python\nprint(3)\n```\n```output\n42\n```\n", "gsm8k", "42"),
    ("```output\n1\n```\nso\n```output\n2\n3\n```", None, "3"),
    ("```output\n42\n```\nThe answer is $\\boxed{43}$.", None, "43"),
    ("The answer is (C) because it is", "sat", "C"),
    ("答案是 B", "gaokao-mathqa", "B"),
    ("故选：AC", "gaokao-mathqa", "AC"),
    ("the final answer is (A), I hope", "mmlu-stem", "A"),
    ("\\boxed{B}", "sat", "B"),
    ("\\boxed{\\text{(D)}}", "sat", "D"),
    ("I think A is right so B", "sat", "B"),
    ("I cannot say", "sat", None),
    ("no idea", "math", None),
    ("", "math", None),
    ("The answer is 5\n\nQ: What is 2+2?\nThe answer is 4.", "gsm8k", "5"),
    ("The answer is 5.\n\nProblem:\nWhat? The final answer is 6.", "math", "5"),
    ("答案：一万二千元", "cmath", "一万二千元"),
    ("Answer: 12", "gsm8k", "12"),
    ("**Answer:** 12 apples", "gsm8k", "12 apples"),
    ("**Final Answer**: $\\sqrt{2}$", None, "$\\sqrt{2}$"),
    ("The answer is 3 dozen = 36 eggs.", "gsm8k", "36 eggs"),
    ("The answer is $x = 4$ and $y = 5$.", None, "$x = 4$ and $y = 5$"),
    ("The final answer is \\( \\frac{3}{4} \\).", None, "\\( \\frac{3}{4} \\)"),
    ("The answer is 2 hours and 30 minutes = 150 minutes", "gsm8k", "150 minutes"),
    ("$\\boxed{\\$18}$", "gsm8k", "\\$18"),
    ("$\\boxed{18\\%}$", "gsm8k", "18\\%"),
    ("Therefore the answer is -5.", "math", "-5"),
    ("答案是-5。", "cmath", "-5"),
    ("余数是5", "cmath", "5"),
    ("最终答案是12.5千克", "cmath", "12.5千克"),
    ("答案是：$\\boxed{3}$。", "cmath", "3"),
    ("So he needs 1/2 of it", "cmath", "1/2"),
    ("共有3/4升", "cmath", "3/4"),
    ("增加了25%", "cmath", "25%"),
]


@pytest.mark.parametrize(("output", "task", "answer"), OUTPUTS)
def test_the_final_answer_is_found(output: str, task: str | None, answer: str | None) -> None:
    assert extract(output, task) == answer
