"""A streaming endpoint whose every delay is known: raw asyncio on a real socket, in a thread or a process of its own.

In a thread it shares the interpreter with the client under test, which is good enough for counting. For times there is
`server_process`: it notes the moment of every write by the clock that the client uses, too (`time.perf_counter` counts
from the same point in all processes of a Linux machine), so that a test compares stamps, not intentions.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
        silent: keep silent for ever from the start.
        body: answer 200 with this body instead of a stream.
        batch: tokens in one event.
        per_write: events in one write.
        malformed: send an event that is cut off in the middle, after the first token.
        finish: say why the answer ends.
        usage: report usage at the end.
        close: close the connection after the answer.
    """

    first: float = 0.0
    gaps: tuple[float, ...] = ()
    status: int = 200
    stop_after: int | None = None
    garbage: bytes = b""
    stall: bool = False
    silent: bool = False
    body: bytes | None = None
    batch: int = 1
    per_write: int = 1
    malformed: bool = False
    finish: bool = True
    usage: bool = True
    close: bool = False


Script = Callable[[dict[str, Any], int], Stream]


@dataclass
class Noted:
    """What happened to one request, by the server's clock: when it was read, and when each token was written."""

    text: str = ""  # of its last message
    arrived: float = 0.0
    written: list[float] = field(default_factory=list)
    ended: float = 0.0


class ScriptedStreamServer:
    """`script(request, number)` decides each answer; `requests` holds them in order of arrival."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script, self._tls = script, tls
        self.requests: list[dict[str, Any]] = []
        self.noted: list[Noted] = []
        self.num_connections = 0
        self.most_in_flight = 0
        self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

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
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512, ssl=self._tls)
        )
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
        content = await reader.readexactly(length)
        noted = Noted(arrived=time.perf_counter())
        request = json.loads(content)
        noted.text = str(request["messages"][-1]["content"] if "messages" in request else request["prompt"])
        self.requests.append(request)
        self.noted.append(noted)
        stream = self._script(request, len(self.requests) - 1)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return await self._answer(stream, writer, noted)
        finally:
            self._in_flight -= 1

    async def _answer(self, stream: Stream, writer: asyncio.StreamWriter, noted: Noted) -> bool:
        if stream.silent:
            await asyncio.sleep(3600)
        if stream.status != 200 or stream.body is not None:
            await asyncio.sleep(stream.first)
            body = b'{"error": {"message": "as the script says"}}' if stream.body is None else stream.body
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (stream.status, len(body), body))
            await writer.drain()
            return True
        closing = b"Connection: close\r\n" if stream.close else b""
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n" + closing + b"\r\n"
        )
        self._event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        token = {"choices": [{"index": 0, "delta": {"content": "x" * stream.batch}, "finish_reason": None}]}
        for number, gap in enumerate((stream.first, *stream.gaps)):
            if stream.stop_after == number:
                return False
            await asyncio.sleep(gap)
            noted.written.append(time.perf_counter())
            for _ in range(stream.per_write):
                self._event(writer, token)
            garbage = b'data: {"choices": [{"delta"\n\n' if stream.malformed else stream.garbage
            if garbage:
                self._chunk(writer, garbage)
            await writer.drain()
            if stream.stall:
                await asyncio.sleep(3600)
        noted.ended = time.perf_counter()
        self._end(stream, writer)
        await writer.drain()
        return not stream.close

    def _end(self, stream: Stream, writer: asyncio.StreamWriter) -> None:
        if stream.finish:
            self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if stream.usage:
            num_tokens = (1 + len(stream.gaps)) * stream.batch * stream.per_write
            self._event(writer, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": num_tokens}})
        self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def _event(self, writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
        self._chunk(writer, b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def interrupt_at(server: ScriptedStreamServer, num_requests: int) -> None:
    """Send this process Ctrl-C once the server has read so many requests."""

    def watch() -> None:
        while len(server.requests) < num_requests:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


class ServerProcess:
    """A scripted server in a process of its own: the last word of a request's text is its number in the script."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> list[Noted]:
        """End the server and return what it noted, in the order of the requests' arrival."""
        told, _ = self._process.communicate("stop\n", timeout=20)
        return [Noted(**noted) for noted in json.loads(told)]


@contextlib.contextmanager
def server_process(script: list[Stream]) -> Iterator[ServerProcess]:
    """Run a server until the block ends."""
    plain = [{k: v for k, v in dataclasses.asdict(s).items() if not isinstance(v, bytes)} for s in script]
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        print(json.dumps(plain), file=process.stdin)
        yield ServerProcess(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


def main() -> None:
    script = [Stream(**stream) for stream in json.loads(sys.stdin.readline())]

    def by_number(request: dict[str, Any], _: int) -> Stream:
        return script[int(request["messages"][-1]["content"].split()[-1])]

    with ScriptedStreamServer(by_number) as server:
        print(server.port, flush=True)
        sys.stdin.readline()
        print(json.dumps([dataclasses.asdict(noted) for noted in server.noted]), flush=True)


if __name__ == "__main__":
    main()
