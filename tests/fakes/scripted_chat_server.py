"""A chat endpoint that does what a test says: answers, errors, garbage, stalls, sudden death. On a real socket."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.fakes.loopback_server import LoopbackServer, QuietHandler
from tunesmith.artifacts import Endpoint, Which

Request = dict[str, Any]


def completion(content: str | None = "", tool_calls: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    """Return a chat completion; calls are (name, arguments as text)."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if tool_calls:
        message["tool_calls"] = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(tool_calls)
        ]
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


class Reply:
    """What to send: a status and a body, possibly late, cut short, in drips, or nothing at all.

    With `stall_after_bytes`, that much comes at once and the rest after `wait_seconds`.
    """

    def __init__(
        self,
        body: dict[str, Any] | bytes,
        status: int = 200,
        *,
        cut_after_bytes: int | None = None,
        stall_after_bytes: int | None = None,
        wait_seconds: float = 0.0,
        drip_seconds: float = 0.0,
        hang_up: bool = False,
    ) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.cut_after_bytes, self.wait_seconds = status, cut_after_bytes, wait_seconds
        self.drip_seconds, self.hang_up, self.stall_after_bytes = drip_seconds, hang_up, stall_after_bytes


Script = Callable[[Request, int], Reply | dict[str, Any]]


class ScriptedChatServer(LoopbackServer):
    """`script(request, number)` decides each reply; `requests` holds every request in order of arrival.

    With `models`, it lists them, after `models_wait`; without, it has no list.
    """

    def __init__(
        self, script: Script, models: tuple[str, ...] | None = None, models_wait: threading.Event | None = None
    ) -> None:
        self.requests: list[Request] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._script = script
        self._lock = threading.Lock()
        owner = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:  # noqa: N802 - the library calls it so
                owner._answer(self)

            def do_GET(self) -> None:  # noqa: N802 - the library calls it so
                if models_wait:
                    models_wait.wait(30)
                listed = {"data": [{"id": model} for model in models or ()]}
                with contextlib.suppress(OSError):
                    owner._send(self, Reply(listed) if models else Reply(b"not found", 404))

        super().__init__(Handler)

    def endpoint(self, which: Which = "tuned") -> Endpoint:
        return Endpoint(url=self.url, model=which, engine="scripted", which=which, log="server.log")

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.paths.append(handler.path)
            self.headers.append(dict(handler.headers))
        reply = self._script(request, number)
        reply = reply if isinstance(reply, Reply) else Reply(reply)
        time.sleep(0.0 if reply.stall_after_bytes else reply.wait_seconds)
        try:
            self._send(handler, reply)
        except OSError:
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        handler.close_connection = reply.hang_up or reply.cut_after_bytes is not None
        if reply.hang_up:
            return
        handler.send_response(reply.status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        if reply.drip_seconds:
            for byte in reply.body:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(reply.drip_seconds)
            return
        if reply.stall_after_bytes:
            handler.wfile.write(reply.body[: reply.stall_after_bytes])
            handler.wfile.flush()
            time.sleep(reply.wait_seconds)
            handler.wfile.write(reply.body[reply.stall_after_bytes :])
            return
        handler.wfile.write(reply.body[: reply.cut_after_bytes])
