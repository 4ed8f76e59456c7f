"""Work shared with copies of the process: the same results in the same order, whoever did it and whoever died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tunesmith.evaluate import all_cores

_HERE = os.getpid()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux")


@pytest.fixture(autouse=True)
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that ran before, and who runs tests side by side, may have left a thread."""
    if "threads" not in request.node.name:
        monkeypatch.setattr(all_cores, "_has_threads", lambda: False)


def _slow(item: int) -> tuple[int, int]:
    time.sleep(0.001)
    return item * item, os.getpid()


def _no_child_is_left() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def test_all_results_come_in_order_from_several_processes() -> None:
    made = all_cores.results(_slow, range(200), num_processes=3)
    assert [square for square, _ in made] == [item * item for item in range(200)]
    assert len({process for _, process in made}) == 3
    assert made[0][1] == _HERE and _no_child_is_left()


def test_what_is_done_soon_is_done_here() -> None:
    made = all_cores.results(lambda item: os.getpid(), range(1_000), num_processes=8)
    assert set(made) == {_HERE}


def test_it_is_seen_late_that_work_takes_long() -> None:
    """The first answers may be quick ones of another kind."""
    made = all_cores.results(lambda item: _slow(item)[1] if item > 20_000 else 0, range(20_200), num_processes=2)
    assert len(set(made)) == 3


@pytest.mark.parametrize("num_processes", [1, 4])
def test_the_first_error_in_the_items_order_is_raised(num_processes: int) -> None:
    def fails(item: int) -> int:
        _slow(item)
        if item in (90, 150):
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 90"):
        all_cores.results(fails, range(200), num_processes=num_processes)
    assert _no_child_is_left()


def test_what_a_copy_had_taken_when_it_died_is_done_here() -> None:
    def dies(item: int) -> int:
        _slow(item)
        if item == 120 and os.getpid() != _HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert all_cores.results(dies, range(200), num_processes=4) == list(range(200))
    assert _no_child_is_left()


def test_no_copy_is_made_beside_threads() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        made = all_cores.results(_slow, range(100), num_processes=4)
    finally:
        end.set()
        thread.join()
    assert {process for _, process in made} == {_HERE}


def test_where_no_process_can_be_started_all_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError("too many processes")

    descriptors = Path("/proc/self/fd")
    num_open = len(list(descriptors.iterdir()))
    monkeypatch.setattr(os, "fork", refused)
    made = all_cores.results(_slow, range(100), num_processes=4)
    assert [square for square, _ in made] == [item * item for item in range(100)]
    assert {process for _, process in made} == {_HERE} and len(list(descriptors.iterdir())) == num_open


_PROGRAM = """
import os, pathlib, sys, time
from tunesmith.evaluate import all_cores

def work(item):
    if item > 20:
        pathlib.Path(sys.argv[1], str(os.getpid())).touch()
        time.sleep(60)
    time.sleep(0.002)

try:
    all_cores.results(work, range(100), num_processes=3)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_copies_end_with_the_process_however_that_ends(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(found := list(tmp_path.iterdir())) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said, complained = process.communicate(timeout=30)
    assert (said, complained) == ("interrupted\n" if number == signal.SIGINT else "", "")
    deadline = time.monotonic() + 30
    while any(_is_alive(int(path.name)) for path in found):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended; who waits for orphans has not looked yet
