from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from megatron_dsmath.quickstart.web_pages import TOPICS, generate_pages
from tests.quickstart.arithmetic import numeric_chains


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    return list(islice(generate_pages(Random(3)), 600))


def test_every_equation_between_numbers_holds(drawn: list[str]) -> None:
    chains = [chain for page in drawn for chain in numeric_chains(page)]
    assert len(chains) > len(drawn) / 3  # lessons and replies, a third of the pages each, show their work
    assert all(len(set(chain)) == 1 for chain in chains)


def test_a_practice_sheet_has_an_answer_for_each_question(drawn: list[str]) -> None:
    sheets = [re.split("## (?:Answers|参考答案)", page) for page in drawn if "\n## " in page]
    assert sheets
    for questions, answers in sheets:
        assert re.findall(r"^\d+\.", questions, re.MULTILINE) == re.findall(r"^\d+\.", answers, re.MULTILINE)


def test_every_topic_comes_in_both_languages(drawn: list[str]) -> None:
    text = "\n".join(drawn).lower()
    assert all(title.lower() in text for topic in TOPICS for title in topic.title)


def test_no_field_of_a_template_is_left_open(drawn: list[str]) -> None:
    assert not any(re.search(r"\{[a-z]{3,}\}", page) for page in drawn)
