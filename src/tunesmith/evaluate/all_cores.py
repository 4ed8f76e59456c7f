"""Judge many answers on all cores: this process begins, and copies of it help as soon as that will pay.

A copy is a fork. It holds the work and the items already, so nothing is sent to it but whose turn it is, and it is
there within milliseconds; a new interpreter would still be importing when ten thousand calls are judged. Copies are
made on Linux, by a process that runs one thread of Python's: of others a copy would inherit what they had locked.
Threads of libraries (numpy's) are let be: they hold nothing that judging needs.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, Self, TypeVar

from tunesmith.process import die_with_parent

Item = TypeVar("Item")
Made = TypeVar("Made")

_LOOK_SECONDS = 0.01  # how often is looked at how long the rest will take
_WORTH_SECONDS = 0.04  # a rest that takes longer is shared: a copy costs 5 to 10 ms
_MOST_SHARES = 256  # small, since some items take a thousand times as long as others; a share's number is one byte
_MOST_PROCESSES = 32


def results(work: Callable[[Item], Made], items: Sequence[Item], num_processes: int | None = None) -> list[Made]:
    """Return what `work` makes of each item, in the items' order, whoever did it.

    Args:
        work: must not change anything but what it returns, which is pickled.
        items: what is worked on.
        num_processes: how many may work at the same time, this one included; by default one per CPU there is to use.

    Raises:
        Exception: the first one that `work` raises, in the items' order.
    """
    made: list[Made] = []
    looked, num_before = time.perf_counter(), 0
    for item in items:
        made.append(work(item))
        seconds = time.perf_counter() - looked
        if seconds < _LOOK_SECONDS:
            continue
        expected = (len(items) - len(made)) * seconds / (len(made) - num_before)
        if expected > _WORTH_SECONDS and (num_copies := _num_copies(num_processes, expected)):
            return made + _shared(work, items[len(made) :], num_copies)
        looked, num_before = time.perf_counter(), len(made)
    return made


def _num_copies(num_processes: int | None, expected_seconds: float) -> int:
    """Return how many copies may be made, and are worth it."""
    if sys.platform != "linux" or _has_threads():
        return 0
    if num_processes is None:
        from tunesmith.hardware import num_cpus  # here, because its imports take as long as a hundred verdicts

        num_processes = num_cpus()
    return min(num_processes, _MOST_PROCESSES, int(expected_seconds / _WORTH_SECONDS) + 1) - 1


def _has_threads() -> bool:
    return threading.active_count() > 1


def _shared(work: Callable[[Item], Made], items: Sequence[Item], num_copies: int) -> list[Made]:
    num_shares = min(len(items), _MOST_SHARES)
    bounds = [number * len(items) // num_shares for number in range(num_shares + 1)]
    shares = [items[begin:end] for begin, end in itertools.pairwise(bounds)]
    queue, entrance = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, queue)
        os.write(entrance, bytes(range(num_shares)))
        os.close(entrance)
        copies = []
        with contextlib.suppress(OSError):  # no memory, or no more processes allowed: whoever is there does it
            for _ in range(num_copies):
                copies.append(stack.enter_context(_Copy(work, shares, queue)))
        made = _work_off(work, shares, queue)
        for copy in copies:
            made |= copy.answer()
    # What is missing was somebody's who died, or raises: here, in order.
    return [
        result
        for number, share in enumerate(shares)
        for result in (made[number] if number in made else map(work, share))
    ]


def _work_off(work: Callable[[Item], Made], shares: Sequence[Sequence[Item]], queue: int) -> dict[int, list[Made]]:
    """Return what became of the shares that were taken, without one that `work` raised for: it was the last."""
    made = {}
    with contextlib.suppress(Exception):
        for number in _taken(queue):
            made[number] = [work(item) for item in shares[number]]
    return made


def _taken(queue: int) -> Iterator[int]:
    while taken := os.read(queue, 1):
        yield taken[0]


class _Copy:
    """A copy of this process at work. A context manager: it is ended, and nothing is left of it."""

    def __init__(self, work: Callable[[Item], Made], shares: Sequence[Sequence[Item]], queue: int) -> None:
        self._answers, answers = os.pipe()
        try:
            with warnings.catch_warnings():  # of threads that are no threads of Python's
                warnings.simplefilter("ignore", DeprecationWarning)
                self._id = os.fork()
        except OSError:
            os.close(self._answers)
            os.close(answers)
            raise
        if self._id == 0:
            _live(work, shares, queue, answers)
        os.close(answers)

    def answer(self) -> dict[int, list[Made]]:
        """Wait for what it made, by share; nothing when it has died."""
        made: dict[int, list[Made]] = {}
        with (
            contextlib.suppress(EOFError, pickle.UnpicklingError),
            os.fdopen(self._answers, "rb", closefd=False) as file,
        ):
            made = pickle.load(file)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._answers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._id, signal.SIGKILL)  # whatever it still does, nobody waits for
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._id, 0)


def _live(work: Callable[[Item], Made], shares: Sequence[Sequence[Item]], queue: int, answers: int) -> NoReturn:
    """Be the copy. Does not return: what this process would do at its end is not for its copies to do."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # it ends at once and says nothing
        die_with_parent()
        gc.freeze()  # a collection would touch, and so copy, all the memory that is shared
        made = _work_off(work, shares, queue)
        with os.fdopen(answers, "wb") as file:
            pickle.dump(made, file, pickle.HIGHEST_PROTOCOL)
    finally:
        os._exit(0)
