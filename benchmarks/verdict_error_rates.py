"""How often "improved / regressed / cannot tell" is right: simulated comparisons of two models on the same items.

    python benchmarks/verdict_error_rates.py [--comparisons 20000] [--seed 0]

First table: two equal models. `discordant` is the share of items that one of them gets right and the other wrong, half
each way; shown is how often the verdict is "cannot tell", as it should be (at least 95 %). Second table: the tuned
model is right on ten points more; shown is how often the verdict says so. Third: what `items_needed` promises (80 %)
and what so many items give. Fourth: a metric between 0 and 1 (ROUGE, say), equal and better by 0.05. Exits 1 when
equal models are told apart in more than 5 % of the comparisons.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter

import numpy as np

from tunesmith.evaluate import stats
from tunesmith.evaluate.task import ratio

SIZES = (50, 100, 200, 400, 1000, 2500)
DISCORDANT = (0.12, 0.2, 0.3, 0.5)


def verdicts(
    num_items: int, fixed: float, broken: float, num_comparisons: int, rng: np.random.Generator
) -> Counter[str]:
    """Return the verdicts on models of which the second fixes and breaks items with these probabilities."""
    drawn = rng.multinomial(num_items, [fixed, broken, 1 - fixed - broken], num_comparisons)
    return Counter(of_counts(int(f), int(b), num_items) for f, b, _ in drawn)


@functools.cache
def of_counts(num_fixed: int, num_broken: int, num_items: int) -> str:
    """Return the verdict on models that differ in so many of these items."""
    scores = np.ones((2, num_items, 2))
    scores[0, :num_fixed, 0] = scores[1, num_fixed : num_fixed + num_broken, 0] = 0.0
    interval = stats.paired_bootstrap_interval(scores[0], scores[1], ratio, 0)
    return stats.verdict(stats.mcnemar_p_value(num_fixed, num_broken), interval)


def graded_verdicts(num_items: int, shift: float, num_comparisons: int, rng: np.random.Generator) -> Counter[str]:
    """Return the verdicts on scores between 0 and 1, the second model's higher by `shift` on average."""
    found: Counter[str] = Counter()
    for trial in range(num_comparisons):
        before = rng.beta(2.0, 2.0, num_items)
        after = np.clip(before + rng.normal(shift, 0.25, num_items), 0.0, 1.0)
        if shift == 0.0:  # clipping moves the mean: which of the two is which is left to a coin, item by item
            before, after = rng.permuted(np.stack([before, after]), axis=0)
        columns = [np.stack([values, np.ones(num_items)], axis=1) for values in (before, after)]
        p_value = stats.randomisation_p_value(columns[0], columns[1], ratio, trial)
        interval = stats.paired_bootstrap_interval(columns[0], columns[1], ratio, trial)
        found[stats.verdict(p_value, interval)] += 1
    return found


def table(title: str, rows: list[list[str]]) -> None:
    print(f"\n{title}\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["--:"] * len(rows[0]), *rows[1:]]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, num = np.random.default_rng(arguments.seed), arguments.comparisons
    head = ["items", *(f"{share:.0%} discordant" for share in DISCORDANT)]
    worst, equal, better = 1.0, [head], [head]
    for size in SIZES:
        rates = [verdicts(size, share / 2, share / 2, num, rng)["cannot tell"] / num for share in DISCORDANT]
        worst = min(worst, *rates)
        equal.append([str(size), *(f"{rate:.1%}" for rate in rates)])
        found = [verdicts(size, (s + 0.1) / 2, (s - 0.1) / 2, num, rng)["improved"] / num for s in DISCORDANT]
        better.append([str(size), *(f"{rate:.1%}" for rate in found)])
    table("Two equal models: how often the verdict is “cannot tell”", equal)
    table("Ten points better: how often the verdict is “improved”", better)
    rows = [["difference", "discordant", "items needed", "told with so many"]]
    for difference, share in ((0.02, 0.06), (0.05, 0.1), (0.05, 0.3), (0.1, 0.2), (0.1, 0.5), (0.2, 0.4)):
        needed = stats.items_needed(difference, share)
        assert needed is not None
        told = verdicts(needed, (share + difference) / 2, (share - difference) / 2, num, rng)["improved"] / num
        rows.append([f"{difference:.0%}", f"{share:.0%}", f"{needed:,}", f"{told:.1%}"])
    table("What `items_needed` promises is 80 %", rows)
    few = max(1, num // 10)
    rows = [["items", "equal: “cannot tell”", "of", "better by 0.05: “improved”", "of"]]
    for size, many in ((50, num // 4), (200, num)):
        same, up = graded_verdicts(size, 0.0, many, rng), graded_verdicts(size, 0.05, few, rng)
        chance = (0.05 * 0.95 / many) ** 0.5  # one standard error of the share, where the test stands at exactly 5 %
        worst = min(worst, same["cannot tell"] / many + 2 * chance)
        told = f"{same['cannot tell'] / many:.2%} ± {chance:.2%}"
        rows.append([str(size), told, f"{many:,}", f"{up['improved'] / few:.1%}", f"{few:,}"])
    table("A metric between 0 and 1", rows)
    return 0 if worst >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
