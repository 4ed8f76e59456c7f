"""The verdict on the raw answer to one item: its replies decoded, then judged turn by turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.categories import Category
from tunesmith.evaluate.bfcl.dataset import Entry
from tunesmith.evaluate.bfcl.decoding import Protocol
from tunesmith.evaluate.bfcl.multi_turn import long_context
from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import LongContext
from tunesmith.evaluate.bfcl.multi_turn.checking import check
from tunesmith.evaluate.bfcl.multi_turn.replies import turns_of
from tunesmith.evaluate.bfcl.verdicts import Verdict


@dataclass(frozen=True)
class Reading:
    """What the items of a category are read with.

    Attributes:
        text: the official long text, where the category adds one and it is at hand.
        facts: what numbers of this category are labelled with.
    """

    text: LongContext | None
    facts: dict[str, str]


def reading_of(category: Category, directory: Path) -> Reading:
    """Look for what belongs to a category beside its items.

    Raises:
        DataError: a file is there and cannot be read.
    """
    if "long_context" not in category.name:
        return Reading(None, {})
    path = long_context.find(directory)
    return Reading(long_context.read(path) if path else None, {"long_context_text": "official" if path else "own"})


def judge(entry: Entry, response: Any, protocol: Protocol, text: LongContext | None) -> Verdict:
    """Return the verdict on an answer, in the official evaluation's words. Never raises for what an answer holds.

    Args:
        entry: the item.
        response: a list of turns, each a list of replies: text, tool calls, or lists of call strings.
        protocol: what replies look like.
        text: the official long text, where it is at hand.

    Raises:
        DataError: the item is not one that can be acted on.
    """
    for turn in entry.ground_truth:
        if not isinstance(turn, list) or not all(isinstance(call, str) for call in turn):
            raise DataError("its ground truth is no list of call strings per turn", where=entry.id)
    return check(entry.raw, entry.ground_truth, turns_of(response, protocol), text)
