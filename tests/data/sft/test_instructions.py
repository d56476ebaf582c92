from __future__ import annotations

import json
from pathlib import Path

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.template import INSTRUCTIONS, add_instruction

ASKED = (Message("system", "s"), Message("user", "q"), Message("assistant", "a"), Message("user", "r"))


def test_the_instructions_are_those_of_the_authors(shared_data: Path) -> None:
    theirs = json.loads((shared_data / "eval" / "zero_shot_templates.json").read_bytes())["zero_shot_suffix"]
    assert {(kind, language): f"\n{text}" for (kind, language), text in INSTRUCTIONS.items()} == {
        (kind, language): text for language, texts in theirs.items() for kind, text in texts.items()
    }


def test_the_instruction_is_after_the_first_question() -> None:
    first, *others = add_instruction(ASKED, "cot", "zh")[1:]
    assert first == Message("user", "q\n请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。")
    assert tuple(others) == ASKED[2:]


def test_the_instruction_is_not_added_twice() -> None:
    once = add_instruction(ASKED, "tool", "en")
    assert add_instruction(once, "tool", "en") == once != ASKED
