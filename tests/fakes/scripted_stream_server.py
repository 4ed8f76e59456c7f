"""A streaming endpoint whose every delay is known: raw asyncio in a thread of its own, on a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Stream:
    """What one request gets. Delays in seconds.

    Attributes:
        first: before the first token.
        gaps: before each further token.
        status: an HTTP status other than 200 is sent as a JSON error.
        stop_after: send this many tokens, then hang up in the middle of the stream.
        garbage: send this instead of a token, after the first one.
        stall: keep silent for ever after the first token.
        usage: report usage at the end.
        close: close the connection after the answer.
    """

    first: float = 0.0
    gaps: tuple[float, ...] = ()
    status: int = 200
    stop_after: int | None = None
    garbage: bytes = b""
    stall: bool = False
    usage: bool = True
    close: bool = False


Script = Callable[[dict[str, Any], int], Stream]


class ScriptedStreamServer:
    """`script(request, number)` decides each answer; `requests` holds them in order of arrival."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[dict[str, Any]] = []
        self.num_connections = 0
        self.most_in_flight = 0
        self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        request = json.loads(await reader.readexactly(length))
        self.requests.append(request)
        stream = self._script(request, len(self.requests) - 1)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return await self._answer(stream, writer)
        finally:
            self._in_flight -= 1

    async def _answer(self, stream: Stream, writer: asyncio.StreamWriter) -> bool:
        if stream.status != 200:
            body = b'{"error": {"message": "as the script says"}}'
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (stream.status, len(body), body))
            await writer.drain()
            return True
        closing = b"Connection: close\r\n" if stream.close else b""
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n" + closing + b"\r\n"
        )
        self._event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for number, gap in enumerate((stream.first, *stream.gaps)):
            if stream.stop_after == number:
                return False
            await asyncio.sleep(gap)
            self._event(writer, {"choices": [{"index": 0, "delta": {"content": "x"}}]})
            if stream.garbage:
                self._chunk(writer, stream.garbage)
            await writer.drain()
            if stream.stall:
                await asyncio.sleep(3600)
        self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if stream.usage:
            usage = {"prompt_tokens": 7, "completion_tokens": 1 + len(stream.gaps)}
            self._event(writer, {"choices": [], "usage": usage})
        self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not stream.close

    def _event(self, writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
        self._chunk(writer, b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
