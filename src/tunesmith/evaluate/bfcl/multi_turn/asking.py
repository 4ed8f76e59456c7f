"""The multi-turn items of a category as items of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.evaluate.bfcl.categories import Category
from tunesmith.evaluate.bfcl.dataset import Entry
from tunesmith.evaluate.bfcl.decoding import Protocol
from tunesmith.evaluate.bfcl.multi_turn.dialogue import Manner, converse
from tunesmith.evaluate.bfcl.multi_turn.functions import FOLDER, describe, has_official
from tunesmith.evaluate.bfcl.multi_turn.scoring import Reading, judge, reading_of
from tunesmith.evaluate.bfcl.prompts import native_tools, openai_tools, system_prompt
from tunesmith.evaluate.bfcl.verdicts import Verdict
from tunesmith.evaluate.client import Answer
from tunesmith.evaluate.task import Item, Transcript
from tunesmith.track.console import warn


class Asking:
    """Makes items of a category and judges what was said to them.

    Args:
        category: one of the multi-turn ones.
        directory: the data; descriptions of functions and the long text are taken from there, too, where they are.
        protocol: how it is asked.
        reply: returns what result files hold of an answer under this protocol.
        max_tokens: of one reply.

    Raises:
        DataError: a file of these is there and cannot be read.
    """

    def __init__(
        self,
        category: Category,
        directory: Path,
        protocol: Protocol,
        reply: Callable[[Answer], Any],
        max_tokens: int,
    ) -> None:
        self._protocol = protocol
        self._reading: Reading = reading_of(category, directory)
        self._is_official = has_official(directory)
        tools = openai_tools if protocol == "fc-openai-tools" else native_tools
        text = self._reading.text
        self._manner = Manner(protocol, describe(directory), system_prompt, tools, reply, max_tokens, text)
        if not self._is_official:
            what = f"{directory} has no {FOLDER}/: functions are described in words of ours"
            warn(f"{what}, and the numbers of {category.name} are not comparable with the leaderboard's")

    @property
    def facts(self) -> dict[str, str]:
        """What numbers of this category are labelled with: whose words the model read."""
        return {"function_descriptions": "official" if self._is_official else "own"} | self._reading.facts

    def item(self, entry: Entry) -> Item:
        """Return an entry as something that is asked in a dialogue."""
        turns = [", ".join(calls) or "(no call)" for calls in entry.ground_truth]
        return Item(
            entry.id,
            tuple(entry.turns[0]),
            (),
            self._manner.max_tokens,
            entry,
            "\n".join(f"turn {number}: {calls}" for number, calls in enumerate(turns)),
            dialogue=functools.partial(converse, entry.raw, self._manner),
        )

    def verdict(self, entry: Entry, said: Transcript) -> Verdict:
        """Return the verdict on a dialogue; on one that a failed request has ended, too."""
        return judge(entry, said.result, self._protocol, self._reading.text)
