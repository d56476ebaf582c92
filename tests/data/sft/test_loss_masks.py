"""What golden conversations do not show: texts that are refused, and what holds for every text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_dsmath.data.sft.loss_masks import FenceError, Span, mask_tool_output

NEVER_CLOSES = {
    "a program": "```python\nprint(1)",
    "an output": "```python\nprint(1)\n```\n```output\n1\nThe answer is 1.",
    "an output that was only called": "```python\nprint(1)\n```\n```output",
    "a program that ran on into its output": "```python\nprint(1)\n```output\n1\n```\nOne.",
    "a longer fence closed by a shorter": "````output\n1\n```\nOne.",
    "a block within an output": "```output\n```python\n1\n```\nOne.",
}
LINES = st.sampled_from(
    ["```python", "```output", "```", "````", "  ```", "text", "数学", "", "```outputs", "a ```b``` c"]
)


@pytest.mark.parametrize("text", NEVER_CLOSES.values(), ids=list(NEVER_CLOSES))
def test_a_fence_that_never_closes_is_refused(text: str) -> None:
    with pytest.raises(FenceError, match="never closes"):
        mask_tool_output(text)


def test_an_output_that_does_not_begin_its_line_is_refused() -> None:
    with pytest.raises(FenceError, match=r"line 2: .*does not begin its line"):
        mask_tool_output("It says\nhere: ```output\n5\n```\n")


def test_the_refusal_names_the_line_of_the_fence() -> None:
    with pytest.raises(FenceError, match="line 3"):
        mask_tool_output("one\ntwo\n```output\n")


@given(st.lists(LINES).map("\n".join))
def test_runs_are_the_text_alternate_and_begin_with_what_is_learned(text: str) -> None:
    try:
        runs = mask_tool_output(text)
    except FenceError:
        return
    assert "".join(run.text for run in runs) == text
    assert [run.is_target for run in runs] == [number % 2 == 0 for number in range(len(runs))]
    for called, said in zip(runs[::2], runs[1::2], strict=False):
        assert called.text.endswith("```output")
        assert said.text.rstrip().endswith("```")


@given(st.text(st.characters(exclude_characters="`", exclude_categories=["Cs"])))
def test_a_text_without_fences_is_learned_as_a_whole(text: str) -> None:
    assert mask_tool_output(text) == [Span(text, True)]
