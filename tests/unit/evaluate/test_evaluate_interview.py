"""Dialogues of several requests: each next request follows from the answer before, also across a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_chat_server import Reply, ScriptedChatServer, completion
from tests.fakes.scripted_chat_server import Request as Received
from tunesmith.artifacts import Endpoint
from tunesmith.errors import EvaluateError
from tunesmith.evaluate.client import Patience, Request
from tunesmith.evaluate.interview import Interview, Model
from tunesmith.evaluate.task import Dialogue, Item, Transcript

QUICK = Patience(timeout_seconds=60.0, connect_timeout_seconds=60.0, num_tries=2, first_pause_seconds=0.01)


def counting(start: int, num_turns: int) -> Item:
    """Tell a number, and tell back what was answered, `num_turns` times over."""

    def dialogue() -> Dialogue:
        said, number = [], str(start)
        for _ in range(num_turns):
            answer = yield Request(({"role": "user", "content": number},), (), 8)
            number = answer.text
            said.append(number)
        return said

    return Item(f"count-{start}", ({"role": "user", "content": str(start)},), (), 8, None, "", dialogue=dialogue)


def add_one(request: Received, number: int) -> dict[str, Any]:
    return completion(str(int(request["messages"][0]["content"]) + 1))


def interview(server: ScriptedChatServer, path: Path, *, concurrency: int = 4) -> Interview:
    model = Model("model", server.endpoint, "identity", path / "answers.jsonl")
    return Interview(model, concurrency=concurrency, seed=0, patience=QUICK)


def test_every_request_follows_from_the_answer_before(tmp_path: Path) -> None:
    items = [counting(100 * i, num_turns=1 + i % 4) for i in range(9)]
    with ScriptedChatServer(add_one) as server:
        said = interview(server, tmp_path).transcripts(items)
    for i, transcript in enumerate(said):
        assert transcript.result == [str(100 * i + turn) for turn in range(1, 2 + i % 4)]
        assert [answer.text for answer in transcript.answers] == transcript.result
        assert transcript.answer == transcript.answers[-1] and not transcript.error
    assert len(server.requests) == sum(1 + i % 4 for i in range(9))


def test_a_dialogue_goes_on_where_its_answers_end(tmp_path: Path) -> None:
    items = [counting(100 * i, num_turns=5) for i in range(6)]
    with ScriptedChatServer(add_one) as server:
        whole = interview(server, tmp_path / "whole").transcripts(items)
    with ScriptedChatServer(add_one) as server:
        first = interview(server, tmp_path / "cut", concurrency=1).transcripts(items)
    assert first == whole
    kept = tmp_path / "cut" / "answers.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:13]) + lines[13][:9])  # in the middle of the third dialogue
    with ScriptedChatServer(add_one) as server:
        assert interview(server, tmp_path / "cut").transcripts(items) == whole
        assert len(server.requests) == 30 - 13


def test_a_request_that_fails_ends_its_dialogue_only(tmp_path: Path) -> None:
    def script(request: Received, number: int) -> Reply | dict[str, Any]:
        content = request["messages"][0]["content"]
        return Reply(b"broken", 400) if content == "202" else add_one(request, number)

    with ScriptedChatServer(script) as server:
        said = interview(server, tmp_path).transcripts([counting(100 * i, num_turns=4) for i in range(5)])
    failed = said.pop(2)
    assert [answer.text for answer in failed.answers] == ["201", "202", ""]
    assert (failed.error, failed.result) == ("http_400", None)
    assert all(transcript.result and len(transcript.result) == 4 for transcript in said)


def test_items_without_any_request(tmp_path: Path) -> None:
    def endpoint() -> Endpoint:
        raise AssertionError("nobody has to be asked")

    model = Model("model", endpoint, "identity", tmp_path / "answers.jsonl")
    silent = Interview(model, concurrency=2, seed=0, patience=QUICK)
    assert silent.transcripts([counting(1, num_turns=0)]) == [Transcript((), [])]
    assert silent.transcripts([]) == []


def test_all_items_failing_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with ScriptedChatServer(lambda request, number: Reply(b"wrong key", 401)) as server:
        asked = interview(server, tmp_path)
        with pytest.raises(EvaluateError, match=r"none of 90 items was answered by the model: .*http_401: wrong key"):
            asked.transcripts([counting(i, num_turns=2) for i in range(90)])
        assert len(server.requests) <= 2 * (8 + 4)  # not ninety: it refuses everybody
