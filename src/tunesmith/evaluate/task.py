"""What an evaluation task is: items to ask, and a judgement of what was said. One task is one module beside this one.

Most items are one request. An item that takes several (a conversation in which the next message depends on the answer
before) has a dialogue: a generator that yields requests, is sent their answers, and returns whatever its task judges::

    def dialogue() -> Dialogue:
        first = yield Request((question,), tools)
        second = yield Request((question, reply_to(first)), tools)
        return decoded(first), decoded(second)

A dialogue is deterministic and touches nothing outside itself: given the same answers it asks the same requests. That
is what lets a killed evaluation go on: it is held again from the start, with the answers that are known already.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.client import Answer, Request
from tunesmith.rows.conversation import Message

Array = NDArray[np.float64]


# Yields requests, is sent the answer to each, returns what the task judges. Never sent an answer with an error: a
# request that fails ends the dialogue.
Dialogue = Generator[Request, Answer, Any]


@dataclass(frozen=True)
class Item:
    """One question with its reference."""

    id: str  # file:line#turn, or the data set's own id
    messages: tuple[Message, ...]  # what is asked; of a dialogue what it begins with, for people
    tools: tuple[dict[str, Any], ...]
    max_tokens: int
    reference: Any  # what the task compares with; only the task reads it
    reference_text: str  # the same, for people
    request: Request | None = None  # where messages, tools and length alone do not say it (raw prompt, stop words)
    dialogue: Callable[[], Dialogue] | None = None  # makes a new one each time; None: a single request

    def begin(self) -> Dialogue:
        """Return what is to be asked, from the start."""
        return self.dialogue() if self.dialogue else self._ask_once()

    def _ask_once(self) -> Dialogue:
        yield self.request or Request(self.messages, self.tools, self.max_tokens)


@dataclass(frozen=True)
class Transcript:
    """Everything one model said to one item, in order.

    A request that failed is the last, and its answer holds the error; `result` is None then.
    """

    answers: tuple[Answer, ...]
    result: Any = None  # what the dialogue returned
    prompt_hash: str = field(default="", compare=False)  # of the first request, as it was sent; "" when there is none

    @property
    def answer(self) -> Answer:
        """The last answer, of most items the only one."""
        return self.answers[-1] if self.answers else Answer()

    @property
    def error(self) -> str:
        """The kind of error that ended it; empty when every request was answered."""
        return self.answer.error


@dataclass(frozen=True)
class Judgement:
    """What a task says about one item's transcript.

    `statistics` holds, per metric, numbers that are summed over items before `Metric.combine` turns the sums into the
    metric. A metric that says nothing about an item is left out of it.
    """

    correct: bool
    statistics: dict[str, tuple[float, ...]]
    scores: dict[str, float] = field(default_factory=dict)  # per item, for people
    answer_text: str = ""
    error: str = ""  # kind of mistake; empty when there is none to name
    note: str = ""  # why, in words, for people


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
    is_preference: bool = False  # every item is won, lost or tied against the other model: the sign test applies


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

    def judge(self, item: Item, said: Transcript) -> Judgement:
        """Compare what was said with the item's reference. With an error it is not right, whatever it holds."""
        ...


def method_of(task: Task) -> dict[str, str]:
    """Return what a task says of its own settings: versions, signatures, protocols. Most say nothing."""
    method: dict[str, str] = task.method() if hasattr(task, "method") else {}
    return method


def mean_statistics(values: dict[str, float]) -> dict[str, tuple[float, ...]]:
    """Return the statistics of metrics that are plain means over items."""
    return {name: (value, 1.0) for name, value in values.items()}
