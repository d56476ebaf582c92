from __future__ import annotations

import torch

from megatron_dsmath.evaluation.generation.token_batch import GenerationSettings, choose_tokens

SHARES = torch.tensor([0.1, 0.5, 0.15, 0.25])


def drawn(settings: GenerationSettings, count: int) -> list[float]:
    """How often each of the four words is chosen."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    tokens = choose_tokens(SHARES.log().expand(count, 4), generators, settings)
    return [(tokens == word).double().mean().item() for word in range(4)]


def test_greedy_takes_the_most_likely() -> None:
    assert drawn(GenerationSettings(1, (), 0.0, 1.0), 3) == [0, 1, 0, 0]


def test_sampling_follows_the_model() -> None:
    found = drawn(GenerationSettings(1, (), 1.0, 1.0), 4000)
    # Five standard deviations of a share of one half in 4,000 draws.
    assert all(abs(share - wanted) < 0.04 for share, wanted in zip(found, SHARES.tolist(), strict=True))


def test_a_low_temperature_sharpens() -> None:
    squares = [share**2 / sum(SHARES.square().tolist()) for share in SHARES.tolist()]
    found = drawn(GenerationSettings(1, (), 0.5, 1.0), 4000)
    assert all(abs(share - wanted) < 0.04 for share, wanted in zip(found, squares, strict=True))


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    found = drawn(GenerationSettings(1, (), 1.0, 0.7), 4000)
    assert found[0] == found[2] == 0
    assert abs(found[1] - 0.5 / 0.75) < 0.04


def test_a_draw_depends_only_on_its_seed() -> None:
    settings, logits = GenerationSettings(1, (), 1.0, 1.0), SHARES.log()
    alone = [choose_tokens(logits[None], [torch.Generator().manual_seed(seed)], settings).item() for seed in range(20)]
    together = choose_tokens(
        logits.expand(20, 4), [torch.Generator().manual_seed(seed) for seed in range(20)], settings
    )
    assert together.tolist() == alone
    assert len(set(alone)) > 1
