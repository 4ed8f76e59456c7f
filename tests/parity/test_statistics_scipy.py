"""Our statistics against scipy's. Exact ones agree to 1e-9; resampled ones within what their randomness allows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tunesmith.evaluate import stats
from tunesmith.evaluate.task import ratio

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")


def columns(values: object) -> stats.Array:
    numbers = np.asarray(values, dtype=np.float64)
    return np.stack([numbers, np.ones_like(numbers)], axis=1)


@pytest.mark.parametrize(("fixed", "broken"), [*itertools.product(range(0, 13, 3), repeat=2), (120, 80), (3000, 3200)])
def test_mcnemar_is_the_exact_binomial_test(fixed: int, broken: int) -> None:
    expected = scipy_stats.binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert stats.mcnemar_p_value(fixed, broken) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("correct", "items"), [(0, 7), (7, 7), (1, 7), (50, 100), (333, 1319), (1, 100_000)])
def test_wilson(correct: int, items: int) -> None:
    expected = scipy_stats.binomtest(correct, items).proportion_ci(0.95, method="wilson")
    assert stats.wilson_interval(correct, items) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    base = rng.beta(2, 3, 150)
    return base, np.clip(base + rng.normal(0.03, 0.2, 150), 0, 1)


@pytest.mark.parametrize("num_items", [8, 10, 30, 200, 5000])
def test_tails_of_expanded_percentiles(num_items: int) -> None:
    wide = scipy_stats.t.ppf(0.975, num_items - 1) * math.sqrt(num_items / (num_items - 1))
    assert stats.expanded_tail(num_items) == pytest.approx(scipy_stats.norm.cdf(-wide), rel=0.01)


def test_paired_bootstrap(pair: tuple[np.ndarray, np.ndarray]) -> None:
    base, tuned = pair
    expected = scipy_stats.bootstrap(
        (base, tuned),
        lambda b, t, axis=-1: t.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * stats.expanded_tail(len(base)),
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = stats.paired_bootstrap_interval(columns(base), columns(tuned), ratio, 1)
    # The standard error of a 2.5 % percentile from 4,000 resamples is about 0.04 standard deviations of the difference.
    assert found == pytest.approx((expected.low, expected.high), abs=0.15 * float(np.std(tuned - base) / np.sqrt(150)))


def test_randomisation(pair: tuple[np.ndarray, np.ndarray]) -> None:
    base, tuned = pair
    expected = scipy_stats.permutation_test(
        (base, tuned),
        lambda b, t, axis=-1: t.mean(axis=axis) - b.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    found = stats.randomisation_p_value(columns(base), columns(tuned), ratio, 1)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 9999))


def test_randomisation_of_right_and_wrong_is_mcnemar() -> None:
    base, tuned = np.array([1.0] * 20 + [0.0] * 20), np.array([1.0] * 17 + [0.0] * 3 + [1.0] * 9 + [0.0] * 11)
    found = stats.randomisation_p_value(columns(base), columns(tuned), ratio, 2)
    assert found == pytest.approx(stats.mcnemar_p_value(9, 3), abs=0.02)


def test_mcnemar_and_wilson_are_statsmodels() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables", reason="a second reference, where it is there")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for fixed, broken in [*itertools.product(range(1, 40, 6), range(0, 40, 6)), (120, 80)]:
        expected = tables.mcnemar([[10, broken], [fixed, 7]], exact=True).pvalue
        assert stats.mcnemar_p_value(fixed, broken) == pytest.approx(expected, rel=1e-9)
    for correct, items in [(0, 7), (7, 7), (50, 100), (333, 1319)]:
        expected = proportion.proportion_confint(correct, items, method="wilson")
        assert stats.wilson_interval(correct, items) == pytest.approx(expected, abs=1e-12)
