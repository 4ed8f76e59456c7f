"""A lean HTTP/1.1 client for streamed answers: every piece is stamped the moment it arrives, and read later.

A general client costs more per chunk than a fast server does, and then the load test measures the client
(https://github.com/vllm-project/vllm/issues/39963). Here a chunk costs one callback; parsing waits until nothing is
timed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tunesmith.errors import UsageError


@dataclass(frozen=True)
class Address:
    """Where requests go."""

    host: str
    port: int
    path: str  # prefix of every request path
    is_secure: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """Take a URL apart.

        Raises:
            UsageError: it is not an http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"not an http or https URL: {url!r}", do="give one such as http://127.0.0.1:8000")
        is_secure = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if is_secure else 80), parts.path.rstrip("/"), is_secure)


@dataclass
class RawAnswer:
    """What came back, unparsed. Times are `time.perf_counter` seconds.

    `pieces` are of the body, after chunked framing was removed; a piece may hold several events or part of one.
    """

    started: float = 0.0
    ended: float = 0.0
    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    problem: str = ""  # connect | disconnect | timeout | malformed; empty when the body is complete
    detail: str = ""


class Connection:
    """One persistent connection; it opens when needed and again after the other side has closed it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._wire: _Wire | None = None

    async def post(self, path: str, body: bytes, headers: dict[str, str], timeout_seconds: float) -> RawAnswer:
        """Send a request and collect its answer; never raises for what a network or server does."""
        answer = RawAnswer(started=time.perf_counter())
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._exchange(path, body, headers, answer)
        except TimeoutError:
            answer.problem, answer.detail = "timeout", f"no complete answer within {timeout_seconds:g} s"
        except _Malformed as error:
            answer.problem, answer.detail = "malformed", str(error)
        except OSError as error:
            kind = "connect" if self._wire is None else "disconnect"
            answer.problem, answer.detail = kind, str(error) or type(error).__name__
        answer.ended = answer.ended or time.perf_counter()
        if answer.problem:
            self.close()
        return answer

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _exchange(self, path: str, body: bytes, headers: dict[str, str], answer: RawAnswer) -> None:
        is_reused = self._wire is not None and not self._wire.is_lost
        wire = await self._open()
        head = self._head(path, len(body), headers)
        wire.send(head + body)
        reader = _AnswerReader(wire, answer)
        try:
            await reader.read()
        except ConnectionError:
            # A server may close an idle connection just as it is used again; nothing has been answered then.
            if not is_reused or answer.status:
                raise
            self.close()
            wire = await self._open()
            wire.send(head + body)
            reader = _AnswerReader(wire, answer)
            await reader.read()
        if reader.closes:
            self.close()

    async def _open(self) -> _Wire:
        if self._wire is None or self._wire.is_lost:
            self._wire = None
            address = self._address
            context = ssl.create_default_context() if address.is_secure else None
            loop = asyncio.get_running_loop()
            _, self._wire = await loop.create_connection(_Wire, address.host, address.port, ssl=context)
        return self._wire

    def _head(self, path: str, num_bytes: int, headers: dict[str, str]) -> bytes:
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        lines = [f"POST {self._address.path}{path} HTTP/1.1", f"Host: {host}:{self._address.port}"]
        lines += ["Content-Type: application/json", f"Content-Length: {num_bytes}", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Malformed(Exception):
    pass


class _Wire(asyncio.Protocol):
    """Stamps what arrives, before anything else happens to it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._arrived: list[tuple[float, bytes]] = []
        self._waiter: asyncio.Future[None] | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._arrived.append((time.perf_counter(), data))
        self._wake()

    def eof_received(self) -> bool:
        self.is_lost = True
        self._wake()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._wake()

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()

    async def arrived(self) -> list[tuple[float, bytes]]:
        """Return what has come since the last call, waiting for something.

        Raises:
            ConnectionResetError: the other side has closed, and everything was handed over.
        """
        while not self._arrived:
            if self.is_lost:
                raise ConnectionResetError("the server closed the connection before the answer was complete")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._arrived = self._arrived, []
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _AnswerReader:
    """Takes HTTP's framing off one answer."""

    def __init__(self, wire: _Wire, answer: RawAnswer) -> None:
        self._wire, self._answer = wire, answer
        self._buffer = bytearray()
        self._when = 0.0
        self.closes = False  # the server will not take another request on this connection

    async def read(self) -> None:
        """Read the whole answer into `answer`."""
        headers = await self._head()
        while self._answer.status == 100:
            headers = await self._head()
        self.closes = headers.get("connection", "").lower() == "close"
        if "chunked" in headers.get("transfer-encoding", "").lower():
            await self._chunks()
        elif "content-length" in headers:
            await self._body(_number(headers["content-length"], 10))
        else:
            self.closes = True
            await self._until_closed()
        self._answer.ended = self._when

    async def _head(self) -> dict[str, str]:
        lines = (await self._until(b"\r\n\r\n", limit=65_536)).decode("latin-1").split("\r\n")
        words = lines[0].split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1."):
            raise _Malformed(f"not an HTTP answer: {lines[0][:80]!r}")
        self._answer.status = _number(words[1], 10)
        pairs = (line.partition(":") for line in lines[1:])
        return {name.strip().lower(): value.strip() for name, _, value in pairs}

    async def _chunks(self) -> None:
        while size := _number((await self._until(b"\r\n", limit=1024)).split(b";")[0].decode("latin-1"), 16):
            await self._body(size)
            if await self._until(b"\r\n", limit=2):
                raise _Malformed("a chunk is longer than it says")
        while await self._until(b"\r\n", limit=65_536):
            pass  # trailers

    async def _body(self, num_bytes: int) -> None:
        while num_bytes:
            if not self._buffer:
                await self._more()
            piece = bytes(self._buffer[:num_bytes])
            del self._buffer[:num_bytes]
            num_bytes -= len(piece)
            self._answer.pieces.append((self._when, piece))

    async def _until_closed(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while True:
                if self._buffer:
                    self._answer.pieces.append((self._when, bytes(self._buffer)))
                    self._buffer.clear()
                await self._more()

    async def _until(self, mark: bytes, *, limit: int) -> bytes:
        """Return what comes before a mark, and drop both."""
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > limit + len(mark):
                raise _Malformed(f"{len(self._buffer)} bytes without the end of a line")
            await self._more()
        if at > limit:
            raise _Malformed("a line is too long")
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return found

    async def _more(self) -> None:
        for when, data in await self._wire.arrived():
            self._when = when
            self._buffer += data


def _number(text: str, base: int) -> int:
    try:
        number = int(text.strip(), base)
    except ValueError:
        number = -1
    if number < 0:
        raise _Malformed(f"not a number in HTTP's framing: {text[:40]!r}")
    return number
