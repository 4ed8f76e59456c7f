"""An HTTP proxy on the loopback interface that hands requests on, notes them, and fails where it is told to."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from tests.fakes.loopback_server import LoopbackServer, QuietHandler

Fault = Callable[[str], int | None]


class FaultyProxy(LoopbackServer):
    """Stands before one server.

    Args:
        upstream: its URL.
        fault: called with each request (`PUT /bucket/key?partNumber=2`); a status to answer with instead of asking the
            server, 0 to break the connection, None to hand the request on.
        delay_seconds: added to each request that carries a body.
    """

    def __init__(self, upstream: str, fault: Fault | None = None, delay_seconds: float = 0.0) -> None:
        self.fault: Fault = fault or (lambda request: None)
        self.requests: list[str] = []  # those that the server answered, in the order of its answers
        place, owner = urlsplit(upstream), self

        class Handler(QuietHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = f"{self.command} {self.path}"
                status = owner.fault(request)
                if status == 0:
                    self.close_connection = True
                    return
                if body:
                    time.sleep(delay_seconds)
                if status is None:
                    self._hand_on(body, request)
                else:
                    self._answer(status, {}, b"<Error><Code>InternalError</Code><Message>a fault</Message></Error>")

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

            def _hand_on(self, body: bytes, request: str) -> None:
                connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                owner.requests.append(request)
                self._answer(answer.status, dict(answer.getheaders()), content)
                connection.close()

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                        self.send_header(name, value)
                length = headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        super().__init__(Handler)
