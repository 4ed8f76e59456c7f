"""A lean HTTP/1.1 client for streamed answers: every piece is stamped the moment it arrives, and read later.

A general client costs more per chunk than a fast server does, and then the load test measures the client
(https://github.com/vllm-project/vllm/issues/39963). Here a piece that cannot end the answer costs one callback: a stamp
and two appends. Framing is looked at when an answer may be complete, events when nothing is timed any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

from tunesmith.bench.framing import Framing, Malformed
from tunesmith.errors import UsageError

_CONNECT_SECONDS = 30.0


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
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise UsageError(f"not an http or https URL: {url!r}", do="give one such as http://127.0.0.1:8000")
        is_secure = parts.scheme == "https"
        return cls(host, port or (443 if is_secure else 80), parts.path.rstrip("/"), is_secure)

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """What TLS needs; made once, since reading the certificates takes a while."""
        return ssl.create_default_context() if self.is_secure else None

    def head(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        """Return the head of a request up to its last line, which the body's length completes."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")


def request(head: bytes, body: bytes) -> bytes:
    """Return a whole request, ready to be written."""
    return b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


@dataclass(slots=True)
class RawAnswer:
    """What came back, unread. Times are `time.perf_counter` seconds.

    `times[i]` is when the i-th piece arrived, `ends[i]` how many bytes had come by then.
    """

    started: float = 0.0  # when the request was due
    sent: float = 0.0  # when its first byte was written
    ended: float = 0.0  # when the last piece came, or the request was given up
    times: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    framing: Framing = field(default_factory=Framing)
    problem: str = (
        ""  # connect | disconnect | timeout | stall | malformed | unfinished; empty when the body is complete
    )
    detail: str = ""

    @property
    def status(self) -> int:
        return self.framing.status

    @property
    def num_bytes(self) -> int:
        return len(self.framing.raw)

    def body(self) -> bytes:
        return self.framing.body()


class Connection:
    """One persistent connection; it opens when needed and again after the other side has closed it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._wire: _Wire | None = None
        self._answer: RawAnswer | None = None
        self._opening: asyncio.Task[object] | None = None

    async def post(self, content: bytes, answer: RawAnswer) -> None:
        """Send a whole request and collect its answer; never raises for what a network or server does."""
        self._answer = answer
        try:
            await self._exchange(content, answer)
        except Malformed as error:
            answer.problem, answer.detail = "malformed", str(error)
        except (OSError, UnicodeError) as error:  # the latter for names that cannot be one of a host
            if not answer.problem:
                answer.problem = "connect" if self._wire is None else "disconnect"
                answer.detail = str(error) or type(error).__name__
        self._answer = None
        answer.ended = answer.ended or time.perf_counter()
        if answer.problem or answer.framing.closes:
            self.close()

    def give_up(self, problem: str, detail: str) -> None:
        """End the request in flight, if there is one; its answer names the problem."""
        if self._answer is None or self._answer.ended:
            return
        self._answer.problem, self._answer.detail = problem, detail
        if self._opening is not None:
            self._opening.cancel()
        if self._wire is not None:
            self._wire.fail(ConnectionAbortedError(detail))

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _exchange(self, content: bytes, answer: RawAnswer) -> None:
        is_reused = self._wire is not None and not self._wire.is_lost
        wire = await self._open()
        try:
            await wire.exchange(content, answer)
        except ConnectionError:
            # A server may close an idle connection just as it is used again; nothing has been answered then.
            if not is_reused or answer.times or answer.problem:
                raise
            self.close()
            wire = await self._open()
            await wire.exchange(content, answer)

    async def _open(self) -> _Wire:
        if self._wire is None or self._wire.is_lost:
            self._wire = None
            self._opening = asyncio.ensure_future(self._connect())
            try:
                await self._opening
            except asyncio.CancelledError:
                if self._answer is None or not self._answer.problem:
                    raise
                raise ConnectionAbortedError(self._answer.detail) from None
            except TimeoutError:
                raise OSError(f"no connection within {_CONNECT_SECONDS:g} s") from None
            finally:
                self._opening = None
        assert self._wire is not None
        return self._wire

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        address = self._address
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, self._wire = await loop.create_connection(_Wire, address.host, address.port, ssl=address.tls)


class _Wire(asyncio.Protocol):
    """Stamps what arrives, before anything else happens to it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: RawAnswer | None = None
        self._times: list[float] = []
        self._unread: list[bytes] = []
        self._sizes: list[int] = []
        self._may_skip = False  # the head was read, and only a piece that looks like an end can be one
        self._done: asyncio.Future[None] | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def exchange(self, content: bytes, answer: RawAnswer) -> None:
        """Write a request and wait until its answer is complete.

        Raises:
            Malformed: what came is not HTTP.
            ConnectionError: the connection ended before the answer did, or the request was given up.
        """
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._times, self._unread, self._sizes, self._may_skip = answer.times, [], [], False
        answer.framing = Framing()
        self._answer = answer
        answer.sent = time.perf_counter()
        self._transport.write(content)
        try:
            await self._done
        finally:
            self._answer = None
            if self._unread and not answer.framing.is_complete:
                self._read_leftovers(answer)
            answer.ends = list(itertools.accumulate(self._sizes))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._answer is None:
            self.close()  # nobody asked
            return
        self._times.append(now)
        self._unread.append(data)
        self._sizes.append(len(data))
        # A chunked body ends with an empty line; it may be split over two pieces, the second then being short.
        if not self._may_skip or data[-4:] == b"\r\n\r\n" or len(data) < 4:
            self._read(self._answer)

    def eof_received(self) -> bool:
        return False  # the transport closes itself, and `connection_lost` is called

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        answer = self._answer
        if answer is None or self._done is None or self._done.done():
            return
        self._read(answer)
        if self._done.done():
            return
        answer.framing.close()
        if answer.framing.is_complete:
            self._finish(answer)
        else:
            what = "the server closed the connection before the answer was complete"
            self._done.set_exception(ConnectionResetError(str(error) if error else what))

    def fail(self, error: ConnectionError) -> None:
        """End the exchange under way."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def close(self) -> None:
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()

    def _read(self, answer: RawAnswer) -> None:
        framing = answer.framing
        data = b"".join(self._unread)
        self._unread.clear()
        try:
            framing.feed(data)
        except Malformed as error:
            if self._done is not None and not self._done.done():
                self._done.set_exception(error)
            return
        self._may_skip = framing.kind in ("chunked", "close")
        if framing.is_complete:
            self._finish(answer)

    def _read_leftovers(self, answer: RawAnswer) -> None:
        """Keep what has come of an answer that will not be complete."""
        with contextlib.suppress(Malformed):  # it has failed already
            answer.framing.feed(b"".join(self._unread))
        self._unread = []

    def _finish(self, answer: RawAnswer) -> None:
        answer.ended = self._times[-1]
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
