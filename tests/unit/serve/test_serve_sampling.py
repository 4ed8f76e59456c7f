"""Drawing tokens: the shares are those of temperature, top-k and top-p, in this order."""

from __future__ import annotations

import pytest
import torch

from tunesmith.serve.embedded import sampling
from tunesmith.serve.embedded.sequence import Sampling

VOCABULARY = 600


def expected_shares(logits_V: torch.Tensor, setting: Sampling) -> torch.Tensor:
    """Return the probabilities, one rule after the other as their definitions read."""
    scaled_V = logits_V.double() / setting.temperature
    order = scaled_V.argsort(descending=True)
    kept = order[: setting.top_k or None]
    shares = scaled_V[kept].softmax(dim=-1)
    count = 1
    while count < len(kept) and float(shares[:count].sum()) < setting.top_p:
        count += 1
    found = torch.zeros(len(logits_V), dtype=torch.float64)
    found[kept[:count]] = shares[:count] / shares[:count].sum()
    return found


@pytest.mark.parametrize("spread", [0.1, 3.0], ids=["flat: more than the candidates", "steep"])
@pytest.mark.parametrize(
    "setting",
    [
        Sampling(1, temperature=1.0),
        Sampling(1, temperature=0.5),
        Sampling(1, temperature=1.3, top_p=0.9),
        Sampling(1, temperature=1.0, top_k=7),
        Sampling(1, temperature=0.8, top_k=300, top_p=0.5),
        Sampling(1, temperature=1.0, top_p=0.0),
    ],
)
def test_each_token_is_drawn_by_its_share(setting: Sampling, spread: float) -> None:
    logits_V = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3)) * spread
    # Evenly spread numbers fall on each token as often as its share says, to one in their number.
    num_draws = 20_000
    uniforms = [(i + 0.5) / num_draws for i in range(num_draws)]
    found = torch.zeros(VOCABULARY, dtype=torch.float64)
    for begin in range(0, num_draws, 1000):
        part = uniforms[begin : begin + 1000]
        ids = sampling.draw(logits_V.expand(len(part), -1), [setting] * len(part), part)
        found += torch.bincount(torch.tensor(ids), minlength=VOCABULARY)
    difference = (found / num_draws - expected_shares(logits_V, setting)).abs().max()
    assert float(difference) < 1.5 / num_draws


def test_rows_with_different_settings_do_not_mix() -> None:
    logits_RV = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(4))
    settings = [
        Sampling(1, temperature=1.0),
        Sampling(1, temperature=1.0, top_p=0.1),
        Sampling(1, temperature=2.0),
        Sampling(1, temperature=1.0, top_k=1),
    ]
    uniforms = [0.3, 0.9, 0.5, 0.99]
    together = sampling.draw(logits_RV, settings, uniforms)
    alone = [sampling.draw(logits_RV[i, None], [settings[i]], [uniforms[i]])[0] for i in range(4)]
    assert together == alone
    assert together[3] == int(logits_RV[3].argmax())


def test_extreme_numbers_give_tokens_that_can_be() -> None:
    logits_RV = torch.full((2, 5), float("-inf"))
    logits_RV[:, 2] = 1.0
    for uniform in (0.0, 1.0 - 2**-53):
        assert sampling.draw(logits_RV, [Sampling(1), Sampling(1, top_p=0.5)], [uniform] * 2) == [2, 2]
