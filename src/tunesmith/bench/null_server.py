"""A server that does nothing but answer: what a load generator is measured against.

    python -m tunesmith.bench.null_server      prints its port; ends when its standard input does

`POST /TOKENS/PER_WRITE/GAP_MS/v1/chat/completions` streams TOKENS events, PER_WRITE of them in one write, with GAP_MS
between writes: `/200/1/0/v1/…` sends 200 events as fast as they go. Every event has one token; with a gap its text is
the moment of its write in nanoseconds (`time.perf_counter_ns`, which on one machine a client can compare with its own
clock). Other posts get one token. `GET` answers with a list of one model. The body of a request is not looked at.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import cache

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object": "list", "data": [{"id": "null-model", "object": "model", "max_model_len": 1000000}]}'
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1764000000,'
    b'"model":"null-model","choices":[{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s}]}\n\n'
)
_NUM_PARTS = 3  # of a path that says how to answer


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_TOKEN = _chunk(_EVENT % (b'"content":" token"', b"null"))
_ROLE = _chunk(_EVENT % (b'"role":"assistant","content":""', b"null"))


@cache
def _end(num_tokens: int) -> bytes:
    usage = b'data: {"id":"x","object":"chat.completion.chunk","choices":[],"usage":%s}\n\n' % (
        b'{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}' % (num_tokens, num_tokens + 1)
    )
    events = _EVENT % (b"", b'"length"'), usage, b"data: [DONE]\n\n"
    return b"".join(_chunk(event) for event in events) + b"0\r\n\r\n"


@cache
def _script(path: bytes) -> tuple[int, int, float]:
    """Return tokens, tokens in one write, and seconds between writes."""
    parts = path.split(b"/")[1 : _NUM_PARTS + 1]
    try:
        return int(parts[0]), max(1, int(parts[1])), float(parts[2]) / 1000
    except (ValueError, IndexError):
        return 1, 1, 0.0


class _Server(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = self._head = b""
        self._left = self._num_tokens = 0
        self._per_write = 1
        self._gap = self._next = 0.0
        self._is_paused = self._waits_for_room = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._left = 0

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._waits_for_room:
            self._waits_for_room = False
            self._write()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        self._buffer = self._buffer[end + 4 + length :]
        method, path = head.split(b" ", 2)[:2]
        if method == b"post":
            self._begin(path)
        else:
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            self._transport.write(answer % (len(_MODELS), _MODELS))

    def _begin(self, path: bytes) -> None:
        self._num_tokens, self._per_write, self._gap = _script(path)
        self._left = self._num_tokens
        self._next = self._loop.time() + self._gap
        self._head = _HEAD + _ROLE  # goes out with the first token, as from real servers
        if self._num_tokens <= self._per_write and not self._gap:
            self._transport.write(self._head + _TOKEN * self._num_tokens + _end(self._num_tokens))
            return
        self._later()

    def _later(self) -> None:
        if self._gap:
            self._loop.call_at(self._next, self._write)
            self._next += self._gap
        else:
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        if self._is_paused:
            self._waits_for_room = True
            return
        count = min(self._left, self._per_write)
        self._left -= count
        if self._gap:
            stamp = _chunk(_EVENT % (b'"content":" %d"' % time.perf_counter_ns(), b"null"))
            self._transport.write(self._head + stamp * count)
        else:
            self._transport.write(self._head + _TOKEN * count)
        self._head = b""
        if self._left > 0:
            self._later()
        elif not self._transport.is_closing():
            self._transport.write(_end(self._num_tokens))


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
