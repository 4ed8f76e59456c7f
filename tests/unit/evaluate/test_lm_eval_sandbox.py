"""Programs in the sandbox: what they try and do not get, with canaries outside. Real namespaces, real limits."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CAN_MAKE_NAMESPACES = (
    subprocess.run(["unshare", "-Urmnp", "-f", "true"], capture_output=True, check=False).returncode == 0
    if shutil.which("unshare")
    else False
)
needs_namespaces = pytest.mark.skipif(not CAN_MAKE_NAMESPACES, reason="the kernel makes no namespaces here")


@pytest.fixture
def room() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        for directory in ("s", "r", "cache"):
            (Path(name) / directory).mkdir()
        yield Path(name)


def run(room: Path, program: str, *, limit_seconds: int = 30, **environment: str) -> tuple[int, dict[str, Any]]:
    """Run a program in the sandbox; returns its exit code and what it wrote to results/out.json."""
    order = room / "order.json"
    document = {"told": str(room / "told.json"), "limit_seconds": limit_seconds, "caches": [str(room / "cache")]}
    document |= {
        "scratch": str(room / "s"),
        "results": str(room / "r"),
        "environment": {"GIVEN": "yes", "GIVEN_PATH": str(ROOT / "src")},
    }
    order.write_text(json.dumps(document))
    head = f"import json, os, sys, socket, subprocess\nfound = {{}}\nROOM = {str(room)!r}\n"
    tail = "\nopen(ROOM + '/r/out.json', 'w').write(json.dumps(found))\n"
    command = [sys.executable, "-m", "tunesmith.evaluate.lm_eval.sandbox", str(order), "--", sys.executable, "-c"]
    command.append(head + textwrap.dedent(program) + tail)
    variables = os.environ | environment | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    out = room / "r" / "out.json"
    assert done.returncode or out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text()) if out.exists() else {}


@needs_namespaces
def test_nothing_outside_is_written_deleted_or_reached(room: Path) -> None:
    canary = room / "canary.txt"
    canary.write_text("alive")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code, found = run(
            room,
            f"""
            def attempt(name, work):
                try:
                    work()
                    found[name] = "done"
                except OSError as error:
                    found[name] = type(error).__name__
            attempt("write", lambda: open({str(canary)!r}, "w").write("dead"))
            attempt("delete", lambda: os.remove({str(canary)!r}))
            attempt("beside", lambda: open({str(canary)!r} + ".new", "w"))
            attempt("home", lambda: open({str(Path.home())!r} + "/canary", "w"))
            attempt("results", lambda: open(ROOM + "/r/mine", "w").write("x"))
            attempt("here", lambda: open("mine", "w").write("x"))
            attempt("shared memory", lambda: open("/dev/shm/mine", "w").write("x"))
            attempt("loopback", lambda: socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), 2))
            attempt("world", lambda: socket.create_connection(("192.0.2.1", 80), 2))
            attempt("parent", lambda: os.kill({os.getpid()}, 0))
            found["remount"] = subprocess.run(["mount", "-o", "remount,rw", "/"], capture_output=True).returncode
            again = "mount -o remount,bind,rw / && touch {canary}.again"
            found["again"] = subprocess.run(["unshare", "-Urm", "sh", "-c", again], capture_output=True).returncode
            of_interest = ("CapEff", "CapBnd", "NoNew")
            found["capabilities"] = [line for line in open("/proc/self/status") if line.startswith(of_interest)]
            """,
        )
    assert code == 0
    refused = ("write", "delete", "beside", "home", "loopback", "world", "parent")
    assert [name for name in refused if found[name] == "done"] == []
    assert [found[name] for name in ("results", "here", "shared memory")] == ["done"] * 3
    assert found["remount"] != 0 and found["again"] != 0
    assert [line.split()[1].strip("0") for line in found["capabilities"]] == ["", "", "1"]
    assert canary.read_text() == "alive" and sorted(room.glob("canary*")) == [canary]
    assert not (room / "s" / "mine").exists()  # scratch was memory, and is gone
    assert json.loads((room / "told.json").read_text())["held"][0] == "no network"


def test_no_credentials_and_a_home_of_its_own(room: Path) -> None:
    code, found = run(room, "found = dict(os.environ) | {'cwd': os.getcwd()}", HF_TOKEN="hf_secret", OPENAI_API_KEY="k")
    assert code == 0
    assert "HF_TOKEN" not in found and "OPENAI_API_KEY" not in found and found["GIVEN"] == "yes"
    assert found["HOME"] == found["TMPDIR"] == found["cwd"] == str(room / "s")


@needs_namespaces
def test_what_is_written_into_caches_is_gone(room: Path) -> None:
    (room / "cache" / "module.py").write_text("original")
    code, found = run(
        room,
        """
        found["read"] = open(ROOM + "/cache/module.py").read()
        open(ROOM + "/cache/module.py", "w").write("poisoned")
        open(ROOM + "/cache/lock", "w").write("")
        found["then"] = open(ROOM + "/cache/module.py").read()
        """,
    )
    assert (code, found["read"], found["then"]) == (0, "original", "poisoned")
    assert [path.name for path in (room / "cache").iterdir()] == ["module.py"]
    assert (room / "cache" / "module.py").read_text() == "original"


@needs_namespaces
def test_relative_names_are_found_and_not_overwritten(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = room / "here"
    (here / "data").mkdir(parents=True)
    (here / "data" / "rows.jsonl").write_text("rows")
    monkeypatch.chdir(here)
    code, found = run(
        room,
        """
        found["read"] = open("data/rows.jsonl").read()
        open("new", "w").write("x")
        try:
            open("data/rows.jsonl", "w")
        except OSError as error:
            found["write"] = str(error)
        """,
    )
    assert (code, found["read"]) == (0, "rows") and "Read-only" in found["write"]
    assert [path.name for path in here.iterdir()] == ["data"] and (here / "data" / "rows.jsonl").read_text() == "rows"


@pytest.mark.skipif(os.getuid() != 0, reason="who is not root may nest namespaces")
@needs_namespaces
def test_where_there_are_no_namespaces_limits_hold_and_that_is_told(room: Path) -> None:
    """A sandbox in the sandbox gets no namespaces of its own."""
    code, found = run(
        room,
        """
        inner = ROOM + "/r/inner"
        for directory in ("", "/s", "/r"):
            os.mkdir(inner + directory)
        order = {"told": inner + "/told.json", "limit_seconds": 20, "caches": [], "environment": {}}
        order |= {"scratch": inner + "/s", "results": inner + "/r"}
        json.dump(order, open(inner + "/order.json", "w"))
        program = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
        command = [sys.executable, "-m", "tunesmith.evaluate.lm_eval.sandbox", inner + "/order.json", "--"]
        environment = dict(os.environ, PYTHONPATH=os.environ["GIVEN_PATH"])
        command += [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        found["out"], found["code"] = done.stdout.strip(), done.returncode
        found["told"] = json.load(open(inner + "/told.json"))
        """,
    )
    assert (code, found["code"], found["out"]) == (0, 0, "1024")
    assert found["told"]["held"] == [] and "not permitted" in found["told"]["why_not"].lower()


def test_limits_hold(room: Path) -> None:
    code, found = run(
        room,
        """
        import resource
        try:
            bytearray(20 << 30)
        except MemoryError:
            found["memory"] = "refused"
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with open(ROOM + "/r/large", "wb") as file:
                file.truncate((1 << 30) + 1)
        except OSError:
            found["file"] = "refused"
        found["processes"] = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        """,
    )
    assert code == 0 and (found["memory"], found["file"], found["processes"]) == ("refused", "refused", 512)


@needs_namespaces
def test_what_loops_for_ever_is_ended_with_all_it_started(room: Path) -> None:
    started = time.monotonic()
    program = """
        for _ in range(3):
            subprocess.Popen(["sleep", "1234.5"], start_new_session=True)
        open(ROOM + "/r/started", "w")
        while True:
            pass
        """
    code, _ = run(room, program, limit_seconds=2)
    assert code != 0 and (room / "r" / "started").exists()
    assert time.monotonic() - started < 60
    assert _running(b"sleep\x001234.5") == []


@needs_namespaces
def test_a_killed_run_leaves_no_program(room: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tunesmith.evaluate.lm_eval import process\n"
        "process.run(sys.argv[2:], Path(sys.argv[1]) / 'log', {}, title='t')"
    )
    document = {"told": str(room / "told.json"), "limit_seconds": 100, "caches": [], "environment": {}}
    document |= {"scratch": str(room / "s"), "results": str(room / "r")}
    (room / "order.json").write_text(json.dumps(document))
    sandbox = [sys.executable, "-m", "tunesmith.evaluate.lm_eval.sandbox", str(room / "order.json"), "--"]
    command = [sys.executable, "-c", program, str(room), *sandbox, str(shutil.which("sleep")), "2345.5"]
    first = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    in_the_sandbox = os.fsencode(f"{shutil.which('sleep')}\x002345.5\x00")
    _wait(lambda: in_the_sandbox in map(_content, Path("/proc").glob("[0-9]*/cmdline")))
    first.kill()
    first.wait()
    _wait(lambda: not _running(b"sleep\x002345.5"))  # nor anybody who was to start it


def _wait(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def _running(command: bytes) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if _content(path).endswith(command + b"\x00")]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
