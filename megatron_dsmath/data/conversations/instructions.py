"""The paper's instructions, which follow a question after one newline.

Source: DeepSeek-Math, evaluation/README.md and run_subset_parallel.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_dsmath.data.conversations.conversation import Message

INSTRUCTIONS = {
    ("cot", "en"): "Please reason step by step, and put your final answer within \\boxed{}.",
    ("cot", "zh"): "请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。",
    ("tool", "en"): "Please integrate natural language reasoning with programs to solve the problem above, "
    "and put your final answer within \\boxed{}.",
    ("tool", "zh"): "请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\\boxed{}中。",
}


def with_instruction(messages: Sequence[Message], instruction: str, language: str) -> tuple[Message, ...]:
    """The conversation with an instruction ("cot" or "tool") after its first question, unless it ends so already."""
    text = INSTRUCTIONS[instruction, language]
    place = next(number for number, message in enumerate(messages) if message.role == "user")
    question = messages[place].content
    if question.rstrip().endswith(text):
        return tuple(messages)
    asked = Message("user", f"{question}\n{text}")
    return (*messages[:place], asked, *messages[place + 1 :])
