"""Texts that are refused, and properties of all texts; examples are in tests/golden/conversations.txt."""

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
PROSE = st.sampled_from(["text\n", "数学\n", "\n", "a ```b``` c\n", "a ```` b\n"])
NESTED = st.sampled_from(["```python\n1\n```\n", "```output\n1\n```\n", "  ```text\n  ```\n"])
BODIES = st.lists(PROSE | NESTED, max_size=3).map("".join)
PROGRAMS = BODIES.map(lambda body: f"```python\n{body}```\n") | BODIES.map(lambda body: f"````\n{body}```\n````\n")
OUTPUTS = BODIES.map(lambda body: f"\n{body}```\n")


@st.composite
def masked_turns(draw: st.DrawFn) -> list[Span]:
    """The text of a turn as spans, put together from prose, programs and the outputs of tools."""
    spans = [Span("", True)]
    for _ in range(draw(st.integers(1, 4))):
        written = "".join(draw(st.lists(PROSE | PROGRAMS, max_size=3)))
        spans[-1] = Span(f"{spans[-1].text}{written}```output", True)
        spans += [Span(draw(OUTPUTS), False), Span("", True)]
    spans[-1] = Span("".join(draw(st.lists(PROSE | PROGRAMS, max_size=3))), True)
    return [span for span in spans if span.text]


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


def test_tool_outputs_are_the_spans_that_are_not_targets() -> None:
    counts = []

    @given(masked_turns())
    def check(spans: list[Span]) -> None:
        counts.append(len(spans))
        assert mask_tool_output("".join(span.text for span in spans)) == spans

    check()
    assert sum(count >= 3 for count in counts) > len(counts) / 2  # most have text after an output


@given(st.text(st.characters(exclude_characters="`", exclude_categories=["Cs"])))
def test_a_text_without_fences_is_one_target(text: str) -> None:
    assert mask_tool_output(text) == [Span(text, True)]
