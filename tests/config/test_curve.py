"""The grammar of the learning rate and of lengths."""

from __future__ import annotations

from fractions import Fraction

import pytest

from megatron_dsmath.config.curve import Length, parse_curve, parse_length


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("80%", Length(Fraction(4, 5), "share")),
        ("31.6%", Length(Fraction(316, 1000), "share")),
        ("2000 steps", Length(Fraction(2000), "steps")),
        ("10K steps", Length(Fraction(10_000), "steps")),
        ("100B tokens", Length(Fraction(10**11), "tokens")),
        ("1.5T tokens", Length(Fraction(15 * 10**11), "tokens")),
        ("1 tokens", Length(Fraction(1), "tokens")),
    ],
)
def test_a_length_is_exact(text: str, length: Length) -> None:
    assert parse_length(text) == length


@pytest.mark.parametrize("text", ["", "80", "steps", "0 steps", "101%", "-1 steps", "2,000 steps", "5 B tokens", "1h"])
def test_other_text_is_no_length(text: str) -> None:
    with pytest.raises(ValueError, match=r"length|100%"):
        parse_length(text)


def test_a_sentence_is_a_list_of_parts() -> None:
    warmup, stable, decay = parse_curve("warm up from 1% to 3e-4 over 2000 steps, constant until 80%, 1-sqrt to 10%")
    assert (warmup.shape, warmup.relation) == ("warm up", "over")
    assert warmup.first is not None
    assert warmup.last is not None
    assert (warmup.first.value(2.0), warmup.last.value(2.0)) == (0.02, 3e-4)
    assert (stable.shape, stable.relation, stable.length) == ("constant", "until", Length(Fraction(4, 5), "share"))
    assert (decay.shape, decay.length) == ("1-sqrt", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is none"),
        ("cosin to 0", "The shapes are warm up, constant"),
        ("cosine", "the rate at the end"),
        ("drop until 80%", "the rate at the end"),
        ("constant to 10%", "`drop to 10%` changes the rate at once"),
        ("linear from 10% to 0", "`from` only after `warm up`"),
        ("linear to ten", "a rate such as"),
        ("linear to 10% until ten", "a length such as"),
        ("exponential to 0", "does not reach zero"),
        ("inverse-sqrt", "a part before `inverse-sqrt`"),
        ("warm up, , constant", "is none"),
    ],
)
def test_a_mistake_in_a_sentence_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_curve(text)
    assert said in str(refusal.value)
