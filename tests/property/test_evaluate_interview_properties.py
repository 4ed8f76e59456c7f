"""Whatever is asked, wherever it is killed: going on gives what an unbroken evaluation gives, asking only the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.scripted_chat_server import Request as Received
from tests.fakes.scripted_chat_server import ScriptedChatServer, completion
from tunesmith.evaluate import stats
from tunesmith.evaluate.client import Patience, Request
from tunesmith.evaluate.interview import Interview, Model
from tunesmith.evaluate.task import Dialogue, Item, Transcript

PATIENCE = Patience(timeout_seconds=20.0, num_tries=1)
# What an item begins with, and how often it goes on; equal items and overlapping dialogues on purpose.
DIALOGUES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedChatServer]:
    def add_one(request: Received, number: int) -> dict[str, Any]:
        return completion(str(int(request["messages"][0]["content"]) + 1) + " \u2028é\n")

    with ScriptedChatServer(add_one) as running:
        yield running


def item(name: str, start: int, num_turns: int) -> Item:
    def dialogue() -> Dialogue:
        number, said = start, []
        for _ in range(num_turns):
            answer = yield Request(({"role": "user", "content": str(number)},), (), 8)
            said.append(answer.text)
            number = int(answer.text.split()[0]) + 1
        return said

    return Item(name, (), (), 8, None, "", dialogue=dialogue)


def ask(server: ScriptedChatServer, items: list[Item], path: Path) -> tuple[list[Transcript], int]:
    before = len(server.requests)
    model = Model("model", server.endpoint, "identity", path)
    said = Interview(model, concurrency=3, seed=0, patience=PATIENCE).transcripts(items)
    return said, len(server.requests) - before


@given(dialogues=DIALOGUES, cut=st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_a_kill_anywhere_costs_what_was_not_written(
    server: ScriptedChatServer, dialogues: list[tuple[int, int]], cut: float
) -> None:
    items = [item(str(index), *dialogue) for index, dialogue in enumerate(dialogues)]
    with tempfile.TemporaryDirectory() as here:
        path = Path(here) / "answers.jsonl"
        whole, num_asked = ask(server, items, path)
        told = {start + 2 * turn for start, num_turns in dialogues for turn in range(num_turns)}
        assert num_asked == len(told)  # equal requests are asked once
        assert [len(said.result) for said in whole] == [num_turns for _, num_turns in dialogues]
        kept = path.read_bytes()
        path.write_bytes(kept[: int(len(kept) * cut)])
        lines = path.read_bytes().splitlines()
        num_whole = sum(line in kept.splitlines() for line in lines)
        again, num_asked_again = ask(server, items, path)
        assert again == whole and num_asked_again == len(told) - num_whole
        assert ask(server, items, path) == (whole, 0)


@given(fixed=st.integers(0, 300), broken=st.integers(0, 300))
def test_the_exact_test_does_not_care_which_model_is_which(fixed: int, broken: int) -> None:
    p_value = stats.mcnemar_p_value(fixed, broken)
    assert p_value == stats.mcnemar_p_value(broken, fixed) and 0.0 < p_value <= 1.0
    if fixed > broken:
        assert stats.mcnemar_p_value(fixed + 1, broken) < p_value


@given(difference=st.floats(0.001, 0.9), discordant=st.floats(0.0, 1.0))
def test_smaller_differences_take_more_items(difference: float, discordant: float) -> None:
    needed, more = stats.items_needed(difference, discordant), stats.items_needed(difference / 2, discordant)
    assert needed is not None and more is not None and more >= needed >= 2
