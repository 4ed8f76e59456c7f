"""Whatever an endpoint does, every question gets an outcome, and nothing else suffers."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from typing import Any

import pytest

from tests.fakes.scripted_chat_server import Reply, ScriptedChatServer, completion
from tests.fakes.scripted_chat_server import Request as Received
from tunesmith.evaluate.client import Answer, Client, Patience, Request, ToolCall

QUICK = Patience(
    timeout_seconds=0.6,
    stall_seconds=0.3,
    connect_timeout_seconds=0.6,
    num_tries=3,
    first_pause_seconds=0.01,
    longest_pause_seconds=0.05,
)


def requests(number: int) -> list[Request]:
    return [Request(({"role": "user", "content": f"question {i}"},), (), 8) for i in range(number)]


def ask_all(server: ScriptedChatServer, asked: list[Request], *, concurrency: int = 4, seed: int = 7) -> list[Answer]:
    """Ask with so many workers that each takes the next request, as an interview does."""

    async def ask() -> list[Answer]:
        found: dict[int, Answer] = {}
        waiting = iter(enumerate(asked))

        async def work(client: Client) -> None:
            for index, request in waiting:
                found[index] = await client.ask(request)

        async with Client(server.endpoint(), concurrency=concurrency, seed=seed, patience=QUICK) as client:
            await asyncio.gather(*(work(client) for _ in range(concurrency)))
        return [found[index] for index in range(len(asked))]

    return asyncio.run(ask())


def asked(server: ScriptedChatServer, number: int, *, concurrency: int = 4) -> dict[str, Answer]:
    return {str(i): answer for i, answer in enumerate(ask_all(server, requests(number), concurrency=concurrency))}


def test_request_is_greedy_and_seeded() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with ScriptedChatServer(lambda request, number: completion("hi")) as server:
        found = ask_all(server, [Request(({"role": "user", "content": "é"},), (tool,), 33)], seed=5)
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
        (Reply(b"busy", 429), "http_429", 12),
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
    def script(request: Received, number: int) -> Reply:
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


def test_a_raw_prompt_goes_past_the_chat_template() -> None:
    request = Request((), ({"type": "function"},), 8, prompt="<|im_start|>", stop=("\n",))
    body = {
        "choices": [{"text": "raw", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    with ScriptedChatServer(lambda request, number: body) as server:
        (answer,) = ask_all(server, [request])
        assert server.paths == ["/v1/completions"]
    assert answer == Answer("raw", finish_reason="stop")
    assert (answer.num_prompt_tokens, answer.num_completion_tokens) == (3, 1) and answer.latency_seconds > 0
    assert server.requests == [
        {"model": "tuned", "prompt": "<|im_start|>", "max_tokens": 8, "temperature": 0.0, "seed": 7, "stop": ["\n"]}
    ]


def test_a_body_that_stops_arriving_is_a_stall_long_before_the_time_limit() -> None:
    patience = Patience(timeout_seconds=60.0, stall_seconds=0.1, num_tries=1)

    async def ask(server: ScriptedChatServer) -> Answer:
        async with Client(server.endpoint(), concurrency=1, seed=0, patience=patience) as client:
            return await client.ask(requests(1)[0])

    with ScriptedChatServer(lambda r, n: Reply(completion("half"), stall_after_bytes=20, wait_seconds=0.2)) as server:
        answer = asyncio.run(ask(server))
    assert (answer.error, answer.detail) == ("timeout", "the answer stopped arriving for 0.1 s")


def test_retry_after_is_heeded_up_to_a_limit() -> None:
    patience = Patience(first_pause_seconds=0.5, longest_pause_seconds=30.0)
    client = Client(ScriptedChatServer(lambda r, n: {}).endpoint(), concurrency=1, seed=0, patience=patience)
    assert 0.5 <= client._pause_seconds(1, 0.0) <= 0.75
    assert 2.0 <= client._pause_seconds(3, 0.0) <= 3.0
    assert client._pause_seconds(1, 7.0) == 7.0
    assert client._pause_seconds(1, 3600.0) == client._pause_seconds(9, 0.0) == 30.0


@pytest.mark.parametrize(("status", "most"), [(401, 12), (404, 12), (500, 120)])
def test_an_endpoint_that_refuses_or_fails_everything_is_given_up(status: int, most: int) -> None:
    with ScriptedChatServer(lambda request, number: Reply(b"no", status)) as server:
        found = ask_all(server, requests(300))
        assert len(server.requests) <= most  # 401 is asked once each, 500 three times
    assert {answer.error for answer in found} == {f"http_{status}", "not_asked"}


def test_requests_that_will_not_do_are_no_reason_to_give_up() -> None:
    with ScriptedChatServer(lambda request, number: Reply(b"too long", 400)) as server:
        assert {answer.error for answer in ask_all(server, requests(60))} == {"http_400"}


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key")

    async def ask(server: ScriptedChatServer) -> Answer:
        endpoint = dataclasses.replace(server.endpoint(), api_key="${env:JUDGE_KEY}")
        async with Client(endpoint, concurrency=1, seed=0, patience=QUICK) as client:
            return await client.ask(requests(1)[0])

    with ScriptedChatServer(lambda request, number: completion("ok")) as server:
        assert asyncio.run(ask(server)).text == "ok"
        assert server.headers[0]["Authorization"] == "Bearer s3cret-key"


def test_half_a_surrogate_pair_in_a_row_is_asked_all_the_same() -> None:
    with ScriptedChatServer(lambda request, number: completion("ok")) as server:
        (answer,) = ask_all(server, [Request(({"role": "user", "content": "a\ud83d"},), (), 8)])
    assert answer.text == "ok"


def test_an_endpoint_that_begins_to_hang_is_gone_long_before_the_time_limit() -> None:
    patience = Patience(timeout_seconds=600.0, silence_seconds=0.3, sign_seconds=0.1, num_tries=1)
    hang = threading.Event()

    async def ask(server: ScriptedChatServer) -> tuple[list[Answer], str]:
        async with Client(server.endpoint(), concurrency=4, seed=0, patience=patience) as client:
            first = await client.ask(requests(1)[0])
            return [first, *await asyncio.gather(*(client.ask(request) for request in requests(3)))], client.gone

    def script(request: Received, number: int) -> Reply | dict[str, Any]:
        if number:
            hang.wait(30)
        return completion("ok")

    server = ScriptedChatServer(script, models=("m",), models_wait=hang)
    with server:
        begun = time.monotonic()
        (first, *others), gone = asyncio.run(ask(server))
        assert time.monotonic() - begun < 20
        hang.set()
    assert first.text == "ok" and {(a.error, a.detail) for a in others} == {("timeout", "the endpoint hangs")}
    assert gone.startswith("it hangs")


def test_a_slow_endpoint_that_gives_a_sign_is_waited_for() -> None:
    patience = Patience(timeout_seconds=600.0, silence_seconds=0.1, sign_seconds=0.2, num_tries=1)

    async def ask(server: ScriptedChatServer) -> list[Answer]:
        async with Client(server.endpoint(), concurrency=1, seed=0, patience=patience) as client:
            return [await client.ask(request) for request in requests(2)]

    script = lambda request, number: Reply(completion("ok"), wait_seconds=1.5 * number)  # noqa: E731
    with ScriptedChatServer(script) as server:
        assert [answer.text for answer in asyncio.run(ask(server))] == ["ok", "ok"]


def test_a_key_that_a_server_repeats_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPEATED_KEY", "key-that-is-repeated")

    async def ask(server: ScriptedChatServer) -> Answer:
        endpoint = dataclasses.replace(server.endpoint(), api_key="${env:REPEATED_KEY}")
        async with Client(endpoint, concurrency=1, seed=0, patience=QUICK) as client:
            return await client.ask(requests(1)[0])

    with ScriptedChatServer(lambda r, n: Reply(b"wrong key: key-that-is-repeated", 401)) as server:
        assert asyncio.run(ask(server)).detail == "wrong key: ${env:REPEATED_KEY}"


def test_a_model_that_is_still_being_loaded_is_waited_for() -> None:
    with ScriptedChatServer(
        lambda r, number: Reply(b"loading", 503) if number < 9 else Reply(completion("ok"))
    ) as server:
        assert [answer.text for answer in ask_all(server, requests(2), concurrency=1)] == ["ok", "ok"]
        assert len(server.requests) == 9 + 2


def test_a_busy_server_is_asked_more_slowly_and_answers_all() -> None:
    """Not more than five requests in 0.2 s; every 429 costs everybody a pause."""
    patience = Patience(num_tries=2, first_pause_seconds=0.05, longest_pause_seconds=1.0)
    lock, recent = threading.Lock(), list[float]()

    def script(request: Received, number: int) -> Reply | dict[str, Any]:
        with lock:
            now = time.monotonic()
            recent[:] = [moment for moment in recent if now - moment < 0.2]
            if len(recent) >= 5:
                return Reply(b"slow down", 429)
            recent.append(now)
        return completion("ok")

    async def ask(server: ScriptedChatServer) -> list[Answer]:
        async with Client(server.endpoint(), concurrency=16, seed=0, patience=patience) as client:
            return list(await asyncio.gather(*(client.ask(request) for request in requests(40))))

    with ScriptedChatServer(script) as server:
        answers = asyncio.run(ask(server))
    assert [answer.text for answer in answers] == ["ok"] * 40


@pytest.mark.parametrize(
    ("message", "lacks", "has", "told"),
    [
        ("Unsupported parameter: 'seed'", {"seed"}, {"max_tokens", "temperature"}, "without seed"),
        ("seed: Extra inputs are not permitted", {"seed"}, {"max_tokens", "temperature"}, "without seed"),
        (
            "Unsupported parameter: 'max_tokens' is not supported here. Use 'max_completion_tokens' instead.",
            {"max_tokens"},
            {"max_completion_tokens", "seed", "temperature"},
            "max_completion_tokens for max_tokens",
        ),
        (
            "Unsupported value: 'temperature' does not support 0 with this model.",
            {"temperature"},
            {"max_tokens", "seed"},
            "without temperature",
        ),
    ],
)
def test_parameters_that_an_endpoint_refuses_are_left_out_and_told(
    message: str, lacks: set[str], has: set[str], told: str
) -> None:
    def script(request: Received, number: int) -> Reply | dict[str, Any]:
        refused = lacks & request.keys()
        return Reply({"error": {"message": message}}, 400) if refused else completion("ok")

    async def ask(server: ScriptedChatServer) -> tuple[list[Answer], str]:
        async with Client(server.endpoint(), concurrency=1, seed=7, patience=QUICK) as client:
            return [await client.ask(request) for request in requests(3)], client.dialect.told

    with ScriptedChatServer(script) as server:
        answers, said = asyncio.run(ask(server))
        assert [answer.text for answer in answers] == ["ok"] * 3 and said == told
        assert len(server.requests) == 4 and has <= server.requests[-1].keys()


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum length is 2048 tokens",
        "Unsupported content type",
        "unknown tool `seeds`",
    ],
)
def test_other_refusals_cost_the_request_only(message: str) -> None:
    with ScriptedChatServer(lambda r, n: Reply({"error": {"message": message}}, 400)) as server:
        assert asked(server, 1)["0"].error == "http_400"
        assert len(server.requests) == 1
