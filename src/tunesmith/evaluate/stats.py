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
POWER = 0.8  # what `items_needed` plans for: a real difference is told in four of five comparisons
Z_95, _Z_POWER = 1.959963984540054, 0.8416212335729143  # normal quantiles: two-sided 95 %, one-sided POWER
_FEWEST_DISCORDANT = 6
NUM_RESAMPLES = 4000
NUM_SHUFFLES = 9999
_FEW_KINDS = 16
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
    """Return the 95 % interval of a metric when items are drawn again with replacement: expanded percentiles."""
    return _percentiles(np.concatenate([combine(sums) for sums in _resampled_sums(statistics, seed)]), len(statistics))


def paired_bootstrap_interval(base: Array, tuned: Array, combine: Combine, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of tuned minus base, both read on the same drawn items: expanded percentiles."""
    return _percentiles(_paired_differences(base, tuned, combine, seed), len(base))


def paired_standard_error(base: Array, tuned: Array, combine: Combine, seed: int) -> float:
    """Return the bootstrap's standard error of tuned minus base."""
    return float(np.std(_paired_differences(base, tuned, combine, seed), ddof=1))


def _paired_differences(base: Array, tuned: Array, combine: Combine, seed: int) -> Array:
    width = base.shape[1]
    drawn = _resampled_sums(np.hstack([base, tuned]), seed)
    return np.concatenate([combine(sums[:, width:]) - combine(sums[:, :width]) for sums in drawn])


def randomisation_p_value(base: Array, tuned: Array, combine: Combine, seed: int) -> float:
    """Return the two-sided p-value that it does not matter which model gave which answer.

    For each shuffle every item's two answers are swapped or not by a coin; the p-value is the share of shuffles that
    differ at least as much as what was seen, which is counted as one of them (approximate randomisation: Noreen 1989).
    """
    observed = abs(_value(tuned, combine) - _value(base, combine))
    rng = np.random.default_rng(seed)
    both, swapped_by = base.sum(axis=0) + tuned.sum(axis=0), base - tuned
    tolerance = 1e-9 * max(1.0, observed)  # sums in another order may differ in the last digits
    num_as_large, row_bytes = 0, -(-len(base) // 8)
    for rows in _chunks(NUM_SHUFFLES, len(base)):
        bits = np.frombuffer(rng.bytes(rows * row_bytes), dtype=np.uint8).reshape(rows, row_bytes)
        swaps = np.unpackbits(bits, axis=1, count=len(base)).astype(np.float64)
        shuffled = tuned.sum(axis=0) + swaps @ swapped_by
        differences = np.abs(combine(shuffled) - combine(both - shuffled))
        num_as_large += int((differences >= observed - tolerance).sum())
    return (num_as_large + 1) / (NUM_SHUFFLES + 1)


def verdict(p_value: float, interval: tuple[float, float], *, higher_is_better: bool = True) -> Verdict:
    """Say in words what a difference is worth: p < 0.05 by the test, and zero outside of the interval shown beside it.

    Args:
        interval: of tuned minus base.
    """
    low, high = interval
    if p_value >= SIGNIFICANCE or not (low > 0 or high < 0):
        return "cannot tell"
    return "improved" if (low > 0) == higher_is_better else "regressed"


def in_words(verdict: Verdict, num_items: int, num_needed: int | None) -> str:
    """Return a verdict as a sentence tells it, with what it would take where it cannot be told."""
    if verdict != "cannot tell":
        return verdict
    words = f"cannot tell with {num_items:,} item{'s' if num_items != 1 else ''}"
    if num_needed is None:
        return f"{words}: no difference was seen"
    if num_needed <= num_items:  # exact tests ask for a little more than the normal approximation
        return f"{words}: a few more may tell"
    return f"{words}; about {_two_digits(num_needed):,} would tell a difference of this size"


def _two_digits(number: int) -> int:
    """Return a number rounded up to two significant digits."""
    step = int(10 ** max(0, len(str(number)) - 2))
    return math.ceil(number / step) * step


def items_needed(difference: float, discordant_fraction: float) -> int | None:
    """Return how many paired items tell a difference of two shares with 80 % power at the 5 % level.

    Source: Connor 1987, Sample size for testing differences in proportions for the paired-sample design. That is an
    approximation for many items; with few, six that one model alone gets right are needed, for the exact test says
    p = 2/2⁵ = 0.06 of five.

    Args:
        difference: of the shares, either sign; None is returned for 0, which no number of items tells.
        discordant_fraction: share of items that one model gets right and the other wrong; at least |difference|.
    """
    size = abs(difference)
    if size == 0:
        return None
    discordant = max(discordant_fraction, size)
    root = Z_95 * math.sqrt(discordant) + _Z_POWER * math.sqrt(discordant - size * size)
    return max(math.ceil((root / size) ** 2), math.ceil(_FEWEST_DISCORDANT / discordant))


def items_needed_by_spread(difference: float, standard_error: float, num_items: int) -> int | None:
    """Like `items_needed` for any metric: `standard_error` of the difference on `num_items` shrinks with their root."""
    if difference == 0:
        return None
    return max(2, math.ceil(num_items * ((Z_95 + _Z_POWER) * standard_error / difference) ** 2))


def _value(statistics: Array, combine: Combine) -> float:
    return float(combine(statistics.sum(axis=0, keepdims=True))[0])


def _resampled_sums(statistics: Array, seed: int) -> Iterator[Array]:
    """Yield the sums over items drawn with replacement, as (rows, K) pieces that make up NUM_RESAMPLES rows.

    Items with equal statistics are drawn together, by how often: right-or-wrong items come in few kinds, and so cost
    next to nothing.
    """
    rng = np.random.default_rng(seed)
    kinds, counts = np.unique(statistics, axis=0, return_counts=True)
    num_items = len(statistics)
    if len(kinds) <= _FEW_KINDS:
        yield rng.multinomial(num_items, counts / num_items, size=NUM_RESAMPLES).astype(np.float64) @ kinds
        return
    for rows in _chunks(NUM_RESAMPLES, num_items):
        drawn = rng.integers(0, num_items, size=(rows, num_items))
        drawn += np.arange(rows)[:, None] * num_items
        times = np.bincount(drawn.ravel(), minlength=rows * num_items).reshape(rows, num_items)
        yield times.astype(np.float64) @ statistics


def _chunks(total: int, num_items: int) -> Iterator[int]:
    size = max(1, _CELLS_AT_ONCE // max(1, num_items))
    while total > 0:
        yield min(size, total)
        total -= size


def _percentiles(values: Array, num_items: int) -> tuple[float, float]:
    tail = 100 * expanded_tail(num_items)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def expanded_tail(num_items: int) -> float:
    """Return the share of resamples to leave out on each side for a 95 % interval.

    The bootstrap's spread is too small by √((n-1)/n), and a normal's tails are too short where the spread is estimated,
    too: with 2.5 % intervals hold the truth in 90 % of samples of ten. Source: Hesterberg 2015, "What teachers should
    know about the bootstrap", expanded percentiles. Student's quantile comes from its expansion in 1/(n-1).
    """
    if num_items < 2:
        return 0.0
    z, freedom = Z_95, num_items - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    student += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return 0.5 * math.erfc(math.sqrt(num_items / freedom) * student / math.sqrt(2))
