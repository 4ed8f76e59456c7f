"""Conversations as chat completions want them."""

from __future__ import annotations

import copy

from tunesmith.evaluate.wire import chat_messages


def call(name: str, **arguments: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_calls_get_ids_and_results_name_them() -> None:
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [call("f", city="Zürich"), call("g")]},
        {"role": "tool", "content": "1", "name": "f"},
        {"role": "tool", "content": "2", "name": "g"},
        {"role": "assistant", "content": "", "tool_calls": [call("f", city="Rome")]},
        {"role": "tool", "content": "3"},
    ]
    before = copy.deepcopy(messages)
    sent = chat_messages(messages)
    assert messages == before
    assert sent[1]["tool_calls"][0] == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"city": "Zürich"}'},
    }
    assert [m.get("tool_call_id") for m in sent] == [None, None, "call_1", "call_2", None, "call_3"]


def test_given_ids_stay() -> None:
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "mine"} | call("f")]},
        {"role": "tool", "content": "1", "tool_call_id": "mine"},
    ]
    sent = chat_messages(messages)
    assert sent[0]["tool_calls"][0]["id"] == "mine" and sent[1]["tool_call_id"] == "mine"


def test_a_result_without_a_call_has_an_id_of_its_own() -> None:
    ids = [
        m["tool_call_id"] for m in chat_messages([{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}])
    ]
    assert len(set(ids)) == 2
