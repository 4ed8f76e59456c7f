"""What one run's tuned model got right and another's got wrong, item by item, and what the difference is worth.

Compared are items with the same prompt and reference that both models answered: a server that fails tells nothing about
a model. Ids tell apart items that are equal in both, and no more: a row that others were put before is the same row.
The statistics are those of an evaluation (`evaluate/stats.py`), with another run in the base's place.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.artifacts import Scores
from tunesmith.errors import StageError
from tunesmith.store.run_dir import RunDir

Item = dict[str, Any]
CORRECT = "correct"  # the share of items that are right, beside the metrics that score single items
_SEED = 0


@dataclass(frozen=True)
class Change:
    """A metric over the common items of two runs. `metric` is `correct` or one of the items' scores."""

    metric: str
    before: float
    after: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    verdict: str
    in_words: str


@dataclass(frozen=True)
class Common:
    """The items that two runs share.

    Attributes:
        answered: those both models answered: id in the second run -> (item of the first run, of the second).
        num_unanswered: shared, but one of the models did not answer.
        num_alone: without a counterpart: in one of the runs only, or with another prompt or reference.
    """

    answered: dict[str, tuple[Item, Item]]
    num_unanswered: int
    num_alone: int


@dataclass(frozen=True)
class ItemDifferences:
    """Items of one task that the tuned models of two runs answered differently, and the metrics over all of them.

    Ids are those of the run `after`.
    """

    task: str
    before: str
    after: str
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    num_right_in_both: int
    num_wrong_in_both: int
    num_unanswered: int
    num_alone: int
    changes: tuple[Change, ...] = ()

    @property
    def num_items(self) -> int:
        return len(self.fixed) + len(self.broken) + self.num_right_in_both + self.num_wrong_in_both

    def sentences(self) -> list[str]:
        """Return what happened, and the first ids behind it."""
        left_out = [f"{self.num_unanswered} not answered"] if self.num_unanswered else []
        left_out += [f"{self.num_alone} in one run only or with another prompt or reference"] if self.num_alone else []
        told = [
            f"{self.task}: {self.after} fixed {len(self.fixed)} and broke {len(self.broken)} of "
            f"{self.num_items} items against {self.before} "
            f"({self.num_right_in_both} right and {self.num_wrong_in_both} wrong in both)"
        ]
        told += [f"  left out: {', '.join(left_out)}"] if left_out else []
        for change in self.changes:
            interval = f"{change.difference_low:+.3g} … {change.difference_high:+.3g}"
            told.append(
                f"  {change.metric}: {change.before:.4g} → {change.after:.4g} "
                f"({change.difference:+.3g}, 95 % {interval}, p = {change.p_value:.2g}): {change.in_words}"
            )
        for word, ids in (("fixed", self.fixed), ("broken", self.broken)):
            if ids:
                told.append(f"  {word}: {', '.join(ids[:10])}{' …' if len(ids) > 10 else ''}")
        return told


def item_differences(before: RunDir, after: RunDir) -> list[ItemDifferences]:
    """Return, for every task that both runs evaluated, what the second run's tuned model fixed and broke.

    Raises:
        StageError: the items of a task cannot be read.
    """
    tasks = [run.find(Scores) for run in (before, after)]
    shared = [task for task in (tasks[0].items if tasks[0] else {}) if tasks[1] and task in tasks[1].items]
    return [_differences(task, before, after) for task in shared]


def common_items(task: str, before: RunDir, after: RunDir) -> Common:
    """Find each item's counterpart in another run, by content.

    Raises:
        StageError: the items cannot be read.
    """
    old, new = _items(before, task), _items(after, task)
    waiting: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in old:
        waiting[_content(item)].append(item)
    shared = []
    for item in new:
        alike = waiting[_content(item)]
        if alike:
            place = next((i for i, other in enumerate(alike) if other["id"] == item["id"]), 0)
            shared.append((alike.pop(place), item))
    answered = {pair[1]["id"]: pair for pair in shared if all(map(_is_answered, pair))}
    matched = [{pair[side]["id"] for pair in shared} for side in (0, 1)]
    alone = {item["id"] for item in old} - matched[0] | {item["id"] for item in new} - matched[1]
    return Common(answered, len(shared) - len(answered), len(alone))


def _differences(task: str, before: RunDir, after: RunDir) -> ItemDifferences:
    common = common_items(task, before, after)
    sorted_ids: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for name, (old, new) in common.answered.items():
        sorted_ids[bool(old["tuned"]["correct"]), bool(new["tuned"]["correct"])].append(name)
    return ItemDifferences(
        task=task,
        before=before.path.name,
        after=after.path.name,
        fixed=tuple(sorted_ids[False, True]),
        broken=tuple(sorted_ids[True, False]),
        num_right_in_both=len(sorted_ids[True, True]),
        num_wrong_in_both=len(sorted_ids[False, False]),
        num_unanswered=common.num_unanswered,
        num_alone=common.num_alone,
        changes=tuple(_changes(task, common.answered, after)),
    )


def _changes(task: str, both: Mapping[str, tuple[Item, Item]], after: RunDir) -> Iterator[Change]:
    if not both:
        return
    records = after.load(Scores).tasks.get(task, {})
    right = _pairs(CORRECT, both)
    scored = {name: _pairs(name, both) for pair in both.values() for name in _scores(pair[1])}
    if right not in scored.values():  # as accuracy, it would be told twice
        yield _change(CORRECT, right, higher_is_better=True)
    for name, pairs in scored.items():
        if pairs:
            yield _change(name, pairs, higher_is_better=records.get(name, {}).get("better") != "lower")


def _pairs(metric: str, both: Mapping[str, tuple[Item, Item]]) -> list[tuple[float, float]]:
    """Return (before, after) of every item that has the metric in both runs."""
    pairs = [(_value(old, metric), _value(new, metric)) for old, new in both.values()]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _change(metric: str, pairs: list[tuple[float, float]], *, higher_is_better: bool) -> Change:
    import numpy as np

    from tunesmith.evaluate import stats
    from tunesmith.evaluate.task import ratio

    old, new = (np.array([[pair[side], 1.0] for pair in pairs]) for side in (0, 1))
    before, after = float(old[:, 0].mean()), float(new[:, 0].mean())
    low, high = stats.paired_bootstrap_interval(old, new, ratio, _SEED)
    if np.isin(old[:, 0], (0, 1)).all() and np.isin(new[:, 0], (0, 1)).all():
        num_better, num_worse = int((new > old)[:, 0].sum()), int((new < old)[:, 0].sum())
        p_value = stats.mcnemar_p_value(num_better, num_worse)
        needed = stats.items_needed(after - before, (num_better + num_worse) / len(pairs))
    else:
        p_value = stats.randomisation_p_value(old, new, ratio, _SEED)
        error = stats.paired_standard_error(old, new, ratio, _SEED)
        needed = stats.items_needed_by_spread(after - before, error, len(pairs))
    verdict = stats.verdict(p_value, (low, high), higher_is_better=higher_is_better)
    words = stats.in_words(verdict, len(pairs), needed)
    return Change(metric, before, after, after - before, low, high, p_value, verdict, words)


def _scores(item: Item) -> dict[str, Any]:
    scores = item["tuned"].get("scores")
    return scores if isinstance(scores, dict) else {}


def _value(item: Item, metric: str) -> float | None:
    value = bool(item["tuned"]["correct"]) if metric == CORRECT else _scores(item).get(metric)
    return float(value) if isinstance(value, int | float) else None


def _items(run: RunDir, task: str) -> list[Item]:
    path = run.absolute(run.load(Scores).items[task])
    try:
        with path.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return [line | {"id": str(line["id"])} for line in lines if "correct" in line["tuned"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        do = "run the recipe again to evaluate once more"
        raise StageError(f"the items of task {task} cannot be read: {error}", where=str(path), do=do) from None


def _content(item: Item) -> tuple[str, ...]:
    """Return what makes an item the same in two runs. The hash covers all that was shown, the tail just its end."""
    return tuple(json.dumps(item.get(key)) for key in ("prompt_hash", "prompt_tail", "reference"))


def _is_answered(item: Item) -> bool:
    answer = item["tuned"]
    return answer.get("answered") is not False and not str(answer.get("error", "")).startswith("request_failed")
