from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_dsmath.data.decontamination.text_units import BLOCK_CHARACTERS, LAYOUT_COMMANDS, normalise, split_units

TEXTS = st.text(st.sampled_from("aZé7٣中〇𠀀　，.,\\{}$ \n'\u0301²ßΣ𝐱") | st.characters(codec="utf-8"))


def ours(text: str) -> list[str]:
    units = split_units([text])
    return units.words(0, len(units.starts))


def theirs(text: str) -> list[str]:
    """The definition, one character at a time."""
    kinds = [kind(character) for character in text]
    units: list[str] = []
    previous = ""
    for place, character in enumerate(text):
        before, after = kinds[place - 1 : place], kinds[place + 1 : place + 2]
        if character == "\\" and after == ["letter"] and backslashes_before(text, place) % 2 == 0:
            units.append(character)
            previous = "letter"
            continue
        now = "number" if character == "." and before == after == ["number"] else kinds[place]
        if now == "":
            pass
        elif now == previous != "Han":
            units[-1] += character
        else:
            units.append(character)
        previous = now
    commands = {r"\dfrac": r"\frac", r"\tfrac": r"\frac"} | dict.fromkeys(LAYOUT_COMMANDS.split(), "")
    return [commands.get(unit, unit) for unit in map(str.casefold, units) if commands.get(unit, unit)]


def backslashes_before(text: str, place: int) -> int:
    return place - len(text[:place].rstrip("\\"))


def kind(character: str) -> str:
    in_planes_for_han_only = "\U00020000" <= character < "\U00040000"
    if character in "〇々" or in_planes_for_han_only or unicodedata.name(character, "").startswith("CJK UNIFIED"):
        return "Han"
    if "VARIATION SELECTOR" in unicodedata.name(character, ""):
        return ""
    category = unicodedata.category(character)
    return "number" if category == "Nd" else "letter" if category[0] in "LMN" else ""


@pytest.mark.parametrize(
    ("text", "units"),
    {
        "words are runs of letters": ("Find the sum, don't guess!", "find the sum don t guess"),
        "case does not matter": ("GCD Gcd ΣΑΣ", "gcd gcd σασ"),
        "numbers stay whole": ("3.14 is 1,000.5 of 1000000 or 1,000,000.", "3.14 is 1000.5 of 1000000 or 1000000"),
        "a list is not a number": ("(1, 2) (1,2) 1,23 1.", "1 2 1 2 1 23 1"),
        "letters and digits are separate": ("2x3 H2O x_1", "2 x 3 h 2 o x 1"),
        "each Han character is one": ("小明有12个苹果，吃了2个。", "小 明 有 12 个 苹 果 吃 了 2 个"),
        "a rare Han character too": ("〇𠀀々", "〇 𠀀 々"),
        "variation selectors do not matter": ("葛\U000e0100城 ☺\ufe0f ok", "葛 城 ok"),
        "LaTeX commands": (r"\frac{3}{4}x^2 \le\sqrt5", r"\frac 3 4 x 2 \le \sqrt 5"),
        "a line break is not a command": (r"a\\b \\\alpha", r"a b \alpha"),
        "delimiters of formulas": (r"$x$ \(x\) \[x\] $$x$$", "x x x x"),
        "LaTeX spacing": (r"x\,y\;z\ a\quad b~c", "x y z a b c"),
        "sizes of brackets": (r"\left( x \right) \bigl[ y \Bigr] \displaystyle z", "x y z"),
        "fonts": (r"6.5 \mathrm{~m} \text{ or } \mathbb{R} \textbf{Note}", "6.5 m or r note"),
        "kinds of fractions": (r"\dfrac12 \tfrac12 \frac12", r"\frac 12 \frac 12 \frac 12"),
        "thousands in LaTeX": (r"10{,}000 10,\!000 10,000", "10000 10000 10000"),
        "compatible forms": ("ｘ² ﬁnd １２", "x 2 find 12"),
        "accents, composed or not": ("Erdo\u030bs Erd\u0151s", "erdős erdős"),
        "punctuation alone": ("... \\ $ {} ,,, 。，", ""),
        "nothing": ("", ""),
    }.values(),
)
def test_a_unit_is_a_word_a_number_a_command_or_a_han_character(text: str, units: str) -> None:
    assert ours(text) == units.split()


@given(TEXTS)
@example("1.2.3 .5 5. 1..2")
@example(r"\left(\Big[\dfrac\leftx\\left\\\left")
@example(r"a\b\\c\中\1\_\\")
def test_the_fast_splitter_follows_the_definition(text: str) -> None:
    assert ours(text) == theirs(normalise(text))


@given(st.text("，：；？！（）－／～…\u3000\xa0aé中²1", max_size=20))
def test_wide_punctuation_separates_as_its_compatible_form_does(text: str) -> None:
    # Between digits, a wide comma is not a thousands separator, so the test puts a blank between all characters.
    spaced = " ".join(text)
    assert ours(spaced) == theirs(unicodedata.normalize("NFKC", spaced))


@pytest.mark.parametrize("filler", ["word ", "中", "1 + ", "x" * 1000 + "\n", "\\frac{1}{2}"])
def test_a_long_text_is_cut_only_between_units(filler: str) -> None:
    text = filler * (3 * BLOCK_CHARACTERS // len(filler)) + "the end 3.14"
    assert ours(text) == theirs(text)


def test_each_text_keeps_its_own_units() -> None:
    texts = ["", "one two", "...", "三", ""]
    units = split_units(texts)
    assert [units.words(first, stop - first) for first, stop in zip(units.firsts, units.firsts[1:], strict=False)] == [
        theirs(text) for text in texts
    ]
    assert units.texts_of([0, 1, 2]).tolist() == [1, 1, 3]
    assert units.stops_of([0, 1, 2]).tolist() == [2, 2, 3]
    assert len(split_units([]).starts) == 0


def test_equal_hashes_mean_equal_units(shared_data: Path) -> None:
    files = ["pretrain/arxiv_sample", "pretrain/c4_en_sample", "pretrain/zh_wiki_cmrc2018"]
    rows = [json.loads(line) for name in files for line in (shared_data / f"{name}.jsonl").open()]
    units = split_units([row["text"] for row in rows])
    words = units.words(0, len(units.starts))
    assert (
        len(set(zip(words, units.hashes.tolist(), strict=True))) == len(set(words)) == len(set(units.hashes.tolist()))
    )


def test_real_texts_are_split_as_defined(shared_data: Path) -> None:
    for name in ("pretrain/arxiv_sample", "pretrain/zh_wiki_cmrc2018"):
        text = "\n".join(json.loads(line)["text"] for line in (shared_data / f"{name}.jsonl").open())
        assert ours(text) == theirs(normalise(text))


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\U0001d165\u0316"])
def test_many_marks_take_linear_time(marks: str) -> None:
    started = time.process_time()
    assert len(ours("a" + marks * 500_000)) == 1
    assert time.process_time() - started < 20  # NFKC alone takes a quarter of an hour


def test_an_excerpt_encloses_the_passage() -> None:
    text = (
        "One two three four five\nsix seven eight nine ten eleven, twelve thirteen fourteen fifteen sixteen seventeen."
    )
    units = split_units(["before it", text, "after it"])
    assert units.excerpt(2 + 9, 2) == (
        "two three four five six seven eight nine ⟦ten eleven⟧, twelve thirteen fourteen fifteen sixteen seventeen"
    )
    assert units.excerpt(2, 1) == "⟦One⟧ two three four five six seven eight nine"
    assert len(split_units(["x" * 9999]).excerpt(0, 1)) < 500
