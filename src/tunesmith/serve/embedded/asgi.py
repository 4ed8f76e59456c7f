"""The little of ASGI that the server needs: read a body, send JSON, stream events, notice a client that has gone.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 64 << 20


class TooLarge(Exception):
    pass


class Gone(Exception):
    pass


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body.

    Raises:
        TooLarge: it has more than `MAX_BODY_BYTES`.
        Gone: the client left before it was complete.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge
        if not message.get("more_body"):
            return bytes(body)


class Reply:
    """A `send` that knows whether the answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: dict[str, Any]) -> None:
        self.has_begun = True
        await self._send(message)


async def send_error(reply: Reply, status: int, document: Any) -> None:
    """Send an error as the whole answer, or as the last event of one that has begun."""
    if reply.has_begun:
        await send_events(reply, [document])
        await end_events(reply)
    else:
        await send_json(reply, status, document)


async def send_json(send: Send, status: int, document: Any) -> None:
    """Send a whole JSON answer."""
    body = json.dumps(document, ensure_ascii=False).encode()
    await _start(send, status, b"application/json", [(b"content-length", str(len(body)).encode())])
    await send({"type": "http.response.body", "body": body})


async def start_events(send: Send) -> None:
    """Begin a stream of server-sent events."""
    await _start(send, 200, b"text/event-stream; charset=utf-8", [(b"cache-control", b"no-cache")])


async def send_events(send: Send, documents: list[Any]) -> None:
    """Send events, each with JSON data."""
    body = b"".join(b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n" for document in documents)
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def end_events(send: Send) -> None:
    """Send OpenAI's end mark and close the stream."""
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _start(send: Send, status: int, kind: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *headers]})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; cancel it as soon as the client disconnects.

    Raises:
        Gone: the client left first.
    """
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Gone
        await doing
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
