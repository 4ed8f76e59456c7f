"""A chat server in a process of its own that is well-behaved for a while, and then is not.

    python tests/fakes/misbehaving_server.py --port 8123 --behaviour hang --after 10 --log asked.txt

Prints its port, which `--port 0` leaves to the system.

It repeats the second word of the last message. Every request it answers well is a line in the log. After `--after` of
them, every request gets the behaviour.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BEHAVIOURS = ("none", "exit", "hang", "http_500", "truncate", "not_json", "not_http", "drip")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True


def serve(port: int, behaviour: str, after: int, log: str) -> None:
    """Listen until killed."""
    lock, num_good = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(json.dumps({"object": "list", "data": [{"id": "model"}]}).encode())

        def do_POST(self) -> None:
            nonlocal num_good
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = request["messages"][-1]["content"]
            with lock:
                good = behaviour == "none" or num_good < after
                if good:
                    num_good += 1
                    with Path(log).open("a") as file:
                        file.write(prompt + "\n")
            message = {"role": "assistant", "content": prompt.split()[1]}
            usage = {"prompt_tokens": 5, "completion_tokens": 1}
            body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
            if good:
                self._send(body)
            else:
                self.close_connection = True
                self._misbehave(body)

        def _misbehave(self, body: bytes) -> None:
            if behaviour == "exit":
                os._exit(1)
            elif behaviour == "hang":
                time.sleep(3600)
            elif behaviour == "http_500":
                self._send(b'{"error": {"message": "CUDA error: device-side assert triggered"}}', 500)
            elif behaviour == "not_json":
                self._send(b"<html><body>502 Bad Gateway</body></html>")
            elif behaviour == "not_http":
                self.wfile.write(b"\x00\x01\x02 what is HTTP\r\n\r\n")
            elif behaviour == "truncate":
                self._send(body, length=len(body) // 2)
            elif behaviour == "drip":
                self._send(body, length=30)
                time.sleep(3600)

        def _send(self, body: bytes, status: int = 200, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:length])
            self.wfile.flush()

    server = Server(("127.0.0.1", port), Handler)
    print(server.server_port, flush=True)
    server.serve_forever(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default="none")
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--log", required=True)
    arguments = parser.parse_args()
    serve(arguments.port, arguments.behaviour, arguments.after, arguments.log)
