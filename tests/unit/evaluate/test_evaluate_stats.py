"""Statistics on cases whose answer is known without a library."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluate import stats
from tunesmith.evaluate.task import ratio


def columns(values: object) -> stats.Array:
    numbers = np.asarray(values, dtype=np.float64)
    return np.stack([numbers, np.ones_like(numbers)], axis=1)


def test_mcnemar_by_hand() -> None:
    assert stats.mcnemar_p_value(0, 0) == 1.0
    assert stats.mcnemar_p_value(5, 5) == 1.0
    assert stats.mcnemar_p_value(5, 0) == pytest.approx(2 / 32)
    assert stats.mcnemar_p_value(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert stats.mcnemar_p_value(5, 1) == stats.mcnemar_p_value(1, 5)
    assert 0 <= stats.mcnemar_p_value(100_000, 0) < 1e-300


def test_wilson_at_the_ends() -> None:
    assert stats.wilson_interval(0, 0) == (0.0, 1.0)
    low, high = stats.wilson_interval(0, 10)
    assert low == 0.0 and high == pytest.approx(0.27753, abs=1e-5)
    low, high = stats.wilson_interval(10, 10)
    assert high == 1.0 and low == pytest.approx(1 - 0.27753, abs=1e-5)


def test_equal_models_cannot_be_told_apart() -> None:
    same = columns([0.1, 0.9, 0.4])
    assert stats.paired_bootstrap_interval(same, same, ratio, 1) == (0.0, 0.0)
    assert stats.randomisation_p_value(same, same, ratio, 1) == 1.0
    assert stats.verdict(0.0, 1.0) == "cannot tell"


def test_one_item_never_decides() -> None:
    p_value = stats.randomisation_p_value(columns([0.0]), columns([1.0]), ratio, 1)
    assert p_value > 0.9
    assert stats.verdict(1.0, p_value) == "cannot tell"


@pytest.mark.parametrize(
    ("difference", "p_value", "higher", "word"),
    [
        (0.1, 0.01, True, "improved"),
        (-0.1, 0.01, True, "regressed"),
        (0.1, 0.01, False, "regressed"),
        (-0.1, 0.01, False, "improved"),
        (0.1, 0.05, True, "cannot tell"),
        (0.9, 0.2, True, "cannot tell"),
    ],
)
def test_verdict(difference: float, p_value: float, higher: bool, word: str) -> None:
    assert stats.verdict(difference, p_value, higher_is_better=higher) == word


def test_same_seed_same_numbers_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base, tuned = columns(rng.random(40)), columns(rng.random(40))
    whole = stats.paired_bootstrap_interval(base, tuned, ratio, 3)
    assert whole == stats.paired_bootstrap_interval(base, tuned, ratio, 3)
    assert whole != stats.paired_bootstrap_interval(base, tuned, ratio, 4)
    monkeypatch.setattr(stats, "_CELLS_AT_ONCE", 40 * 100)
    assert whole == stats.paired_bootstrap_interval(base, tuned, ratio, 3)


def test_no_difference_is_rarely_called_one() -> None:
    rng = np.random.default_rng(11)
    called = 0
    for trial in range(200):
        base, tuned = columns(rng.beta(0.5, 0.5, 30)), columns(rng.beta(0.5, 0.5, 30))
        p_value = stats.randomisation_p_value(base, tuned, ratio, trial)
        called += stats.verdict(1.0, p_value) != "cannot tell"
    assert called <= 20  # 10 expected; more than 20 happens once in a thousand


def test_ten_points_are_found_at_two_hundred_items() -> None:
    rng = np.random.default_rng(12)
    found = 0
    for _ in range(100):
        base = rng.random(200) < 0.5
        tuned = np.where(rng.random(200) < 0.14, True, base)  # fixes and breaks: from 50 % to about 60 %
        tuned = np.where(rng.random(200) < 0.06, ~tuned, tuned)
        fixed, broken = int((tuned & ~base).sum()), int((base & ~tuned).sum())
        found += stats.verdict(fixed - broken, stats.mcnemar_p_value(fixed, broken)) == "improved"
    assert found >= 50
