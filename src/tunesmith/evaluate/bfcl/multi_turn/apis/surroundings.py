"""What the simulated programs of one item find around them: how much work is left, and what they share.

In the official checker some objects belong to the process and not to a simulation: the lists that a tweet without tags
or mentions holds, and the credit cards that long context adds. The model's simulation and the ground truth's see each
other's changes through them, which decides verdicts. Here they belong to one item, as in a fresh official process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.budget import Budget


@dataclass(frozen=True)
class LongContext:
    """What the category `long_context` adds to the programs' answers, so that the model has more to read."""

    file_tail: str
    files_as_they_are: tuple[str, ...]  # names of files that get no tail
    file_names: tuple[str, ...]  # empty files of every innermost directory
    watch_list: tuple[str, ...]
    transactions: tuple[dict[str, Any], ...]
    ma_5: tuple[float, ...]
    ma_20: tuple[float, ...]
    technology: tuple[str, ...]
    automobile: tuple[str, ...]
    order_details: dict[str, str]  # `{symbol}` stands for the order's stock
    car: str
    weather: dict[str, Any]
    parking_brake: str
    cities: tuple[str, ...]
    credit_cards: dict[str, dict[str, Any]]
    bookings: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Surroundings:
    """One simulation's share of an item; `default_tags` and `default_mentions` are those of all its simulations."""

    budget: Budget = field(default_factory=Budget)
    long_context: LongContext | None = None
    default_tags: list[Any] = field(default_factory=list)
    default_mentions: list[Any] = field(default_factory=list)
