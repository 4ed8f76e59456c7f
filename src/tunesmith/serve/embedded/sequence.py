"""One answer in the making: what was asked, what has been generated, and its text so far. No tensors here."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.serve.embedded.forced import Guide

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop."""

    max_tokens: int
    temperature: float = 1.0  # 0 = the most likely token, always
    top_p: float = 1.0
    top_k: int = 0  # 0 = all
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # alternatives to report per token; None = no log-probabilities
    prompt_logprobs: bool = False  # report them for the prompt's tokens, too


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability before temperature, and its most likely rivals (itself among them or not)."""

    token_id: int
    logprob: float | None  # None for the first token of a prompt
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Output:
    """What one step added to an answer."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None  # stop | length
    error: str = ""


class GrowingText:
    """Text of a growing list of ids, given out only as far as it can no longer change.

    A character may take several tokens, and what looks like the beginning of a stop string may become one.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...]) -> None:
        self._decode, self._stop = decode, stop
        self._ids: list[int] = []
        # Ids before `_start` are done with; those before `_read` are in the text already and give the rest its context
        # (a SentencePiece decoder strips the space before the first id only).
        self._start = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add an id and return the text that became certain."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if now.endswith("\ufffd") and len(self._ids) - self._read < 8:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """Return what was held back."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._read])
        rest = self._decode(self._ids[self._start :])[len(before) :]
        self._start = self._read = len(self._ids)
        text = self._release(rest)
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Answer:
    """A request's place in the batch.

    Args:
        prompt: token ids, at least one.
        eos_ids: ids that end the answer.
        decode: ids to text, special tokens kept or not as the request needs.
        guide: the form that the answer must have; it ends when that is complete.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        eos_ids: frozenset[int],
        decode: Decode,
        guide: Guide | None = None,
    ) -> None:
        assert prompt, "a prompt without a token"
        self.prompt, self.sampling, self.guide = prompt, sampling, guide
        self.generated: list[int] = []
        self.cancelled = False
        self.finish_reason: str | None = None
        self.random = random.Random(sampling.seed).random  # None: from the system's entropy
        self._eos_ids = eos_ids
        self._text = GrowingText(decode, sampling.stop)
        self._logprobs: list[TokenLogprob] = []

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt included; the last one is not in the cache yet."""
        return len(self.prompt) + len(self.generated)

    def push(self, token_id: int, logprob: TokenLogprob | None) -> Output:
        """Take the next token; return what became certain, with the reason when this was the last."""
        self.generated.append(token_id)
        ended = token_id in self._eos_ids and not self.sampling.ignore_eos and self.guide is None
        text = "" if ended else self._text.push(token_id)
        if logprob is not None and not ended:
            self._logprobs.append(logprob)
        if ended or self._text.stopped or (self.guide is not None and self.guide.is_done):
            self.finish_reason = "stop"
        elif len(self.generated) >= self.sampling.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason:
            text += self._text.finish()
            # The last held-back characters may have completed a stop string.
            self.finish_reason = "stop" if self._text.stopped else self.finish_reason
        return Output(text, self._take_logprobs(text), self.finish_reason)

    def finish_empty(self) -> Output:
        """End an answer that was asked to have no token."""
        self.finish_reason = "length"
        return Output(finish_reason="length", logprobs=self._take_logprobs(""))

    def add_prompt_logprobs(self, logprobs: list[TokenLogprob]) -> None:
        """Take the prompt's log-probabilities, before the first token of the answer comes."""
        self._logprobs += logprobs

    def _take_logprobs(self, text: str) -> list[TokenLogprob]:
        if not text and not self.finish_reason:
            return []
        taken, self._logprobs = self._logprobs, []
        return taken
