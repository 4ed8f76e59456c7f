"""HTTP's framing and the events of a stream, however they are cut into pieces."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tunesmith.bench.framing import Framing, Malformed
from tunesmith.bench.http import RawAnswer
from tunesmith.bench.stream import Output, Timing, read_answer

TEXTS = [" a", "é", 'say "x"', "back\\slash", "line\nbreak", "tab\t", "{}", "😀", "data: x", " b" * 50, "\u2028"]


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more


DOCUMENTS = [
    chunk({"role": "assistant", "content": ""}),
    *(chunk({"content": text}, logprobs=None) for text in TEXTS),
    chunk({"content": " a"}, logprobs=None),
    chunk({"reasoning_content": "hm"}),
    chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}),
    chunk({"content": "last"}, finish="stop"),
    {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 15}},
]


def events(line_end: str, separators: tuple[str, str], *, ascii_only: bool) -> list[bytes]:
    texts = [json.dumps(document, separators=separators, ensure_ascii=ascii_only) for document in DOCUMENTS]
    lines = [f": ping{line_end}{line_end}", *(f"data: {t}{line_end}{line_end}" for t in texts)]
    return [line.encode() for line in [*lines, f"data: [DONE]{line_end}{line_end}"]]


def framed(parts: list[bytes], framing: str) -> bytes:
    body = b"".join(parts)
    if framing == "length":
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    if framing == "close":
        return b"HTTP/1.1 200 OK\r\n\r\n" + body
    chunks = b"".join(b"%X;x=y\r\n%s\r\n" % (len(part), part) for part in parts)
    end = b"0\r\nExpires: never\r\n\r\n" if framing == "trailers" else b"0\r\n\r\n"
    return b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + end


def arrive(data: bytes, cuts: list[int], *, closed: bool = False) -> RawAnswer:
    """Return an answer whose i-th piece came at second i."""
    raw = RawAnswer(started=0.0, sent=0.0)
    for index, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(data)], strict=True)):
        raw.framing.feed(data[begin:end])
        raw.times.append(float(index))
        raw.ends.append(end)
    if closed:
        raw.framing.close()
    raw.ended = raw.times[-1]
    return raw


def expected_times(data: bytes, cuts: list[int], line_end: str) -> list[float]:
    """Return the piece in which each event with output ends, found by searching for the events one after the other."""
    found, at = [], data.index(b": ping")
    for document in DOCUMENTS:
        at = data.index((line_end * 2).encode(), data.index(b"data: {", at)) + 2 * len(line_end) - 1
        delta = document["choices"][0]["delta"] if document["choices"] else {}
        if any(delta.get(key) for key in ("content", "reasoning_content", "tool_calls")):
            found.append(float(sum(cut <= at for cut in cuts)))
    return found


@pytest.mark.parametrize("framing", ["chunked", "trailers", "length", "close"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_events_are_read_however_they_are_cut(framing: str, line_end: str, separators: tuple[str, str]) -> None:
    generator = random.Random(0)
    data = framed(events(line_end, separators, ascii_only=framing == "length"), framing)
    ways: list[list[int]] = [[], list(range(1, len(data)))]
    ways += [sorted(generator.sample(range(1, len(data)), generator.randrange(1, 80))) for _ in range(12)]
    for cuts in ways:
        raw = arrive(data, cuts, closed=framing == "close")
        assert raw.framing.is_complete and raw.framing.closes == (framing == "close")
        timing, output = read_answer("r:1", raw, 0.0)
        assert (timing.failure, timing.detail) == ("", "")
        assert (timing.num_output_tokens, timing.num_prompt_tokens, timing.finish_reason) == (15, 3, "stop")
        assert output.answer_text() == "".join([*TEXTS, " a", "last"]) and output.has_calls
        if framing != "close":
            assert output.times == expected_times(data, cuts, line_end)


def read(parts: list[bytes], framing: str = "chunked") -> tuple[Timing, Output]:
    return read_answer("r:1", arrive(framed(parts, framing), []), 0.0)


def data(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def test_a_form_that_was_learnt_does_not_hide_what_else_an_event_says() -> None:
    """After plain events, one with a reason to end, one with usage, and a broken one are still seen."""
    plain = [data(chunk({"content": "a"})) for _ in range(3)]
    timing, _ = read([*plain, data(chunk({"content": "b"}, finish="length"))])
    assert timing.finish_reason == "length" and timing.num_events == 4
    usage = {"usage": {"completion_tokens": 9}}
    timing, _ = read([*plain, data(chunk({"content": "b"}, **usage)), data(chunk({}, finish="stop"))])
    assert timing.num_output_tokens == 9 and timing.num_events == 4
    timing, _ = read([*plain, plain[0].replace(b'"a"', b'"a'), data(chunk({}, finish="stop"))])
    assert timing.failure == "malformed"
    timing, _ = read([*plain, plain[0].replace(b'"a"', b'"\\q"'), data(chunk({}, finish="stop"))])
    assert timing.failure == "malformed"
    timing, _ = read([*plain, plain[0].replace(b'"a"', b'""'), data(chunk({}, finish="stop"))])
    assert timing.num_events == 3, "an event without text is no token"


def test_completions_have_their_text_beside_the_choice() -> None:
    def event(text: str, finish: str | None = None) -> bytes:
        return data({"id": "x", "choices": [{"index": 0, "text": text, "finish_reason": finish}]})

    timing, output = read([event(" a"), event(" b"), event('"c"'), event(" d"), event("", "length")])
    assert timing.failure == "" and timing.num_events == 4 and output.answer_text() == ' a b"c" d'


@pytest.mark.parametrize(
    ("parts", "failure"),
    [
        ([data(chunk({"content": "a"}))], "truncated"),
        ([data(chunk({"content": "a"})), b'data: {"id": "x", "cho'], "truncated"),
        ([data(chunk({}, finish="stop")), data({"choices": [], "usage": {"completion_tokens": 1}})], "empty"),
        ([b"hello"], "malformed"),
        ([], "malformed"),
        ([b"data: 7\n\n"], "malformed"),
        ([b'data: {"choices": [7]}\n\n'], "malformed"),
        ([b'data: {"choices": {"a": 1}}\n\n'], "malformed"),
        ([data({"error": "no memory"})], "error"),
        ([data({"object": "error", "error": {"message": "x"}}), data(chunk({}, finish="stop"))], "error"),
    ],
)
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_what_is_no_answer_is_a_failure_of_its_kind(parts: list[bytes], failure: str, framing: str) -> None:
    timing, _ = read(parts, framing)
    assert timing.failure == failure and timing.detail and timing.ttft is None


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
    ],
)
def test_what_is_no_http_is_said_so(answer: bytes) -> None:
    with pytest.raises(Malformed):
        Framing().feed(answer)


def test_an_answer_may_have_no_body() -> None:
    framing = Framing()
    framing.feed(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    assert framing.is_complete and framing.closes and framing.body() == b""


def test_a_connection_with_more_than_its_answer_is_not_used_again() -> None:
    framing = Framing()
    framing.feed(framed([b"x"], "chunked") + b"HTTP/1.1 200 OK\r\n")
    assert framing.is_complete and framing.closes
