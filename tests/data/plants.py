"""What decontamination must find, however it is disguised, and what it must leave alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np

from megatron_dsmath.data.decontamination.benchmark_texts import read_benchmark
from megatron_dsmath.data.decontamination.ngrams import SHORTEST_UNITS
from megatron_dsmath.data.decontamination.text_units import split_units
from megatron_dsmath.quickstart import corpora, papers

FILLER = "No benchmark contains this. 这一段里没有任何数学题。 " * 50


def _in_other_latex(text: str) -> str:
    others = {"(": "\\left( ", ")": "\\right)", "$": "\\) ", "=": "\\;=\\, ", "\\frac": "\\dfrac", "\\\\": "\\\\ "}
    for one, other in others.items():
        text = text.replace(one, other)
    return text


def _in_wide_forms(text: str) -> str:
    """Digits, brackets and punctuation as Chinese typesetting has them."""
    wide = {ord(narrow): chr(ord(narrow) + 0xFEE0) for narrow in "0123456789:;?()"}
    return text.translate(wide).replace(", ", "，").replace(". ", "．\u3000")


DISGUISES: dict[str, Callable[[str], str]] = {
    "verbatim": lambda text: text,
    "in capitals": lambda text: re.sub(r"(?<![\\a-zA-Z])[a-zA-Z]+", lambda word: word[0].upper(), text),
    "in other whitespace": lambda text: " \r\n\t".join(text.split()),
    "in other LaTeX": _in_other_latex,
    "in wide forms": _in_wide_forms,
    "at the start": lambda text: f"{text}\n{FILLER}",
    "at the end": lambda text: f"{FILLER}\n{text}",
    "in the middle": lambda text: f"{FILLER}\n{text}\n{FILLER}",
}


def questions_of(paths: Sequence[Path]) -> list[str]:
    """Every question of 3 units or more."""
    questions = [text.text for path in paths for text in read_benchmark(path).texts if text.is_question]
    is_long_enough = np.diff(split_units(questions).firsts) >= SHORTEST_UNITS
    return [question for question, is_used in zip(questions, is_long_enough, strict=True) if is_used]


def clean_documents(count: int) -> list[str]:
    """Half mathematical articles in LaTeX by the quickstart's generator, half Chinese essays of its sentences."""
    draw = Random(0)
    return [*islice(papers.generate_articles(draw), count // 2), *(_essay(draw) for _ in range(count - count // 2))]


def _essay(draw: Random) -> str:
    words = {
        "time": corpora.TIMES,
        "person": corpora.PEOPLE,
        "other": corpora.PEOPLE,
        "place": corpora.PLACES,
        "action": corpora.ACTIONS,
        "weather": corpora.WEATHER,
        "thing": corpora.THINGS,
        "quality": corpora.QUALITIES,
        "feeling": corpora.FEELINGS,
    }
    sentences = draw.choices(corpora.SENTENCES, k=draw.randint(10, 40))
    return "".join(
        sentence.format_map({name: draw.choice(choices) for name, choices in words.items()}) for sentence in sentences
    )
