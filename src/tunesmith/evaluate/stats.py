"""How sure a number is, and whether two models differ. Everything is paired: both models answered the same items.

Statistics of items come as arrays (N items, K numbers) that are summed over items; `combine` turns sums (R, K) into R
values of the metric. A mean has the statistics (value, 1), corpus BLEU its n-gram counts: both are resampled alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Combine = Callable[[Array], Array]
Verdict = Literal["improved", "regressed", "cannot tell"]

SIGNIFICANCE = 0.05
Z_95 = 1.959963984540054  # of the normal distribution, two-sided
NUM_RESAMPLES = 4000
NUM_SHUFFLES = 9999
_CELLS_AT_ONCE = 4_000_000  # resamples x items held in memory


def wilson_interval(num_correct: int, num_items: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share.

    Source: Wilson 1927; Brown, Cai, DasGupta 2001 recommend it over the normal interval for small samples.
    """
    if num_items == 0:
        return 0.0, 1.0
    z = Z_95
    share, scale = num_correct / num_items, z * z / num_items
    centre = (share + scale / 2) / (1 + scale)
    half = z / (1 + scale) * math.sqrt(share * (1 - share) / num_items + scale / (4 * num_items))
    low = 0.0 if num_correct == 0 else centre - half
    high = 1.0 if num_correct == num_items else centre + half
    return low, high


def mcnemar_p_value(num_fixed: int, num_broken: int) -> float:
    """Return the exact two-sided p-value that two models are equally often right.

    Only items that one model got right and the other wrong count: under no difference each falls on either side like a
    fair coin (McNemar 1947, exact form).

    Args:
        num_fixed: items only the second model got right.
        num_broken: items only the first model got right.
    """
    total, smaller = num_fixed + num_broken, min(num_fixed, num_broken)
    if num_fixed == num_broken:
        return 1.0
    logs = [_log_choose(total, k) - total * math.log(2) for k in range(smaller + 1)]
    top = max(logs)
    return min(1.0, 2 * math.exp(top) * math.fsum(math.exp(value - top) for value in logs))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def bootstrap_interval(statistics: Array, combine: Combine, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric when items are drawn again with replacement."""
    return _percentiles(np.concatenate([combine(counts @ statistics) for counts in _resamples(len(statistics), seed)]))


def paired_bootstrap_interval(base: Array, tuned: Array, combine: Combine, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of tuned minus base, both read on the same drawn items (Efron 1979)."""
    differences = [combine(counts @ tuned) - combine(counts @ base) for counts in _resamples(len(base), seed)]
    return _percentiles(np.concatenate(differences))


def randomisation_p_value(base: Array, tuned: Array, combine: Combine, seed: int) -> float:
    """Return the two-sided p-value that it does not matter which model gave which answer.

    For each shuffle every item's two answers are swapped or not by a coin; the p-value is the share of shuffles that
    differ at least as much as what was seen, which is counted as one of them (approximate randomisation: Noreen 1989).
    """
    observed = abs(_value(tuned, combine) - _value(base, combine))
    rng = np.random.default_rng(seed)
    both, swapped_by = base.sum(axis=0) + tuned.sum(axis=0), base - tuned
    tolerance = 1e-9 * max(1.0, observed)  # sums in another order may differ in the last digits
    num_as_large = 0
    for rows in _chunks(NUM_SHUFFLES, len(base)):
        swaps = rng.integers(0, 2, size=(rows, len(base))).astype(np.float64)
        shuffled = tuned.sum(axis=0) + swaps @ swapped_by
        differences = np.abs(combine(shuffled) - combine(both - shuffled))
        num_as_large += int((differences >= observed - tolerance).sum())
    return (num_as_large + 1) / (NUM_SHUFFLES + 1)


def verdict(difference: float, p_value: float, *, higher_is_better: bool = True) -> Verdict:
    """Say in words what a difference (tuned minus base) is worth: it has to be better or worse with p < 0.05."""
    if p_value >= SIGNIFICANCE or difference == 0:
        return "cannot tell"
    return "improved" if (difference > 0) == higher_is_better else "regressed"


def _value(statistics: Array, combine: Combine) -> float:
    return float(combine(statistics.sum(axis=0, keepdims=True))[0])


def _resamples(num_items: int, seed: int) -> Iterator[Array]:
    """Yield how often each item is drawn, as (rows, items) pieces that make up NUM_RESAMPLES rows."""
    rng = np.random.default_rng(seed)
    for rows in _chunks(NUM_RESAMPLES, num_items):
        drawn = rng.integers(0, num_items, size=(rows, num_items))
        drawn += np.arange(rows)[:, None] * num_items
        yield np.bincount(drawn.ravel(), minlength=rows * num_items).reshape(rows, num_items).astype(np.float64)


def _chunks(total: int, num_items: int) -> Iterator[int]:
    size = max(1, _CELLS_AT_ONCE // max(1, num_items))
    while total > 0:
        yield min(size, total)
        total -= size


def _percentiles(values: Array) -> tuple[float, float]:
    tail = 100 * SIGNIFICANCE / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
