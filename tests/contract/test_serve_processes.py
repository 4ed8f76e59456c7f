"""Server processes: nothing is left behind, whatever way they end, and failures speak."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.tiny_checkpoint import make_checkpoint
from tunesmith.errors import ServeError
from tunesmith.serve import process
from tunesmith.serve.engine import Embedded, ServedModel


class Scripted:
    """An engine that is a few lines of Python."""

    name = "scripted"

    def __init__(self, code: str) -> None:
        self._code = code

    def command(self, model: ServedModel, host: str, port: int) -> list[str]:
        return [sys.executable, "-c", self._code, str(port), model.name]

    def environment(self) -> dict[str, str]:
        return {}


HEALTHY = """
import http.server, json, signal, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": sys.argv[2]}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
"""
STUBBORN = (
    HEALTHY
    + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
server.serve_forever()
"""
)
MODEL = ServedModel(Path("nowhere"), "tiny")


def start(engine: process.Engine, tmp_path: Path, **options: object) -> process.ServerProcess:
    arguments: dict[str, object] = {"log": tmp_path / "server.log", "timeout_seconds": 60.0} | options
    return process.start(engine, MODEL, **arguments)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_stopping_ends_a_stubborn_server_and_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.5)
    server = start(Scripted(STUBBORN), tmp_path)
    child = int(server.log.read_text().split()[1])
    assert is_alive(child) and server.is_running()
    server.stop()
    assert not server.is_running()
    assert wait_until(lambda: not is_alive(child))
    assert is_free(port_of(server.url))
    server.stop()  # once more does no harm


def test_what_a_dying_server_said_is_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("an older run\n")
    code = "import sys; print('loading'); sys.exit('the weights are gone')"
    with pytest.raises(ServeError, match="the weights are gone") as told:
        start(Scripted(code), tmp_path)
    assert "an older run" not in told.value.what
    assert str(tmp_path / "server.log") in told.value.where


def test_a_server_that_never_gets_ready_is_given_up_and_stopped(tmp_path: Path) -> None:
    code = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(ServeError, match="not ready after 1 s") as told:
        start(Scripted(code), tmp_path, timeout_seconds=1.0)
    pid = int(told.value.what.split("pid ")[1].split()[0])
    assert wait_until(lambda: not is_alive(pid))


def test_a_taken_port_is_an_error_that_says_so(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(ServeError, match="the port is in use"):
            start(Scripted(HEALTHY), tmp_path, port=holder.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("203.0.113.9", 0), ("203.0.113.9", 8000), ("no such host", 0)])
def test_an_address_of_somebody_else_is_an_error_that_says_so(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(ServeError, match="nothing can listen here") as told:
        start(Scripted(HEALTHY), tmp_path, port=port, host=host)
    assert told.value.where.startswith(host) and "127.0.0.1" in told.value.do


def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    other = process.start(
        Scripted(HEALTHY + "server.serve_forever()"),
        ServedModel(Path("x"), "somebody-else"),
        log=tmp_path / "other.log",
        timeout_seconds=60,
    )
    try:
        assert not process._serves(other.url, "tiny")
        assert process._serves(other.url, "somebody-else")
    finally:
        other.stop()


def test_nothing_survives_a_kill_of_the_parent(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny")
    code = f"""
import time
from pathlib import Path
from tunesmith.serve.engine import ServedModel
from tunesmith.serve.stage import serving
model = ServedModel(Path({str(checkpoint)!r}), "tiny")
with serving(model, engine="embedded", log=Path({str(tmp_path / "log")!r})) as server:
    print(server.pid, server.url, flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    assert is_alive(int(pid)) and not is_free(port_of(url))
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_alive(int(pid)))
    assert wait_until(lambda: is_free(port_of(url)))


class Kept(Scripted):
    """A scripted engine under the keeper, as vLLM is."""

    def command(self, model: ServedModel, host: str, port: int) -> list[str]:
        return [sys.executable, "-m", "tunesmith.serve.keeper", *super().command(model, host, port)]


def test_the_keeper_ends_grandchildren_after_a_kill(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from tests.contract.test_serve_processes import STUBBORN, Kept, start
server = start(Kept(STUBBORN.replace("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "")), Path({str(tmp_path)!r}))
print(server.pid, server.url, flush=True)
time.sleep(600)
"""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    grandchild = int((tmp_path / "server.log").read_text().split()[1])
    assert is_alive(grandchild)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_alive(grandchild) and not is_alive(int(pid)))
    assert wait_until(lambda: is_free(port_of(url)))


def test_the_keeper_hands_on_exit_codes_and_last_words(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no such weights"):
        start(Kept("import sys; sys.exit('no such weights')"), tmp_path)
    server = start(Kept(HEALTHY + "server.serve_forever()"), tmp_path)
    server.stop()
    assert not server.is_running() and is_free(port_of(server.url))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-m", "tunesmith", "serve", str(checkpoint), "--port", "0"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert running.stdout is not None and running.stderr is not None
    line = running.stdout.readline()
    assert line.startswith("tiny is served at http://127.0.0.1:"), running.stderr.read()
    port = int(line.split("127.0.0.1:")[1].split("/")[0])
    running.send_signal(number)
    assert running.wait(timeout=30) == 0
    assert "Traceback" not in running.stderr.read()
    assert is_free(port)


def test_the_embedded_server_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"there is no config\.json here"):
        process.start(Embedded(), ServedModel(tmp_path, "x"), log=tmp_path / "log", timeout_seconds=60)
