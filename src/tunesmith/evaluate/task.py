"""What an evaluation task is: items to ask, and a judgement of each answer. One task is one module beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.client import Answer
from tunesmith.rows.conversation import Message

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """One question with its reference."""

    id: str  # file:line#turn
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    max_tokens: int
    reference: Any  # what the task compares with; only the task reads it
    reference_text: str  # the same, for people


@dataclass(frozen=True)
class Judgement:
    """What a task says about one answer.

    `statistics` holds, per metric, numbers that are summed over items before `Metric.combine` turns the sums into the
    metric. A metric that says nothing about an item is left out of it.
    """

    correct: bool
    statistics: dict[str, tuple[float, ...]]
    scores: dict[str, float] = field(default_factory=dict)  # per item, for people
    answer_text: str = ""
    error: str = ""  # kind of mistake; empty when there is none to name


def ratio(sums: Array) -> Array:
    """Return first column / second column: the mean of items whose statistics are (value, 1)."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)


@dataclass(frozen=True)
class Metric:
    """One number of a task."""

    name: str
    is_binary: bool = False  # every item is right or wrong: exact tests and Wilson intervals apply
    higher_is_better: bool = True
    maximum: float = 1.0  # of the scale; BLEU is told in 0 … 100
    combine: Callable[[Array], Array] = ratio  # sums (R, K) -> values (R,)


class Task(Protocol):
    """A set of items, and how their answers are judged."""

    name: str
    metrics: tuple[Metric, ...]

    def items(self) -> list[Item]:
        """Return the items in a fixed order.

        Raises:
            DataError: a file is missing or a row cannot be read, or there is nothing to ask.
        """
        ...

    def judge(self, item: Item, answer: Answer) -> Judgement:
        """Compare an answer with its item's reference. An answer with `error` is wrong, whatever it holds."""
        ...


def mean_statistics(values: dict[str, float]) -> dict[str, tuple[float, ...]]:
    """Return the statistics of metrics that are plain means over items."""
    return {name: (value, 1.0) for name, value in values.items()}
