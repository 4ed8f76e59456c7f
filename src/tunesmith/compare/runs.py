"""Runs side by side: what was set differently, every number, what it cost, and the items that one broke or fixed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.artifacts import Scores, Verdict
from tunesmith.compare.items import ItemDifferences, item_differences
from tunesmith.gate.numbers import is_number, numbers
from tunesmith.store.run_dir import RunDir

Cell = float | int | str | None

_HEADS = {
    "recipe": "settings that differ",
    "data": "data",
    "train": "training",
    "merge": "merged model",
    "evaluate": "evaluation",
    "bench": "speed",
    "cost": "cost",
    "gate": "gate",
}
_MAX_CELL_CHARACTERS = 40


@dataclass(frozen=True)
class Line:
    """One number, setting or verdict, of every run in turn; None where a run has none."""

    path: str
    values: tuple[Cell, ...]

    @property
    def section(self) -> str:
        return self.path.split(".")[0]

    @property
    def is_a_result(self) -> bool:
        """Whether it is what runs are judged by: a metric of the tuned model, or the gate."""
        explains = self.path.endswith((".base", ".num_items", ".verdict", ".seconds"))
        return self.section == "gate" or (self.section == "evaluate" and not explains)

    @property
    def differs(self) -> bool:
        """Whether the runs do not all have the same."""
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    runs: tuple[str, ...]
    lines: tuple[Line, ...]
    items: tuple[ItemDifferences, ...]  # every later run against the first

    def to_json(self) -> dict[str, Any]:
        """Return plain data for machines."""
        return dataclasses.asdict(self)

    def sections(self, *, everything: bool = True) -> list[tuple[str, list[Line]]]:
        """Return (head, lines) of each group. Equal numbers, but those of evaluations, are `everything`'s only."""
        found = []
        for section, head in _HEADS.items():
            of_section = [line for line in self.lines if line.section == section]
            shown = [line for line in of_section if everything or line.differs or line.is_a_result]
            if shown:
                found.append((head, shown))
        return found

    def rows(self, *, everything: bool = True) -> list[list[str]]:
        """Return a table as text cells, the head first; two runs get a column for their difference."""
        two = len(self.runs) == 2
        table = [["", *self.runs, *(["difference"] if two else [])]]
        for head, lines in self.sections(everything=everything):
            table.append([head, *[""] * (len(table[0]) - 1)])
            for line in lines:
                cells = [f"  {line.path}", *map(shown, line.values)]
                table.append(cells + ([difference(*line.values)] if two else []))
        return table

    def item_sentences(self) -> list[str]:
        """Return what happened to the items of each task and pair of runs."""
        return [sentence for found in self.items for sentence in found.sentences()]


def compare(runs: list[RunDir]) -> Comparison:
    """Put runs side by side, in the order given. Numbers that a run does not have are None."""
    assert runs, "nothing to compare"
    lines = [*_settings_that_differ(runs), *_numbers(runs), *_verdicts(runs), *_costs(runs)]
    names = _names(runs)
    items = [
        dataclasses.replace(found, before=names[0], after=name)
        for after, name in zip(runs[1:], names[1:], strict=True)
        for found in item_differences(runs[0], after)
    ]
    return Comparison(names, tuple(lines), tuple(items))


def _names(runs: list[RunDir]) -> tuple[str, ...]:
    """Return what each run is called: its directory's name, or the whole path where names are the same."""
    names = tuple(run.path.name for run in runs)
    return names if len(set(names)) == len(names) else tuple(str(run.path) for run in runs)


def shown(value: Cell) -> str:
    """Return a cell as people read it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(value.split())
    return text if len(text) <= _MAX_CELL_CHARACTERS else f"{text[: _MAX_CELL_CHARACTERS - 1]}…"


def difference(before: Cell, after: Cell) -> str:
    """Return the second number minus the first, and the change in per cent where the first is not zero."""
    if not is_number(before) or not is_number(after) or before == after:
        return ""
    assert isinstance(before, int | float) and isinstance(after, int | float)
    share = f" ({100 * (after - before) / abs(before):+.1f} %)" if before else ""
    return f"{after - before:+,.4g}{share}"


def _settings_that_differ(runs: list[RunDir]) -> Iterator[Line]:
    settings = [_settings(run) for run in runs]
    for path in dict.fromkeys(path for of_run in settings for path in of_run):
        line = Line(f"recipe.{path}", tuple(of_run.get(path) for of_run in settings))
        if line.differs:
            yield line


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
    aside = path.startswith("data.length_histogram") or ".failures." in path
    return (in_a_record and name not in ("base", "num_items")) or aside


def _verdicts(runs: list[RunDir]) -> Iterator[Line]:
    scores = [run.find(Scores) for run in runs]
    metrics = [(task, name) for of_run in scores if of_run for task, found in of_run.tasks.items() for name in found]
    for task, name in dict.fromkeys(metrics):
        records = [of_run.tasks.get(task, {}).get(name, {}) if of_run else {} for of_run in scores]
        yield Line(f"evaluate.{task}.{name}.verdict", tuple(record.get("verdict") for record in records))
    gates = [run.find(Verdict) for run in runs]
    if any(gates):
        yield Line("gate", tuple(None if v is None else "passed" if v.passed else "failed" for v in gates))


def _costs(runs: list[RunDir]) -> Iterator[Line]:
    """Yield how long each stage of each run took, and all together."""
    seconds = [_stage_seconds(run) for run in runs]
    for stage in dict.fromkeys(stage for of_run in seconds for stage in of_run):
        yield Line(f"cost.{stage}_seconds", tuple(of_run.get(stage) for of_run in seconds))
    if any(seconds):
        totals = [round(sum(s for name, s in of_run.items() if name != "serve"), 3) for of_run in seconds]
        yield Line("cost.total_seconds", tuple(total or None for total in totals))


def _stage_seconds(run: RunDir) -> dict[str, float]:
    stages = run.read_run().get("stages")
    found = stages.items() if isinstance(stages, dict) else ()
    return {
        str(name): float(facts["seconds"])
        for name, facts in found
        if isinstance(facts, dict) and is_number(facts.get("seconds"))
    }
