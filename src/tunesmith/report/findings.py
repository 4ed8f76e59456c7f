"""What a run directory holds, read once. What is missing or broken is None or empty, and said so."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.artifacts import Artifact, Checkpoint, Dataset, Release, Scores, Speeds, Verdict, Weights
from tunesmith.errors import TunesmithError
from tunesmith.recipe.dump import dump_recipe
from tunesmith.recipe.environment import redact
from tunesmith.recipe.schema import Recipe
from tunesmith.report.curves import Series, collect
from tunesmith.store.run_dir import RunDir
from tunesmith.track.jsonl import read_metrics

Record = TypeVar("Record", bound=Artifact)


@dataclass
class Findings:
    """The records of every stage that left one, and the numbers and texts beside them."""

    recipe: Recipe
    run_dir: RunDir
    run: dict[str, Any]
    recipe_text: str
    series: dict[str, Series]
    dataset: Dataset | None = None
    checkpoint: Checkpoint | None = None
    weights: Weights | None = None
    scores: Scores | None = None
    speeds: Speeds | None = None
    verdict: Verdict | None = None
    release: Release | None = None
    problems: list[str] = field(default_factory=list)

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return the stages' states of run.json."""
        return {name: facts for name, facts in mapping(self.run.get("stages")).items() if isinstance(facts, dict)}

    def evaluated(self) -> dict[str, str]:
        """Return who was asked where nothing was trained (`tunesmith evaluate`), `tuned` and perhaps `base`."""
        asked = mapping(mapping(self.run.get("lineage")).get("evaluated"))
        names = {which: mapping(facts) for which, facts in asked.items()}
        return {
            which: " at ".join(str(facts[key]) for key in ("model", "url") if facts.get(key))
            for which, facts in names.items()
        }


def read(recipe: Recipe, run_dir: RunDir) -> Findings:
    """Read everything but the items of evaluation and the requests of the load test."""
    problems: list[str] = []

    def find(kind: type[Record]) -> Record | None:
        try:
            return run_dir.find(kind)
        except TunesmithError as error:
            problems.append(redact(error.what))
            return None

    return Findings(
        recipe,
        run_dir,
        run_dir.read_run(),
        redact(_recipe_text(recipe, run_dir)),
        collect(read_metrics(run_dir.metrics)),
        find(Dataset),
        find(Checkpoint),
        find(Weights),
        find(Scores),
        find(Speeds),
        find(Verdict),
        find(Release),
        problems,
    )


def request_times(run_dir: RunDir, speeds: Speeds) -> dict[str, dict[str, list[float]]]:
    """Return level → `ttft` and `e2e` → milliseconds of every answered request."""
    times: dict[str, dict[str, list[float]]] = {}
    for request in _lines(run_dir.absolute(speeds.requests)) if speeds.requests else ():
        if request.get("failure"):
            continue
        for name in ("ttft", "e2e"):
            seconds = request.get(name)
            if isinstance(seconds, int | float):
                level = times.setdefault(str(request.get("level")), {})
                level.setdefault(name, []).append(1000.0 * seconds)
    return times


def is_number(value: Any) -> bool:
    """Whether a value is a number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """Return a finite number as it is, and anything else as None."""
    return float(value) if is_number(value) and math.isfinite(value) else None


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping as it is, and anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def _recipe_text(recipe: Recipe, run_dir: RunDir) -> str:
    try:
        return run_dir.resolved_recipe.read_text(encoding="utf-8")
    except OSError:
        return dump_recipe(recipe)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    document = json.loads(line)
                except ValueError:
                    continue
                if isinstance(document, dict):
                    yield document
    except OSError:
        return
