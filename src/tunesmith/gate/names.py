"""Which numbers a recipe's run will have, so that a misspelt rule is found before anything runs.

Worked out from the recipe and from the fields of the records. Where only the run itself can tell (the metrics of a
harness, the numbers of a proof), every name below a known group is let through; the gate then decides by what is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tunesmith.artifacts import Artifact, RowCounts
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.frozen import frozen
from tunesmith.gate.numbers import SECTIONS
from tunesmith.gate.stage import nearest_paths
from tunesmith.recipe.gate_rules import RuleError, parse_rule
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Bench, Evaluate, Recipe
from tunesmith.recipe.typed import Misfit

# What these tasks and the load test count, repeated here so that checking a recipe imports neither numpy nor an
# HTTP client; a test holds them against the tasks themselves.
TEXT_METRICS = {"rouge": ("rouge1", "rouge2", "rougeL")}
FUNCTION_CALL_METRICS = (
    "accuracy",
    "bfcl_accuracy",
    "call_accuracy",
    "name_accuracy",
    "argument_accuracy",
    "made_a_call",
    "abstention_accuracy",
)
JUDGE_METRICS = ("win_rate",)
LEVEL_NUMBERS = (
    "concurrency",
    "rate",
    "num_requests",
    "num_failed",
    "failed_fraction",
    "num_good",
    "good_fraction",
    "good_requests_per_second",
    "num_unfinished",
    "num_unsent",
    "wall_seconds",
    "requests_per_second",
    "output_tokens_per_second",
    "mean_output_tokens",
    "mean_prompt_tokens",
    "tokens_per_event",
    "num_without_usage",
    "client_cpu_fraction",
    "sent_late_p99_ms",
    "tokenizer_count_ratio",
    *(f"{t}_{s}_ms" for t in ("ttft", "e2e", "tpot", "itl") for s in ("mean", "median", "p90", "p95", "p99")),
)


@frozen
class Foreseen:
    """Paths that a run will have (`exact`), and groups below which any name may turn up (`groups`, ending in a dot)."""

    exact: tuple[str, ...]
    groups: tuple[str, ...]

    def has(self, path: str) -> bool:
        """Whether a rule may read this path."""
        return path in self.exact or any(path.startswith(group) and path != group for group in self.groups)

    def suggestions(self, path: str) -> list[str]:
        """Return what may have been meant."""
        return nearest_paths(path, [*self.exact, *(f"{group}…" for group in self.groups)])


def refuse_unknown(loaded: Loaded) -> None:
    """Refuse a recipe whose gate reads a number that its run will not have.

    Raises:
        RecipeError: with every such rule, at its line.
    """
    misfits = list(unknown_numbers(loaded.recipe))
    if misfits:
        raise RecipeError([TunesmithError(m.what, where=loaded.where(m.path), do=m.do) for m in misfits])


def unknown_numbers(recipe: Recipe) -> Iterator[Misfit]:
    """Yield every rule that reads a number which this recipe's run will not have."""
    known = foreseen(recipe)
    for index, text in enumerate(recipe.gate):
        try:
            paths = parse_rule(text).paths
        except RuleError:
            continue  # `check` has told it
        for path in paths:
            if not known.has(path):
                what = f"gate rule {text!r} reads `{path}`, which this run will not have"
                yield Misfit(("gate", index), what, f"nearest: {', '.join(known.suggestions(path))}")


def foreseen(recipe: Recipe) -> Foreseen:
    """Return which numbers a run of the recipe will have."""
    exact: list[str] = []
    groups: list[str] = []
    for section in ("data", "train", "merge"):
        names, open_names = _fields(SECTIONS[section])
        exact += [f"{section}.{name}" for name in names]
        groups += [f"{section}.{name}." for name in open_names if name != "counts"]
    exact += [f"data.counts.{field.name}" for field in dataclasses.fields(RowCounts)]
    if recipe.evaluate:
        _evaluate(recipe.evaluate, exact, groups)
    if recipe.bench:
        _bench(recipe.bench, exact, groups)
    return Foreseen(tuple(exact), tuple(groups))


def _fields(kind: type[Artifact]) -> tuple[list[str], list[str]]:
    """Return a record's fields that are numbers, and those that are mappings with numbers."""
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    exact = [name for name, written in types.items() if {*written.split(" | ")} <= {"int", "float", "None"}]
    return exact, [name for name, written in types.items() if written.startswith("dict") and "str, str]" not in written]


def _evaluate(evaluate: Evaluate, exact: list[str], groups: list[str]) -> None:
    exact += ["evaluate.num_unanswered", "evaluate.seconds"]
    known = _metrics(evaluate)
    for task, names in known.items():
        metrics = [f"evaluate.{task}.{metric}" for metric in names]
        exact += metrics
        groups += [f"{metric}." for metric in metrics] + [f"evaluate.{task}.failures."]
    counted = {task.split(".")[0] for task in known}
    for field in dataclasses.fields(evaluate):
        if dataclasses.is_dataclass(getattr(evaluate, field.name)) and field.name not in counted:
            groups.append(f"evaluate.{field.name}.")


def _metrics(evaluate: Evaluate) -> dict[str, tuple[str, ...]]:
    """Return the metrics of every task of our own that a recipe asks for."""
    found: dict[str, tuple[str, ...]] = {}
    if evaluate.text:
        metrics = tuple(name for metric in evaluate.text.metrics for name in TEXT_METRICS.get(metric, (metric,)))
        found |= {"text": metrics} if evaluate.text.files else {}
        found |= {f"text.{name}": metrics for name in evaluate.text.sets}
    if evaluate.function_calls:
        found["function_calls"] = FUNCTION_CALL_METRICS
    if evaluate.judge:
        found["judge"] = JUDGE_METRICS
    return found


def _bench(bench: Bench, exact: list[str], groups: list[str]) -> None:
    exact.append("bench.seconds")
    levels = [f"c{concurrency}" for concurrency in bench.concurrency] + [f"r{rate:g}" for rate in bench.rates]
    levels += ["trace"] if bench.trace else []
    for level in levels:
        exact += [f"bench.{level}.{name}" for name in LEVEL_NUMBERS]
        groups.append(f"bench.{level}.failed_")
