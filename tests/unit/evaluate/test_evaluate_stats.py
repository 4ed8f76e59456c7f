"""Statistics on cases whose answer is known without a library."""

from __future__ import annotations

import functools
import math

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
    assert stats.verdict(1.0, (0.0, 0.0)) == "cannot tell"


def test_one_item_never_decides() -> None:
    p_value = stats.randomisation_p_value(columns([0.0]), columns([1.0]), ratio, 1)
    assert p_value > 0.9
    assert stats.verdict(p_value, (1.0, 1.0)) == "cannot tell"


@pytest.mark.parametrize(
    ("interval", "p_value", "higher", "word"),
    [
        ((0.1, 0.3), 0.01, True, "improved"),
        ((-0.3, -0.1), 0.01, True, "regressed"),
        ((0.1, 0.3), 0.01, False, "regressed"),
        ((-0.3, -0.1), 0.01, False, "improved"),
        ((0.1, 0.3), 0.05, True, "cannot tell"),
        ((0.9, 1.0), 0.2, True, "cannot tell"),
        ((0.0, 0.3), 0.01, True, "cannot tell"),
        ((-0.3, 0.0), 0.01, True, "cannot tell"),
        ((float("nan"), float("nan")), 0.01, True, "cannot tell"),
    ],
)
def test_verdict(interval: tuple[float, float], p_value: float, higher: bool, word: str) -> None:
    assert stats.verdict(p_value, interval, higher_is_better=higher) == word


def test_a_verdict_never_contradicts_the_interval_beside_it() -> None:
    """The test alone would say that these differ: p = 0.0488, beside an interval that begins at -0.001."""
    rng = np.random.default_rng(1822)
    base, tuned = (columns(rng.beta(2.0, 2.0, 100)) for _ in range(2))
    p_value = stats.randomisation_p_value(base, tuned, ratio, 1)
    interval = stats.paired_bootstrap_interval(base, tuned, ratio, 1)
    assert p_value < stats.SIGNIFICANCE and interval[0] < 0 < interval[1]
    assert stats.verdict(p_value, interval) == "cannot tell"


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
        interval = stats.paired_bootstrap_interval(base, tuned, ratio, trial)
        called += stats.verdict(p_value, interval) != "cannot tell"
    assert called <= 20  # 10 expected; more than 20 happens once in a thousand


def test_intervals_of_few_items_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for trial in range(1000):
        low, high = stats.bootstrap_interval(columns(rng.normal(0.5, 0.1, 10)), ratio, trial)
        held += low <= 0.5 <= high
    assert 925 <= held <= 975  # plain percentiles: about 900


def test_ten_points_are_found_at_two_hundred_items() -> None:
    rng = np.random.default_rng(12)
    found = 0
    for _ in range(100):
        base = rng.random(200) < 0.5
        tuned = np.where(rng.random(200) < 0.14, True, base)  # fixes and breaks: from 50 % to about 60 %
        tuned = np.where(rng.random(200) < 0.06, ~tuned, tuned)
        fixed, broken = int((tuned & ~base).sum()), int((base & ~tuned).sum())
        found += of_counts(fixed, broken, 200) == "improved"
    assert found >= 50


@functools.cache
def of_counts(num_fixed: int, num_broken: int, num_items: int) -> str:
    """Return the verdict on models that differ in so many of these items."""
    num_same = num_items - num_fixed - num_broken
    base = columns([0.0] * num_fixed + [1.0] * (num_broken + num_same))
    tuned = columns([1.0] * num_fixed + [0.0] * num_broken + [1.0] * num_same)
    interval = stats.paired_bootstrap_interval(base, tuned, ratio, 0)
    return stats.verdict(stats.mcnemar_p_value(num_fixed, num_broken), interval)


def simulated_verdicts(num_items: int, fixed: float, broken: float, num_comparisons: int, seed: int) -> list[str]:
    """Return the verdicts on two models of which the second fixes and breaks items with these probabilities."""
    drawn = np.random.default_rng(seed).multinomial(num_items, [fixed, broken, 1 - fixed - broken], num_comparisons)
    return [of_counts(int(f), int(b), num_items) for f, b, _ in drawn]


@pytest.mark.parametrize("num_items", [20, 100, 200, 1000])
@pytest.mark.parametrize("discordant", [0.04, 0.2, 0.5])
def test_equal_models_are_told_apart_in_fewer_than_one_of_twenty(num_items: int, discordant: float) -> None:
    verdicts = simulated_verdicts(num_items, discordant / 2, discordant / 2, 4000, seed=num_items)
    assert verdicts.count("cannot tell") >= 0.95 * len(verdicts)


def test_ten_points_are_found_at_two_hundred_items_in_most() -> None:
    """Where tuning fixes 15 % and breaks 5 %; two models that err independently need more items."""
    verdicts = simulated_verdicts(200, 0.15, 0.05, 4000, seed=1)
    assert verdicts.count("improved") > 0.8 * len(verdicts) and verdicts.count("regressed") == 0
    assert simulated_verdicts(200, 0.05, 0.15, 4000, seed=2).count("regressed") > 0.8 * 4000


@pytest.mark.parametrize(("difference", "discordant"), [(0.1, 0.2), (0.05, 0.1), (-0.1, 0.5), (0.02, 0.06), (0.3, 0.3)])
def test_the_items_needed_give_the_power_they_promise(difference: float, discordant: float) -> None:
    """The formula rests on the normal approximation; the exact test is a little stricter."""
    needed = stats.items_needed(difference, discordant)
    assert needed is not None
    fixed, broken = (discordant + difference) / 2, (discordant - difference) / 2
    verdicts = simulated_verdicts(needed, fixed, broken, 4000, seed=needed)
    told = verdicts.count("improved" if difference > 0 else "regressed") / len(verdicts)
    assert 0.70 <= told <= 0.86


def test_the_items_needed_by_hand() -> None:
    assert stats.items_needed(0.0, 0.3) is None and stats.items_needed_by_spread(0.0, 0.1, 50) is None
    assert stats.items_needed(0.1, 0.2) == stats.items_needed(-0.1, 0.2) == 155
    assert stats.items_needed(0.2, 0.1) == stats.items_needed(0.2, 0.2)  # fewer cannot be discordant
    assert stats.mcnemar_p_value(6, 0) < stats.SIGNIFICANCE <= stats.mcnemar_p_value(5, 0)
    assert stats.items_needed(1.0, 1.0) == 6 and stats.items_needed(0.9, 0.9) == 7
    assert stats.items_needed_by_spread(0.1, 0.1, 100) == math.ceil(100 * (1.959964 + 0.841621) ** 2)
    spread = stats.items_needed_by_spread(0.1, (0.2 - 0.01) ** 0.5 / 10, 100)  # of a difference of right and wrong
    assert spread == pytest.approx(155, rel=0.05)


@pytest.mark.parametrize(
    ("verdict", "needed", "words"),
    [
        ("improved", 10, "improved"),
        ("regressed", None, "regressed"),
        ("cannot tell", None, "cannot tell with 1,200 items: no difference was seen"),
        ("cannot tell", 1100, "cannot tell with 1,200 items: a few more may tell"),
        ("cannot tell", 34_512, "cannot tell with 1,200 items; about 35,000 would tell a difference of this size"),
    ],
)
def test_verdicts_in_words(verdict: stats.Verdict, needed: int | None, words: str) -> None:
    assert stats.in_words(verdict, 1200, needed) == words


def test_one_item_is_no_items() -> None:
    words = "cannot tell with 1 item; about 6 would tell a difference of this size"
    assert stats.in_words("cannot tell", 1, stats.items_needed(1.0, 1.0)) == words


def test_few_kinds_of_items_are_resampled_as_single_ones_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = columns([1.0] * 40 + [0.0] * 60), columns([1.0] * 30 + [0.0] * 30 + [1.0] * 40)
    by_kind = stats.paired_bootstrap_interval(base, tuned, ratio, 3)
    error = stats.paired_standard_error(base, tuned, ratio, 3)
    assert error == pytest.approx(np.std(tuned[:, 0] - base[:, 0]) / 10, rel=0.05)
    monkeypatch.setattr(stats, "_FEW_KINDS", 0)
    assert stats.paired_bootstrap_interval(base, tuned, ratio, 3) == pytest.approx(by_kind, abs=0.4 * error)
