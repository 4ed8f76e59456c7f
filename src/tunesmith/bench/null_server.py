"""A server that does nothing but answer: what a load generator is measured against.

    python -m tunesmith.bench.null_server      prints its port; ends when its standard input does

`POST /TOKENS/PER_WRITE/GAP_MS[/FIRST_MS]/v1/chat/completions` streams TOKENS events, PER_WRITE of them in one write,
the first after FIRST_MS (else after GAP_MS), the others GAP_MS apart: `/200/1/0/v1/…` sends 200 events as fast as they
go. Every event has one token; with a gap its text is the moment of its write in nanoseconds (`time.perf_counter_ns`,
which on one machine a client can compare with its own clock). Other posts get one token. `GET` answers with a list of
one model. The body of a request is not looked at.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import cache

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object": "list", "data": [{"id": "null-model", "object": "model", "max_model_len": 1000000}]}'
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1764000000,'
    b'"model":"null-model","choices":[{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s}]}\n\n'
)
_BURST = 4  # writes of one connection before the next one's turn
_NUM_PARTS = 4  # of a path that says how to answer


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
def _script(path: bytes) -> tuple[int, int, float, float]:
    """Return tokens, tokens in one write, seconds between writes, and seconds before the first."""
    parts = path.split(b"/")[1 : _NUM_PARTS + 1]
    try:
        gap = float(parts[2]) / 1000
        first = float(parts[3]) / 1000 if parts[3] != b"v1" else gap
        return int(parts[0]), max(1, int(parts[1])), gap, first
    except (ValueError, IndexError):
        return 1, 1, 0.0, 0.0


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
        self._socket: int = transport.get_extra_info("socket").fileno()

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
        self._num_tokens, self._per_write, self._gap, first = _script(path)
        self._left = self._num_tokens
        self._next = self._loop.time() + first
        self._head = _HEAD + _ROLE  # goes out with the first token, as from real servers
        if self._num_tokens <= self._per_write and not first:
            self._transport.write(self._head + _TOKEN * self._num_tokens + _end(self._num_tokens))
        elif first:
            self._loop.call_at(self._next, self._write)
        else:
            self._write()

    def _write(self) -> None:
        """Write the next tokens: one write with a gap behind it, or several in a row."""
        for _ in range(1 if self._gap else _BURST):
            if self._is_paused:
                self._waits_for_room = True
                return
            count = min(self._left, self._per_write)
            self._left -= count
            self._send(self._head + self._tokens(count))
            self._head = b""
            if self._left <= 0:
                self._send(_end(self._num_tokens))
                return
        if self._gap:
            self._next += self._gap
            self._loop.call_at(self._next, self._write)
        else:
            self._loop.call_soon(self._write)

    def _tokens(self, count: int) -> bytes:
        if not self._gap:
            return _TOKEN * count
        return _chunk(_EVENT % (b'"content":" %d"' % time.perf_counter_ns(), b"null")) * count

    def _send(self, data: bytes) -> None:
        """Write at once where the socket has room: half the cost of the transport's own way."""
        if self._transport.is_closing():
            self._left = 0
            return
        if not self._transport.get_write_buffer_size():
            try:
                data = data[os.write(self._socket, data) :]
            except BlockingIOError:
                pass
            except OSError:
                self._transport.abort()
                return
        if data:
            self._transport.write(data)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
