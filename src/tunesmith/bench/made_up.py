"""Prompts of a wanted length: words in random order, as many as the endpoint counts for so many tokens.

How many tokens a word has, and how many the chat template adds, is the server's business. So it is asked: two probes
of different lengths give both numbers. Most of the words are one token in most vocabularies. Every prompt begins with
words of its own: a server that remembers prompts cannot answer from memory, unless the trace says that prompts began
alike.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.bench.client import Target
from tunesmith.bench.http import Address, Connection, RawAnswer, request
from tunesmith.bench.stream import read_answer
from tunesmith.bench.traffic import Asking, Prompt
from tunesmith.errors import BenchError
from tunesmith.recipe.lengths import parse_lengths

# Common, short and without relatives: one token each, with the space before it, in the vocabularies of Llama, Qwen,
# Mistral, Gemma, Phi and GPT-2.
_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name president team minute idea kid body information back
parent face others level office door health person art war history party result change morning reason research girl
guy moment air teacher force education foot boy age policy music market sense nation plan college interest death
experience effect use class control field development role effort rate heart drug show leader light voice wife
"""
_WORDS = _TEXT.split()
_PROBE_WORDS = (16, 144)


@dataclass(frozen=True)
class Measure:
    """How an endpoint counts: a prompt of n words has `fixed + per_word * n` tokens."""

    fixed: float = 0.0
    per_word: float = 1.0

    def words_for(self, num_tokens: int) -> int:
        """Return how many words make a prompt of about so many tokens; at least one."""
        return max(1, round((num_tokens - self.fixed) / self.per_word))


def prompts(written: int | str, count: int, measure: Measure, *, seed: int) -> list[Prompt]:
    """Return prompts whose lengths are drawn as a recipe writes them (`recipe.lengths`)."""
    generator, lengths = random.Random(f"prompts {seed}"), parse_lengths(written)
    return [
        prompt_of(f"made up:{index}", measure.words_for(lengths.draw(generator)), generator) for index in range(count)
    ]


def prompt_of(name: str, num_words: int, generator: random.Random, *, begins_with: str = "") -> Prompt:
    """Return a prompt of so many words; those of `begins_with` count."""
    missing = num_words - len(begins_with.split())
    text = " ".join([*([begins_with] if begins_with else []), *generator.choices(_WORDS, k=max(0, missing))])
    return Prompt(name, ({"role": "user", "content": text},))


def words_of(seed: object, count: int) -> str:
    """Return the same words for the same seed."""
    return " ".join(random.Random(repr(seed)).choices(_WORDS, k=count))


def measure_words(target: Target, asking: Asking) -> Measure:
    """Ask the endpoint how many tokens its prompts of two lengths have.

    Without usage in its answers, a word is taken for a token.

    Raises:
        BenchError: it does not answer.
    """
    generator = random.Random(0)
    probes = [prompt_of("probe", count, generator) for count in _PROBE_WORDS]
    (few, many), (first, second) = _PROBE_WORDS, asyncio.run(_counted(target, asking, probes))
    if first is None or second is None or second <= first:
        return Measure()
    per_word = (second - first) / (many - few)
    return Measure(first - per_word * few, per_word)


async def _counted(target: Target, asking: Asking, probes: Sequence[Prompt]) -> list[int | None]:
    address = Address.of(target.url)
    head = address.head("POST", asking.path, target.headers())
    connection = Connection(address)
    short = dataclasses.replace(asking, max_tokens=1)
    counts: list[int | None] = []
    for prompt in probes:
        answer = RawAnswer()
        try:
            async with asyncio.timeout(target.timeout_seconds):
                await connection.post(request(head, short.request(prompt).body), answer)
        except TimeoutError:
            answer.problem, answer.detail = "timeout", f"no answer within {target.timeout_seconds:g} s"
        timing, output = read_answer("probe", answer, 0.0)
        if timing.failure and timing.failure != "empty":
            raise BenchError(f"the endpoint does not answer: {timing.failure}: {timing.detail}", where=target.url)
        told = output.usage.get("prompt_tokens")
        counts.append(told if isinstance(told, int) else None)
    connection.close()
    return counts
