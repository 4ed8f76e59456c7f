"""From judgements to numbers: each metric for base and tuned, with intervals, and what their difference is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.artifacts import Which
from tunesmith.evaluate import stats
from tunesmith.evaluate.task import Array, Judgement, Metric, Transcript

Number = float | int | str | None


@dataclass(frozen=True)
class Outcome:
    """What a model said to one item, and what its task says about it."""

    said: Transcript
    judgement: Judgement


def summarise(
    metrics: Sequence[Metric], outcomes: Mapping[Which, Sequence[Outcome]], seed: int
) -> dict[str, dict[str, Number]]:
    """Return metric -> record for one task; a metric that applies to none of its items is left out.

    In `base` and `tuned`, an item that was not answered is not right; `…_num_failed` counts them. `difference`, its
    interval, `p_value` and `verdict` rest on the `num_pairs` items that both models answered: a server that fails tells
    nothing about a model.
    """
    return {metric.name: record for metric in metrics if (record := _record(metric, outcomes, seed)) is not None}


def failures(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how often each kind of mistake or failed request occurs, the commonest first."""
    kinds = Counter(_kind(outcome) for outcome in outcomes)
    del kinds[""]
    return dict(kinds.most_common())


def _kind(outcome: Outcome) -> str:
    if outcome.judgement.error:
        return outcome.judgement.error
    return f"request_failed:{outcome.said.error}" if outcome.said.error else ""


def _record(metric: Metric, outcomes: Mapping[Which, Sequence[Outcome]], seed: int) -> dict[str, Number] | None:
    concerned = [i for i, o in enumerate(outcomes["tuned"]) if metric.name in o.judgement.statistics]
    if not concerned:
        return None
    record: dict[str, Number] = {
        "base": None,
        "tuned": None,
        "num_items": len(concerned),
        "better": "higher" if metric.higher_is_better else "lower",
        "maximum": metric.maximum,
    }
    for which, of_model in outcomes.items():
        statistics = _statistics(metric, of_model, concerned)
        record[which] = _value(metric, statistics)
        record[f"{which}_low"], record[f"{which}_high"] = _interval(metric, statistics, seed)
        record[f"{which}_num_failed"] = sum(bool(of_model[i].said.error) for i in concerned)
    if "base" in outcomes:
        answered = [i for i in concerned if not any(of_model[i].said.error for of_model in outcomes.values())]
        record |= _comparison(metric, outcomes["base"], outcomes["tuned"], answered, seed)
    return record


def _comparison(
    metric: Metric, base: Sequence[Outcome], tuned: Sequence[Outcome], answered: list[int], seed: int
) -> dict[str, Number]:
    """Return what the difference over the items both answered is worth, and how many items would be needed to tell."""
    if not answered:
        words = "cannot tell: no item was answered by both"
        return {"num_pairs": 0, "verdict": "cannot tell", "verdict_in_words": words}
    before, after = _statistics(metric, base, answered), _statistics(metric, tuned, answered)
    difference = _value(metric, after) - _value(metric, before)
    low, high = stats.paired_bootstrap_interval(before, after, metric.combine, seed)
    found: dict[str, Number] = {"num_pairs": len(answered), "difference": difference}
    found |= {"difference_low": low, "difference_high": high}
    if metric.is_binary or metric.is_preference:
        num_better, num_worse = int((after[:, 0] > before[:, 0]).sum()), int((after[:, 0] < before[:, 0]).sum())
        p_value = stats.mcnemar_p_value(num_better, num_worse)
        needed = stats.items_needed(difference, (num_better + num_worse) / len(answered))
        names = ("num_fixed", "num_broken") if metric.is_binary else ("num_wins", "num_losses")
        found |= dict(zip(names, (num_better, num_worse), strict=True))
        if metric.is_preference:
            found["num_ties"] = len(answered) - num_better - num_worse
    else:
        p_value = stats.randomisation_p_value(before, after, metric.combine, seed)
        error = stats.paired_standard_error(before, after, metric.combine, seed)
        needed = stats.items_needed_by_spread(difference, error, len(answered))
    verdict = stats.verdict(p_value, (low, high), higher_is_better=metric.higher_is_better)
    words = stats.in_words(verdict, len(answered), needed)
    return found | {"p_value": p_value, "verdict": verdict, "verdict_in_words": words, "num_items_needed": needed}


def _statistics(metric: Metric, outcomes: Sequence[Outcome], chosen: list[int]) -> Array:
    return np.array([outcomes[i].judgement.statistics[metric.name] for i in chosen], dtype=np.float64)


def _value(metric: Metric, statistics: Array) -> float:
    return float(metric.combine(statistics.sum(axis=0, keepdims=True))[0])


def _interval(metric: Metric, statistics: Array, seed: int) -> tuple[float, float]:
    if metric.is_binary:
        return stats.wilson_interval(int(statistics[:, 0].sum()), len(statistics))
    return stats.bootstrap_interval(statistics, metric.combine, seed)
