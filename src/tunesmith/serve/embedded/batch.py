"""Continuous batching: one thread owns the model; answers join and leave between two steps.

That thread should be the one that loaded it: OpenMP keeps a pool of threads for every thread that computes, and once
there are more of them than cores, they no longer spin between two products, which costs a fifth of the speed.

A step gives every row that is being answered one token, and reads on in the prompts of those that are not there yet, up
to a bounded number of tokens: a long prompt never makes the others wait long. Keys and values are bounded, too: when
rows outgrow them, the newest one gives up its slot and is read again later; it goes on where it was.

Requests take turns in the queue, so that one with a hundred prompts does not keep out one with a single one.

Shapes: R rows, T tokens of a step, V vocabulary.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch

from tunesmith.serve.embedded.sampling import choose, logprobs_of
from tunesmith.serve.embedded.sequence import Answer, Output, TokenLogprob
from tunesmith.serve.embedded.slots import Slots, Step

Delivery = list[tuple[Answer, Output]]
_SHORTEST_SHARED_PREFIX = 8  # below, copying costs as much as computing


@dataclass(frozen=True)
class Limits:
    """How much is worked on at once.

    Attributes:
        max_rows: answers under way.
        max_cells: rows × columns that keys and values may come to.
        cell_bytes: what one of these takes, for telling.
        step_tokens: tokens of a step while somebody waits for their next one. A CPU's products are near their full
            speed from here on, and a step stays short.
        idle_step_tokens: tokens of a step while nobody does.
    """

    max_rows: int = 32
    max_cells: int = 1 << 20
    cell_bytes: int = 0
    step_tokens: int = 128
    idle_step_tokens: int = 512


@dataclass(eq=False)
class _Row:
    """An answer in a slot. Those of its tokens that are in the slot's columns count as read."""

    answer: Answer
    num_read: int = 0
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def wants_prompt(self) -> bool:
        return self.answer.sampling.prompt_logprobs and not self.answer.generated

    @property
    def num_unread(self) -> int:
        return self.answer.num_tokens - self.num_read

    def unread(self, count: int) -> list[int]:
        answer, begin = self.answer, self.num_read
        num_prompt = len(answer.prompt)
        if begin >= num_prompt:
            return answer.generated[begin - num_prompt : begin - num_prompt + count]
        return (answer.prompt[begin : begin + count] + answer.generated)[:count]


class Batch:
    """Generates answers in the thread that calls `run`; everything else may be called from any thread.

    Args:
        model: a causal language model in evaluation mode, with the attention of `attention`.
        limits: bounds of the batch.

    Attributes:
        deliver: called by `run`, once per step, with what each answer gained.
    """

    def __init__(self, model: Any, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self.deliver: Callable[[Delivery], None] = lambda delivery: None
        self._wake = threading.Condition(threading.RLock())
        self._waiting: collections.deque[collections.deque[Answer]] = collections.deque()
        self._closing = False
        # In the order of their slots: first those with one token to read, then those whose prompts are being read.
        self._rows: list[_Row] = []
        self._slots = Slots(limits.max_rows, limits.max_cells)
        self._held = [list[int]() for _ in range(limits.max_rows)]  # the tokens in each slot, in use or not

    def submit(self, answers: list[Answer]) -> None:
        """Queue the answers of one request; their tokens come through `deliver`."""
        with self._wake:
            self._waiting.append(collections.deque(answers))
            self._wake.notify()

    def cancel(self, answer: Answer) -> None:
        """Give up an answer; its slot is free before the next step."""
        answer.cancelled = True

    def close(self) -> None:
        """Have `run` return before the next step; unfinished answers get nothing more."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Return how many answers are running and how many wait."""
        return len(self._rows), sum(len(answers) for answers in list(self._waiting))

    def run(self) -> None:
        """Work until `close`."""
        with torch.inference_mode():
            while self._wait():
                try:
                    self._drop([row for row in self._rows if row.answer.cancelled])
                    self._admit()
                    if self._rows:
                        self._step()
                except Exception as error:  # noqa: BLE001 - out of memory, a model's bug: answers fail, the server lives
                    self._fail(error)

    def _wait(self) -> bool:
        """Return once there is work: False when it is time to end."""
        with self._wake:
            while not (self._closing or self._waiting or self._rows):
                self._wake.wait()
            return not self._closing

    def _admit(self) -> None:
        """Give slots to waiting answers, one of each request in turn, as long as there is room."""
        while len(self._rows) < self._limits.max_rows:
            with self._wake:
                answer = self._next_waiting()
                if answer is None or not (self._has_room(len(self._rows) + 1, answer.num_tokens + 1) or not self._rows):
                    return
                queue = self._waiting.popleft()
                self._waiting.append(queue)
                queue.popleft()
            self._rows.append(_Row(answer))
            self._rows[-1].num_read = self._reuse(self._rows[-1])

    def _next_waiting(self) -> Answer | None:
        """Return the answer whose turn it is, and leave it in the queue."""
        while self._waiting:
            queue = self._waiting[0]
            while queue and queue[0].cancelled:
                queue.popleft()
            if queue:
                return queue[0]
            self._waiting.popleft()
        return None

    def _has_room(self, num_rows: int, num_columns: int) -> bool:
        """Make room for so many rows, one of which has that many tokens; False when it is out of bounds."""
        longest = max([num_columns, *(row.answer.num_tokens for row in self._rows)])
        before = (self._slots.num_slots, self._slots.num_columns)
        has_room = self._slots.make_room(num_rows, longest)
        if before != (self._slots.num_slots, self._slots.num_columns):
            for slot, ids in enumerate(self._held):
                self._held[slot] = ids[: self._slots.num_columns] if slot < self._slots.num_slots else []
        return has_room

    def _reuse(self, row: _Row) -> int:
        """Copy what any slot holds of a newcomer's beginning into its own, the last one; return how many tokens."""
        target = len(self._rows) - 1
        ids = row.answer.prompt + row.answer.generated
        shared, source = max((_num_shared(ids, held), slot == target, slot) for slot, held in enumerate(self._held))[
            ::2
        ]
        shared = min(shared, len(ids) - 1)
        if shared < _SHORTEST_SHARED_PREFIX or row.wants_prompt:  # the latter wants every position's logits
            shared = 0
        elif source != target:
            self._slots.copy(source, target, shared)
        self._held[target] = ids[:shared]
        return shared

    def _step(self) -> None:
        """Read the next tokens, choose those that follow, hand them over, and let the finished answers leave."""
        while not self._has_room(len(self._rows), 0):
            self._give_up_newest()
        single = self._num_single
        budget = self._limits.step_tokens if single else self._limits.idle_step_tokens
        counts = [1] * single
        for row in self._rows[single:]:
            counts.append(min(row.num_unread, budget - sum(counts)))
            if counts[-1] <= 0:
                counts.pop()
                break
        rows = self._rows[: len(counts)]
        logits = self._forward(rows, counts, single)
        for slot, (row, count) in enumerate(zip(rows, counts, strict=True)):
            self._held[slot] += row.unread(count)
            row.num_read += count
        ready = [i for i, row in enumerate(rows) if not row.num_unread]
        if ready:
            self._take([rows[i] for i in ready], logits if len(ready) == len(rows) else logits[ready])

    @property
    def _num_single(self) -> int:
        """How many rows, from the first on, have no more than one token to read."""
        return sum(1 for _ in takewhile(lambda row: row.num_unread <= 1, self._rows))

    def _give_up_newest(self) -> None:
        if len(self._rows) == 1:
            raise MemoryError("keys and values of one answer are beyond the bound of the cache")
        answer = self._rows.pop().answer
        with self._wake:
            self._waiting.appendleft(collections.deque([answer]))

    def _forward(self, rows: list[_Row], counts: list[int], single: int) -> torch.Tensor:
        """Read each row's next tokens; return the logits (R, V) behind the last one of each."""
        ids = [token_id for row, count in zip(rows, counts, strict=True) for token_id in row.unread(count)]
        positions = [
            at for row, count in zip(rows, counts, strict=True) for at in range(row.num_read, row.num_read + count)
        ]
        keep, lasts, end = list[int](), list[int](), 0
        for row, count in zip(rows, counts, strict=True):
            keep += range(end if row.wants_prompt else end + count - 1, end + count)
            lasts.append(len(keep) - 1)
            end += count
        device = self._model.device
        lengths = [row.answer.num_tokens for row in rows[:single]]
        chunks = [(slot, rows[slot].num_read, counts[slot]) for slot in range(single, len(rows))]
        logits: torch.Tensor = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=0 if len(keep) == len(ids) else torch.tensor(keep, device=device),
            step=Step(self._slots, lengths, chunks, device),
        ).logits[0]
        begin = 0
        for row, count, last in zip(rows, counts, lasts, strict=True):
            if row.wants_prompt:
                self._score_prompt(row, count, logits[begin : last + 1])
            begin = last + 1
        return logits if len(lasts) == logits.shape[0] else logits[lasts]

    def _score_prompt(self, row: _Row, count: int, logits_TV: torch.Tensor) -> None:
        """Note the log-probability of each prompt token that follows one of those just read."""
        prompt, begin = row.answer.prompt, row.num_read
        if begin == 0:
            row.prompt_logprobs.append(TokenLogprob(prompt[0], None))
        following = prompt[begin + 1 : begin + count + 1]
        num_top = [row.answer.sampling.num_logprobs or 0] * len(following)
        if following:
            row.prompt_logprobs += logprobs_of(logits_TV[: len(following)], following, num_top)
        if begin + count == len(prompt):
            row.answer.add_prompt_logprobs(row.prompt_logprobs)

    def _take(self, rows: list[_Row], logits_RV: torch.Tensor) -> None:
        """Choose a token for each of the rows, hand the text over, and let the finished ones leave."""
        answers = [row.answer for row in rows]
        chosen = choose(logits_RV, answers)
        scored = [i for i, answer in enumerate(answers) if answer.sampling.num_logprobs is not None]
        logprobs: dict[int, TokenLogprob] = {}
        if scored:
            num_top = [answers[i].sampling.num_logprobs or 0 for i in scored]
            found = logprobs_of(logits_RV[scored], [chosen[i] for i in scored], num_top)
            logprobs = dict(zip(scored, found, strict=True))
        delivery: Delivery = []
        for i, answer in enumerate(answers):
            output = answer.push(chosen[i], logprobs.get(i)) if answer.sampling.max_tokens else answer.finish_empty()
            if output.text or output.finish_reason or output.logprobs:
                delivery.append((answer, output))
        self._drop([row for row in rows if row.answer.finish_reason])
        if delivery:
            self.deliver(delivery)

    def _drop(self, leaving: list[_Row]) -> None:
        """Free the slots of answers that are done or given up; others move up, so that the order of slots holds."""
        for row in leaving:
            slot, last_single = self._rows.index(row), self._num_single - 1
            if slot < last_single:
                self._move(last_single, slot)
                slot = last_single
            self._move(len(self._rows) - 1, slot)
            self._rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._slots.copy(source, target, self._rows[source].num_read)
            self._rows[target], self._held[target] = self._rows[source], list(self._held[source])

    def _fail(self, error: Exception) -> None:
        broken = [row.answer for row in self._rows]
        self._rows, self._held = [], [[] for _ in self._held]
        self._slots.clear()
        message = f"generation failed: {type(error).__name__}: {error}"
        self.deliver([(answer, Output(error=message)) for answer in broken])


def _num_shared(first: list[int], second: list[int]) -> int:
    """Return how many tokens two lists have in common at their beginning."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
