"""Categories of the leaderboard: names, groups, item counts, and how their accuracies become one number.

Source: `bfcl_eval/constants/category_mapping.py` and `eval_checker/eval_runner_helper.py`, gorilla at 6ea5797.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import UsageError, nearest

Group = Literal["non_live", "live", "multi_turn", "agentic", "format_sensitivity"]
Scorer = Literal["calls", "irrelevance", "relevance", "multi_turn", "agentic", "format_sensitivity"]
Language = Literal["python", "java", "javascript"]


@dataclass(frozen=True)
class Category:
    """One file of items.

    Attributes:
        num_items: in version 4 of the data.
        scorer: what decides whether an answer is right.
        language: of the functions, and so of the calls that are expected.
        old_name: what the category was called before version 4; empty when it has always been called so.
    """

    name: str
    group: Group
    num_items: int
    scorer: Scorer = "calls"
    language: Language = "python"
    old_name: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name this category goes by, the present one first."""
        return (self.name, self.old_name) if self.old_name else (self.name,)


CATEGORIES: dict[str, Category] = {
    category.name: category
    for category in (
        Category("simple_python", "non_live", 400, old_name="simple"),
        Category("simple_java", "non_live", 100, language="java", old_name="java"),
        Category("simple_javascript", "non_live", 50, language="javascript", old_name="javascript"),
        Category("multiple", "non_live", 200),
        Category("parallel", "non_live", 200),
        Category("parallel_multiple", "non_live", 200),
        Category("irrelevance", "non_live", 240, "irrelevance"),
        Category("live_simple", "live", 258),
        Category("live_multiple", "live", 1053),
        Category("live_parallel", "live", 16),
        Category("live_parallel_multiple", "live", 24),
        Category("live_irrelevance", "live", 884, "irrelevance"),
        Category("live_relevance", "live", 16, "relevance"),
        Category("multi_turn_base", "multi_turn", 200, "multi_turn"),
        Category("multi_turn_miss_func", "multi_turn", 200, "multi_turn"),
        Category("multi_turn_miss_param", "multi_turn", 200, "multi_turn"),
        Category("multi_turn_long_context", "multi_turn", 200, "multi_turn"),
        Category("memory_kv", "agentic", 155, "agentic"),
        Category("memory_vector", "agentic", 155, "agentic"),
        Category("memory_rec_sum", "agentic", 155, "agentic"),
        Category("web_search_base", "agentic", 100, "agentic"),
        Category("web_search_no_snippet", "agentic", 100, "agentic"),
        Category("format_sensitivity", "format_sensitivity", 5200, "format_sensitivity"),
    )
}
_OLD_NAMES = {category.old_name: category.name for category in CATEGORIES.values() if category.old_name}
_SCORED = tuple(name for name, category in CATEGORIES.items() if category.group != "format_sensitivity")


def _of_groups(*groups: Group) -> tuple[str, ...]:
    return tuple(name for name, category in CATEGORIES.items() if category.group in groups)


COLLECTIONS: dict[str, tuple[str, ...]] = {
    "all": tuple(CATEGORIES),
    "all_scoring": _SCORED,
    "single_turn": _of_groups("non_live", "live"),
    "non_live": _of_groups("non_live"),
    "live": _of_groups("live"),
    "multi_turn": _of_groups("multi_turn"),
    "agentic": _of_groups("agentic"),
    "memory": ("memory_kv", "memory_vector", "memory_rec_sum"),
    "web_search": ("web_search_base", "web_search_no_snippet"),
    "non_python": ("simple_java", "simple_javascript"),
    "python": tuple(
        name
        for name, category in CATEGORIES.items()
        if category.group in ("non_live", "live") and category.language == "python"
    ),
}


def category(name: str) -> Category:
    """Return the category of a name, present or former.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    known = CATEGORIES.get(_OLD_NAMES.get(name, name))
    if known is None:
        raise _unknown(name, [*CATEGORIES, *_OLD_NAMES], "category")
    return known


def expand(names: Iterable[str]) -> tuple[Category, ...]:
    """Return the categories that names of categories and collections stand for, each once, in the official order.

    Raises:
        UsageError: a name is neither.
    """
    wanted: set[str] = set()
    for name in names:
        if name in COLLECTIONS:
            wanted.update(COLLECTIONS[name])
        elif _OLD_NAMES.get(name, name) in CATEGORIES:
            wanted.add(_OLD_NAMES.get(name, name))
        else:
            raise _unknown(name, [*CATEGORIES, *_OLD_NAMES, *COLLECTIONS], "category or collection")
    return tuple(known for known in CATEGORIES.values() if known.name in wanted)


def _unknown(name: str, choices: Sequence[str], kind: str) -> UsageError:
    guess = nearest(name, list(choices))
    do = f"did you mean {guess!r}?" if guess else f"choose from: {', '.join(CATEGORIES)}"
    return UsageError(f"BFCL has no {kind} {name!r}", do=do)


@dataclass(frozen=True)
class Accuracy:
    """A category's result, or a number made of several; `is_complete` when no part of it is missing."""

    value: float
    num_items: int
    is_complete: bool = True


_SIMPLE = ("simple_python", "simple_java", "simple_javascript")
_NON_LIVE = ("multiple", "parallel", "parallel_multiple")
_LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")


def aggregate(of_categories: Mapping[str, Accuracy]) -> dict[str, Accuracy]:
    """Return the leaderboard's summary numbers by name; one of which no category was evaluated is left out.

    What is missing counts as 0, as on the leaderboard, and makes the number incomplete.

    * `non_live_simple`: mean of the three languages. `non_live`: mean of that and the three other categories.
    * `live`: over all items. `multi_turn`, `irrelevance_overall`, `memory`, `web_search`: means of their categories.
    * `agentic`: mean of `memory` and `web_search`.
    * `overall`: 10 % non-live, 10 % live, 10 % irrelevance, 30 % multi-turn, 40 % agentic.
    """
    parts = {name: of_categories.get(name) or Accuracy(0.0, 0, is_complete=False) for name in _SCORED}
    made = {"non_live_simple": _mean([parts[name] for name in _SIMPLE])}
    made["non_live"] = _mean([made["non_live_simple"], *(parts[name] for name in _NON_LIVE)])
    made["live"] = _over_items([parts[name] for name in _LIVE])
    made["irrelevance_overall"] = _mean([parts["irrelevance"], parts["live_irrelevance"]])
    made["multi_turn"] = _mean([parts[name] for name in COLLECTIONS["multi_turn"]])
    made["memory"] = _mean([parts[name] for name in COLLECTIONS["memory"]])
    made["web_search"] = _mean([parts[name] for name in COLLECTIONS["web_search"]])
    made["agentic"] = _mean([made["web_search"], made["memory"]])
    weighted = {"non_live": 10, "live": 10, "irrelevance_overall": 10, "multi_turn": 30, "agentic": 40}
    made["overall"] = Accuracy(
        sum(weight * made[name].value for name, weight in weighted.items()) / sum(weighted.values()),
        sum(made[name].num_items for name in weighted),
        all(made[name].is_complete for name in weighted),
    )
    return {name: accuracy for name, accuracy in made.items() if accuracy.num_items}


def _mean(parts: Sequence[Accuracy]) -> Accuracy:
    return Accuracy(
        sum(part.value for part in parts) / len(parts),
        sum(part.num_items for part in parts),
        all(part.is_complete for part in parts),
    )


def _over_items(parts: Sequence[Accuracy]) -> Accuracy:
    num_items = sum(part.num_items for part in parts)
    value = sum(part.value * part.num_items for part in parts) / num_items if num_items else 0.0
    return Accuracy(value, num_items, all(part.is_complete for part in parts))
