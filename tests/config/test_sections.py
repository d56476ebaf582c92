"""Parameters and operations of a model, against sums over its tensors."""

from __future__ import annotations

from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.config import load
from tests.support.seeded import PAPER_RUN

PAPER_MODEL = load(PAPER_RUN).model


def test_the_model_of_the_paper_has_6910365696_parameters() -> None:
    assert PAPER_MODEL.parameters == 6_910_365_696  # the released model's tensors add up to it


@settings(deadline=None)
@given(
    layers=st.integers(1, 64),
    head_size=st.integers(1, 64).map(lambda half: 2 * half),
    groups=st.integers(1, 8),
    heads_per_group=st.integers(1, 8),
    feed_forward=st.integers(1, 10_000),
    vocabulary=st.integers(1, 200_000),
)
def test_the_parameters_are_counted_as_in_the_hugging_face_tensors(
    layers: int, head_size: int, groups: int, heads_per_group: int, feed_forward: int, vocabulary: int
) -> None:
    hidden = head_size * groups * heads_per_group
    model = PAPER_MODEL.model_copy(
        update={
            "layers": layers,
            "hidden_size": hidden,
            "attention_heads": groups * heads_per_group,
            "key_value_heads": groups,
            "ffn_hidden_size": feed_forward,
            "vocabulary_size": vocabulary,
        }
    )
    layer = {
        "q_proj": (hidden, hidden),
        "k_proj": (groups * head_size, hidden),
        "v_proj": (groups * head_size, hidden),
        "o_proj": (hidden, hidden),
        "gate_proj": (feed_forward, hidden),
        "up_proj": (feed_forward, hidden),
        "down_proj": (hidden, feed_forward),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    ends = {"embed_tokens": (vocabulary, hidden), "norm": (hidden,), "lm_head": (vocabulary, hidden)}
    assert model.parameters == layers * _count(layer) + _count(ends)


def _count(tensors: dict[str, tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in tensors.values())


def test_a_token_of_the_paper_s_run_costs_41_96_gflop() -> None:
    matrices = 30 * (4 * 4096**2 + 3 * 4096 * 11008) + 102_400 * 4096  # no input embedding, which is a look-up
    assert matrices == 6_490_685_440
    attention = 12 * 30 * 4096 * 4096  # scores and their use, forward and twice that backward, no mask
    flops = PAPER_MODEL.flops_per_token(sequence_length=4096)
    assert flops == 6 * matrices + attention // 2  # the causal mask leaves half
    assert round(flops / 1e9, 2) == 41.96
    assert round(flops * 500e9 / 1e22, 3) == 2.098  # the whole run


def test_the_cost_of_a_token_counts_query_heads_not_groups() -> None:
    grouped = PAPER_MODEL.model_copy(update={"key_value_heads": 8})
    fewer_weights = 30 * 2 * 4096 * (4096 - 1024)  # keys and values of 8 heads of 128, not of 32
    assert PAPER_MODEL.flops_per_token(4096) - grouped.flops_per_token(4096) == 6 * fewer_weights


def test_a_head_is_its_share_of_the_width() -> None:
    assert PAPER_MODEL.head_size == 128
