"""One server process: start it, wait until it answers, stop it, leave nothing behind.

The child leads a process group of its own, so that stopping reaches whatever it started, and Ctrl-C reaches only us.
When we are killed, the kernel kills the child. Linux ties that to the thread that started it: start servers from one
that lives on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tunesmith.errors import ServeError
from tunesmith.process import die_with_parent
from tunesmith.serve.engine import Engine, ServedModel

_GRACE_SECONDS = 10.0  # between TERM and KILL
_POLL_SECONDS = 0.1
_NUM_PORT_TRIES = 3
_NUM_LAST_LINES = 15
# Servers are on this machine: a proxy of the environment is for the world outside.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerProcess:
    """A running server.

    Attributes:
        url: where it listens, without /v1.
    """

    def __init__(self, engine: Engine, model: ServedModel, child: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.engine, self.model, self.url, self.log = engine, model, url, log
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    def is_running(self) -> bool:
        """Return whether the process is alive."""
        return self._child.poll() is None

    def wait(self) -> int:
        """Wait until the process ends by itself; return its exit code."""
        return self._child.wait()

    def stop(self) -> None:
        """Ask the process group to end, insist after a while, and wait until it has."""
        for number, patience_seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=patience_seconds)
                break
        # Grandchildren that outlived their parent.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def last_lines(self) -> str:
        """Return the end of what the server has written, without the lines of requests."""
        return _last_lines(self.log, 0)


def start(
    engine: Engine, model: ServedModel, *, log: Path, host: str = "127.0.0.1", port: int = 0, timeout_seconds: float
) -> ServerProcess:
    """Start a server and wait until it is healthy.

    Args:
        engine: which program.
        model: what it serves.
        log: file that receives its output, appended.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        timeout_seconds: time limit for becoming healthy.

    Raises:
        ServeError: it ended or is not healthy in time; the message holds its own last lines.
    """
    tries = 1 if port else _NUM_PORT_TRIES
    while True:
        tries -= 1
        try:
            return _start_once(engine, model, log, (host, port or _free_port(host)), timeout_seconds)
        except _PortTaken as error:
            # Somebody took the free port between our look and the server's start: look again.
            if not tries:
                raise ServeError(error.what, where=error.where, do=error.do) from None


class _PortTaken(ServeError):
    pass


def _start_once(
    engine: Engine, model: ServedModel, log: Path, address: tuple[str, int], timeout_seconds: float
) -> ServerProcess:
    host, port = address
    with _probe(host, port):
        pass
    command = engine.command(model, host, port)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        begin = output.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**engine.environment(), **os.environ},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    reached = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else host
    server = ServerProcess(engine, model, child, f"http://{reached}:{port}", log)
    try:
        _wait_until_healthy(server, begin, timeout_seconds)
    except BaseException:
        server.stop()
        raise
    return server


def _wait_until_healthy(server: ServerProcess, begin: int, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    name = server.engine.name
    while True:
        alive = server.is_running()
        if not alive:
            lines = _last_lines(server.log, begin)
            kind = _PortTaken if "address already in use" in lines.lower() else ServeError
            raise kind(f"the {name} server ended before it was ready\n{lines}", where=str(server.log))
        if _serves(server.url, server.model.name):
            return
        if time.monotonic() > deadline:
            lines = _last_lines(server.log, begin)
            what = f"the {name} server is not ready after {timeout_seconds:g} s\n{lines}"
            raise ServeError(
                what, where=str(server.log), do="raise serve.startup_timeout_seconds if it was still loading"
            )
        time.sleep(_POLL_SECONDS)


def _serves(url: str, model_name: str) -> bool:
    """Return whether a healthy server at `url` has the model: another program may have come to the same port."""
    if _get(f"{url}/health") is None:
        return False
    body = _get(f"{url}/v1/models")
    try:
        listed = json.loads(body or b"{}")["data"]
        return any(card["id"] == model_name for card in listed)
    except (ValueError, KeyError, TypeError):
        return False


def _get(url: str) -> bytes | None:
    try:
        with _DIRECT.open(url, timeout=2.0) as response:
            content: bytes = response.read()
            return content
    except (urllib.error.URLError, OSError, ValueError):
        return None


def _last_lines(log: Path, begin: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(begin, log.stat().st_size - 64_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "    (it wrote nothing)"
    lines = [line for line in text.splitlines() if line.strip()][-_NUM_LAST_LINES:]
    return "\n".join(f"    {line[:300]}" for line in lines) or "    (it wrote nothing)"


def _free_port(host: str) -> int:
    with _probe(host, 0) as listener:
        return int(listener.getsockname()[1])


def _probe(host: str, port: int) -> socket.socket:
    """Take an address, to see whether it can be had.

    Raises:
        _PortTaken: somebody listens there.
        ServeError: nobody can listen there: not an address of this machine, or a port that is not for everyone.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # A port that waits out its last connections counts as free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            do = "stop what listens there, or choose another port (serve.port: auto takes a free one)"
            raise _PortTaken("the port is in use", where=f"{host}:{port}", do=do) from None
        do = "choose an address of this machine (127.0.0.1, 0.0.0.0) and a port above 1023"
        raise ServeError(f"nothing can listen here: {error.strerror}", where=f"{host}:{port}", do=do) from None
    return listener
