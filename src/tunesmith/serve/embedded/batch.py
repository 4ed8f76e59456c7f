"""Continuous batching: one thread owns the model; answers join and leave the batch between two steps.

A step continues every row by one token. Newcomers are first run over their prompts together, left-padded, then join, in
the order in which they came. The batch's keys and values are bounded: an answer that could outgrow the bound waits
until rows have left.

Shapes: R rows, T tokens of a prompt, C columns of the cache, V vocabulary.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.serve.embedded.cache import RowCache
from tunesmith.serve.embedded.sampling import Chooser, logprob_of
from tunesmith.serve.embedded.sequence import Answer, Output, TokenLogprob

Delivery = list[tuple[Answer, Output]]


@dataclass(frozen=True)
class Limits:
    """How much is worked on at once."""

    max_rows: int = 32
    max_cells: int = 1 << 20  # rows × columns that the cache may come to
    prefill_tokens: int = 4096  # padded prompt tokens per pass, so that running rows never wait long


class Batch:
    """Generates answers in a thread of its own.

    Args:
        model: a causal language model in evaluation mode.
        num_layers: its attention layers.
        limits: bounds of the batch.
        deliver: called in the thread, once per step, with what each answer gained.
    """

    def __init__(self, model: Any, num_layers: int, limits: Limits, deliver: Callable[[Delivery], None]) -> None:
        self._model, self._num_layers, self._limits, self._deliver = model, num_layers, limits, deliver
        self._device = model.device
        self._wake = threading.Condition()
        self._waiting: collections.deque[Answer] = collections.deque()
        self._closing = False
        self._rows: list[Answer] = []
        self._cache: RowCache | None = None
        self._chooser = Chooser()
        self._thread = threading.Thread(target=self._work, name="batch", daemon=True)
        self._thread.start()

    def submit(self, answers: list[Answer]) -> None:
        """Queue answers; their tokens come through `deliver`."""
        with self._wake:
            self._waiting.extend(answers)
            self._wake.notify()

    def cancel(self, answer: Answer) -> None:
        """Give up an answer; its row is free before the next step."""
        answer.cancelled = True

    def close(self) -> None:
        """Stop the thread; unfinished answers get nothing more."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """Return how many answers are running and how many wait."""
        return len(self._rows), len(self._waiting)

    def _work(self) -> None:
        with torch.inference_mode():
            while (newcomers := self._next_newcomers()) is not None:
                try:
                    self._turn(newcomers)
                except Exception as error:  # noqa: BLE001 - out of memory, a model's bug: answers fail, the server lives
                    self._fail(newcomers, error)

    def _turn(self, newcomers: list[Answer]) -> None:
        self._drop([row for row in self._rows if row.cancelled])
        if newcomers:
            self._prefill(newcomers)
        elif self._rows:
            self._step()

    def _next_newcomers(self) -> list[Answer] | None:
        """Wait for work; return who joins now (possibly nobody), or None when it is time to end."""
        with self._wake:
            while not (self._closing or self._waiting or self._rows):
                self._wake.wait()
            if self._closing:
                return None
            return self._admissible()

    def _admissible(self) -> list[Answer]:
        """Take from the queue, in order, as many as fit beside the running rows."""
        taken: list[Answer] = []
        most = max((row.most_tokens for row in self._rows), default=0)
        longest = 0
        while self._waiting and len(self._rows) + len(taken) < self._limits.max_rows:
            answer = self._waiting[0]
            if answer.cancelled:
                self._waiting.popleft()
                continue
            most, longest = max(most, answer.most_tokens), max(longest, len(answer.prompt))
            cells = most * (len(self._rows) + len(taken) + 1)
            is_first = not self._rows and not taken
            if not is_first and cells > self._limits.max_cells:
                break
            if taken and longest * (len(taken) + 1) > self._limits.prefill_tokens:
                break
            # Logits of a whole prompt are large: one prompt at a time.
            if taken and (answer.sampling.prompt_logprobs or taken[0].sampling.prompt_logprobs):
                break
            taken.append(self._waiting.popleft())
        return taken

    def _prefill(self, newcomers: list[Answer]) -> None:
        """Run the prompts, choose each first token, and let the rows join."""
        lengths = [len(answer.prompt) for answer in newcomers]
        longest = max(lengths)
        ids_RT = torch.zeros((len(newcomers), longest), dtype=torch.long)
        for row, answer in enumerate(newcomers):
            ids_RT[row, longest - lengths[row] :] = torch.tensor(answer.prompt)
        mask_RT = torch.arange(longest)[None] >= longest - torch.tensor(lengths)[:, None]
        positions_RT = (mask_RT.long().cumsum(dim=-1) - 1).clamp(min=0)
        wants_prompt = any(answer.sampling.prompt_logprobs for answer in newcomers)
        cache = RowCache(self._num_layers, len(newcomers))
        logits_RTV = self._forward(ids_RT, mask_RT, positions_RT, cache, keep=0 if wants_prompt else 1)
        cache.advance(longest)
        for row, answer in enumerate(newcomers):
            if answer.sampling.prompt_logprobs:
                answer.add_prompt_logprobs(_prompt_logprobs(answer, logits_RTV[row, longest - lengths[row] :]))
        if self._cache is None:
            self._cache = cache
        else:
            self._cache.join(cache)
        self._rows += newcomers
        self._take(newcomers, logits_RTV[:, -1])

    def _step(self) -> None:
        """Continue every row by one token."""
        assert self._cache is not None
        lengths = torch.tensor([row.num_tokens for row in self._rows])
        num_columns = self._cache.num_columns + 1
        ids_R1 = torch.tensor([[row.generated[-1]] for row in self._rows])
        mask_RC = torch.arange(num_columns)[None] >= num_columns - lengths[:, None]
        self._cache.reserve(1)
        logits_RTV = self._forward(ids_R1, mask_RC, lengths[:, None] - 1, self._cache, keep=1)
        self._cache.advance(1)
        self._take(self._rows, logits_RTV[:, -1])

    def _forward(
        self, ids_RT: torch.Tensor, mask_RC: torch.Tensor, positions_RT: torch.Tensor, cache: RowCache, *, keep: int
    ) -> torch.Tensor:
        has_padding = not bool(mask_RC.all())
        result: torch.Tensor = self._model(
            input_ids=ids_RT.to(self._device),
            # Without padding the model may use a faster kernel.
            attention_mask=mask_RC.to(self._device) if has_padding else None,
            position_ids=positions_RT.to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return result

    def _take(self, answers: list[Answer], logits_RV: torch.Tensor) -> None:
        """Choose a token for each of the answers, hand the text over, and let the finished ones leave."""
        chosen = self._chooser.choose(logits_RV, answers)
        delivery: Delivery = []
        for row, (answer, token_id) in enumerate(zip(answers, chosen, strict=True)):
            if answer.sampling.max_tokens == 0:
                delivery.append((answer, answer.finish_empty()))
                continue
            wanted = answer.sampling.num_logprobs
            logprob = None if wanted is None else logprob_of(logits_RV[row], token_id, wanted)
            output = answer.push(token_id, logprob)
            if output.text or output.finish_reason or output.logprobs:
                delivery.append((answer, output))
        self._drop([answer for answer in answers if answer.finish_reason])
        if delivery:
            self._deliver(delivery)

    def _drop(self, answers: list[Answer]) -> None:
        """Free the rows of answers that are done or given up."""
        if not answers:
            return
        assert self._cache is not None
        for answer in answers:
            row = self._rows.index(answer)
            self._cache.remove(row)
            self._rows[row] = self._rows[-1]
            self._rows.pop()
            self._chooser.forget(answer)
        if not self._rows:
            self._cache = None
            return
        # A row's newest token is not in the cache yet: the next step puts it there.
        self._cache.trim(max(row.num_tokens for row in self._rows) - 1)

    def _fail(self, newcomers: list[Answer], error: Exception) -> None:
        broken = list(dict.fromkeys([*self._rows, *newcomers]))
        self._rows, self._cache = [], None
        for answer in broken:
            self._chooser.forget(answer)
        message = f"generation failed: {type(error).__name__}: {error}"
        self._deliver([(answer, Output(error=message)) for answer in broken])


def _prompt_logprobs(answer: Answer, logits_TV: torch.Tensor) -> list[TokenLogprob]:
    """Return the log-probability of each prompt token given those before it."""
    num_top = answer.sampling.num_logprobs or 0
    found = [TokenLogprob(answer.prompt[0], None)]
    found += [logprob_of(logits_TV[t], answer.prompt[t + 1], num_top) for t in range(len(answer.prompt) - 1)]
    return found
