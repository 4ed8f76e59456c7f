"""Runs side by side: what was set differently, every number, and the items that one run broke or fixed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.artifacts import Scores, Verdict
from tunesmith.errors import StageError
from tunesmith.gate.numbers import numbers
from tunesmith.store.run_dir import RunDir

Cell = float | int | str | None


@dataclass(frozen=True)
class Line:
    """One number, setting or verdict, of every run in turn; None where a run has none."""

    path: str
    values: tuple[Cell, ...]


@dataclass(frozen=True)
class ItemDifferences:
    """Items of one task that the tuned models of two runs judged differently, by their ids.

    Compared are items with the same id, prompt and reference that both models answered; `num_items` counts them.
    """

    task: str
    before: str
    after: str
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    num_right_in_both: int
    num_wrong_in_both: int
    num_not_comparable: int

    @property
    def num_items(self) -> int:
        return len(self.fixed) + len(self.broken) + self.num_right_in_both + self.num_wrong_in_both


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    runs: tuple[str, ...]
    lines: tuple[Line, ...]
    items: tuple[ItemDifferences, ...]  # every later run against the first

    def to_json(self) -> dict[str, Any]:
        """Return plain data for machines."""
        return dataclasses.asdict(self)

    def rows(self) -> list[list[str]]:
        """Return a table as text cells, the head first."""
        return [["", *self.runs], *([line.path, *map(_show, line.values)] for line in self.lines)]

    def item_sentences(self) -> list[str]:
        """Return one sentence per task and pair of runs, and the first ids behind it."""
        sentences = []
        for found in self.items:
            sentences.append(
                f"{found.task}: {found.after} fixed {len(found.fixed)} and broke {len(found.broken)} of "
                f"{found.num_items} items against {found.before} "
                f"({found.num_right_in_both} right and {found.num_wrong_in_both} wrong in both"
                + (f", {found.num_not_comparable} not comparable)" if found.num_not_comparable else ")")
            )
            for word, ids in (("fixed", found.fixed), ("broken", found.broken)):
                if ids:
                    sentences.append(f"  {word}: {', '.join(ids[:10])}{' …' if len(ids) > 10 else ''}")
        return sentences


def compare(runs: list[RunDir]) -> Comparison:
    """Put runs side by side, in the order given. Numbers that a run does not have are None."""
    assert runs, "nothing to compare"
    lines = [*_settings_that_differ(runs), *_numbers(runs), *_verdicts(runs)]
    items = [found for after in runs[1:] for found in item_differences(runs[0], after)]
    return Comparison(tuple(run.path.name for run in runs), tuple(lines), tuple(items))


def item_differences(before: RunDir, after: RunDir) -> list[ItemDifferences]:
    """Return, for every task that both runs evaluated, what the second run's tuned model fixed and broke."""
    tasks = [run.find(Scores) for run in (before, after)]
    shared = [task for task in (tasks[0].items if tasks[0] else {}) if tasks[1] and task in tasks[1].items]
    return [_differences(task, before, after) for task in shared]


def _differences(task: str, before: RunDir, after: RunDir) -> ItemDifferences:
    old, new = _items(before, task), _items(after, task)
    sorted_ids: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for name, item in old.items():
        if name in new and _comparable(item, new[name]):
            sorted_ids[bool(item["tuned"]["correct"]), bool(new[name]["tuned"]["correct"])].append(name)
    compared = sum(map(len, sorted_ids.values()))
    return ItemDifferences(
        task=task,
        before=before.path.name,
        after=after.path.name,
        fixed=tuple(sorted_ids[False, True]),
        broken=tuple(sorted_ids[True, False]),
        num_right_in_both=len(sorted_ids[True, True]),
        num_wrong_in_both=len(sorted_ids[False, False]),
        num_not_comparable=len(old.keys() | new.keys()) - compared,
    )


def _items(run: RunDir, task: str) -> dict[str, dict[str, Any]]:
    scores = run.load(Scores)
    path = run.absolute(scores.items[task])
    try:
        lines = [json.loads(line) for line in path.open(encoding="utf-8")]
        return {str(line["id"]): line for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        do = "run the recipe again to evaluate once more"
        raise StageError(f"the items of task {task} cannot be read: {error}", where=str(path), do=do) from None


def _comparable(old: dict[str, Any], new: dict[str, Any]) -> bool:
    same = all(old.get(key) == new.get(key) for key in ("prompt_tail", "reference"))
    answered = not any(str(item["tuned"].get("error", "")).startswith("request_failed") for item in (old, new))
    return same and answered


def _settings_that_differ(runs: list[RunDir]) -> Iterator[Line]:
    settings = [_settings(run) for run in runs]
    for path in dict.fromkeys(path for of_run in settings for path in of_run):
        values = tuple(of_run.get(path) for of_run in settings)
        if any(value != values[0] for value in values):
            yield Line(f"recipe.{path}", values)


def _settings(run: RunDir) -> dict[str, Cell]:
    """Return the resolved recipe as flat paths; a run that never got that far has none."""
    import yaml

    try:
        document = yaml.safe_load(run.resolved_recipe.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return dict(_leaves(document, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Cell]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, bool) or not isinstance(value, int | float | str | None):
        yield path, json.dumps(value, ensure_ascii=False)
    else:
        yield path, value


def _numbers(runs: list[RunDir]) -> Iterator[Line]:
    found = [numbers(run) for run in runs]
    for path in dict.fromkeys(path for of_run in found for path in of_run):
        if not _is_detail(path, found):
            yield Line(path, tuple(of_run.get(path) for of_run in found))


def _is_detail(path: str, found: list[dict[str, float]]) -> bool:
    """Whether a number only explains another one: of a metric's record, base and tuned are shown, under short paths."""
    metric, _, name = path.rpartition(".")
    in_a_record = any(f"{metric}.num_items" in of_run for of_run in found) and path.startswith("evaluate.")
    return (in_a_record and name not in ("base", "num_items")) or path.startswith("data.length_histogram")


def _verdicts(runs: list[RunDir]) -> Iterator[Line]:
    scores = [run.find(Scores) for run in runs]
    metrics = [(task, name) for of_run in scores if of_run for task, found in of_run.tasks.items() for name in found]
    for task, name in dict.fromkeys(metrics):
        records = [of_run.tasks.get(task, {}).get(name, {}) if of_run else {} for of_run in scores]
        yield Line(f"evaluate.{task}.{name}.verdict", tuple(record.get("verdict") for record in records))
    gates = [run.find(Verdict) for run in runs]
    if any(gates):
        yield Line("gate", tuple(None if v is None else "passed" if v.passed else "failed" for v in gates))


def _show(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
