"""Whatever an endpoint does, every question gets an outcome, and nothing else suffers."""

from __future__ import annotations

import threading
import time

import pytest

from tests.fakes.scripted_chat_server import Reply, Request, ScriptedChatServer, completion
from tunesmith.evaluate.client import Answer, Patience, Question, ToolCall, ask_all

QUICK = Patience(timeout_seconds=0.6, connect_timeout_seconds=0.6, num_tries=3, first_pause_seconds=0.01)


def questions(number: int) -> list[Question]:
    return [Question(str(i), ({"role": "user", "content": f"question {i}"},), (), 8) for i in range(number)]


def asked(server: ScriptedChatServer, number: int, *, concurrency: int = 4) -> dict[str, Answer]:
    found: dict[str, Answer] = {}

    def keep(question: Question, answer: Answer) -> None:
        assert question.key not in found, "a question was answered twice"
        found[question.key] = answer

    ask_all(server.endpoint(), questions(number), keep, concurrency=concurrency, seed=7, patience=QUICK)
    assert set(found) == {str(i) for i in range(number)}
    return found


def test_request_is_greedy_and_seeded() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with ScriptedChatServer(lambda request, number: completion("hi")) as server:
        found: list[Answer] = []
        question = Question("k", ({"role": "user", "content": "é"},), (tool,), 33)
        ask_all(server.endpoint(), [question], lambda q, a: found.append(a), concurrency=1, seed=5, patience=QUICK)
    assert found == [Answer("hi", finish_reason="stop")]
    assert server.requests == [
        {
            "model": "tuned",
            "messages": [{"role": "user", "content": "é"}],
            "max_tokens": 33,
            "temperature": 0,
            "seed": 5,
            "tools": [tool],
        }
    ]


def test_no_question_asks_nothing() -> None:
    with ScriptedChatServer(lambda request, number: completion("hi")) as server:
        assert asked(server, 0) == {}
    assert server.requests == []


def test_concurrency_is_reached_and_never_exceeded() -> None:
    together, lock = threading.Barrier(6), threading.Lock()
    in_flight, most = 0, 0

    def script(request: object, number: int) -> Reply:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        together.wait(timeout=60)  # broken, and the request with it, unless six are here at once
        with lock:
            in_flight -= 1
        return Reply(completion("hi"))

    with ScriptedChatServer(script) as server:
        answers = asked(server, 12, concurrency=6)
    assert most == 6 and not together.broken
    assert len(answers) == 12


@pytest.mark.parametrize(
    ("reply", "error", "num_requests"),
    [
        (Reply(b'{"error": {"message": "out of memory"}}', 500), "http_500", 3),
        (Reply(b"busy", 429), "http_429", 3),
        (Reply(b'{"error": {"message": "prompt too long"}}', 400), "http_400", 1),
        (Reply(b"<html>hello</html>"), "malformed", 3),
        (Reply(b""), "malformed", 3),
        (Reply(b"[" * 60_000), "malformed", 3),
        (Reply(b"\xff\xfe\x00"), "malformed", 3),
        (Reply({"choices": []}), "malformed", 3),
        (Reply({"choices": [{"message": "text"}]}), "malformed", 3),
        (Reply({"choices": [{"message": {"content": 7}}]}), "malformed", 3),
        (Reply({"choices": [{"message": {"content": "", "tool_calls": [{"function": {}}]}}]}), "malformed", 3),
        (Reply(completion("a long answer"), cut_after_bytes=40), "connection", 3),
        (Reply(b"", hang_up=True), "connection", 3),
        (Reply(completion("late"), wait_seconds=1.2), "timeout", 1),
        (Reply(completion("slow"), drip_seconds=0.05), "timeout", 1),
        (Reply(b" " * (70 << 10)), "too_large", 3),
    ],
)
def test_each_failure_costs_its_item_only(reply: Reply, error: str, num_requests: int) -> None:
    def script(request: Request, number: int) -> Reply:
        is_bad = request["messages"][0]["content"] == "question 2"
        return reply if is_bad else Reply(completion("fine"))

    with ScriptedChatServer(script) as server:
        found = asked(server, 6)
    assert found.pop("2").error == error
    assert all(answer.text == "fine" and not answer.error for answer in found.values())
    assert len(server.requests) == 5 + num_requests


def test_the_servers_own_words_are_kept() -> None:
    script_body = b'{"error": {"message": "prompt has 5000 tokens, the model takes 2048"}}'
    with ScriptedChatServer(lambda request, number: Reply(script_body, 400)) as server:
        answer = asked(server, 1)["0"]
    assert "5000 tokens" in answer.detail
    assert not answer.may_succeed_later


def test_a_passing_error_is_tried_again() -> None:
    with ScriptedChatServer(lambda r, number: Reply(b"no", 503) if number < 2 else Reply(completion("yes"))) as server:
        assert asked(server, 1)["0"].text == "yes"
    assert len(server.requests) == 3


def test_a_silent_endpoint_is_given_up() -> None:
    with ScriptedChatServer(lambda request, number: Reply(completion("late"), wait_seconds=2)) as server:
        begun = time.monotonic()
        found = asked(server, 200, concurrency=4)
        assert time.monotonic() - begun < 6  # one after the other: 200 / 4 x 0.6 s = 30 s
    kinds = {answer.error for answer in found.values()}
    assert kinds == {"timeout", "not_asked"}
    assert all(answer.may_succeed_later for answer in found.values())


def test_a_refused_connection_is_an_outcome() -> None:
    server = ScriptedChatServer(lambda request, number: completion("never"))
    with server:
        pass
    found = asked(server, 30)
    assert {answer.error for answer in found.values()} == {"connection", "not_asked"}


def test_calls_are_read_in_every_shape_servers_use() -> None:
    body = completion(None, [("f", '{"a": 1}'), ("g", "")])
    body["choices"][0]["message"]["tool_calls"].append({"function": {"name": "h", "arguments": {"b": 2}}})
    with ScriptedChatServer(lambda request, number: body) as server:
        answer = asked(server, 1)["0"]
    assert answer.tool_calls == (ToolCall("f", '{"a": 1}'), ToolCall("g", ""), ToolCall("h", '{"b": 2}'))


def test_half_a_surrogate_pair_does_no_harm() -> None:
    body = rb'{"choices": [{"message": {"content": "a\ud83db"}}]}'
    with ScriptedChatServer(lambda request, number: Reply(body)) as server:
        asked(server, 1)["0"].text.encode()
