"""The harness's process: started, followed, stopped; nothing of it outlives us."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.process import die_with_parent
from tunesmith.recipe.environment import redact
from tunesmith.track.console import Progress, say

_GRACE_SECONDS = 5.0  # between TERM and KILL
_POLL_SECONDS = 0.2
_NUM_LAST_LINES = 15
# tqdm: `Requesting API:  40%|████      | 4/10 [00:01<00:01,  4.00it/s]`
_BAR = re.compile(rb"(?P<what>[^|%\r\n]*):\s+\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<total>\d+)\s*\[")
_OF_THE_MODEL = (b"Requesting API", b"Running ")  # other bars tell of files read and prompts built


class HarnessFailed(Exception):
    """The process ended before its work was done; the message holds its last lines."""


def run(command: Sequence[str], log: Path, environment: dict[str, str], *, title: str) -> None:
    """Run the harness to its end, showing its progress.

    Args:
        command: the whole command line.
        log: receives everything it prints, appended.
        environment: variables on top of ours.
        title: whom the progress is about: `base`, `tuned`.

    Raises:
        HarnessFailed: it ended with another code than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        with log.open("ab") as file, Follower(title) as follower:
            for piece in _pieces(child):
                file.write(piece)
                file.flush()
                follower.feed(piece)
        code = child.wait()
    finally:
        _stop(child)
    if code != 0:
        raise HarnessFailed(follower.last_lines() + (f"\n    (ended by signal {-code})" if code < 0 else ""))


def _pieces(child: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield what a process prints until it has ended; what it has started may hold the pipe open for ever."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    while True:
        has_ended = child.poll() is not None
        readable, _, _ = select.select([descriptor], [], [], 0.0 if has_ended else _POLL_SECONDS)
        piece = os.read(descriptor, 1 << 16) if readable else b""
        if piece:
            yield piece
        elif readable or has_ended:
            return


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it has started."""
    for number, patience_seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=patience_seconds)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdout is not None:
        child.stdout.close()


class Follower:
    """Reads what the harness prints: its bars become ours, its last lines are kept."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rest = b""
        self._lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._doing = ""
        self._bar: Progress | None = None

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *ended: object) -> None:
        self._keep(self._rest)
        self._close()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        *whole, self._rest = re.split(rb"[\r\n]", self._rest + piece)
        if len(self._rest) > 1 << 16:
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            self._keep(line)

    def last_lines(self) -> str:
        """Return the end of what was printed, bars left out."""
        return redact("\n".join(f"    {line[:300]}" for line in self._lines)) or "    (it printed nothing)"

    def _keep(self, line: bytes) -> None:
        bar = _BAR.search(line)
        if bar is not None:
            if bar["what"].strip().startswith(_OF_THE_MODEL):
                self._show(int(bar["done"]), int(bar["total"]))
            return
        text = line.decode("utf-8", "replace").rstrip()
        if text.startswith("@ "):
            self._close()
            self._doing = text[2:]
            say(f"  lm_eval {self._title}: {self._doing}")
        elif text.strip():
            self._lines.append(text)

    def _show(self, done: int, total: int) -> None:
        if self._bar is None or self._bar.total != total or done < self._bar.done:
            self._close()
            task = self._doing.removeprefix("task ")
            self._bar = Progress(f"{self._title} {task}", total, "requests").__enter__()
        self._bar.advance(done - self._bar.done)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
