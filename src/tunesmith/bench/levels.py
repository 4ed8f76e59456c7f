"""The levels of load that a recipe asks for, and how they are measured one after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.bench.client import LevelRun, Target, run_level
from tunesmith.bench.made_up import Measure, prompt_of
from tunesmith.bench.trace import Recorded, prompt_from
from tunesmith.bench.traffic import Asking, Prompt, Request, moments
from tunesmith.errors import BenchError
from tunesmith.recipe.lengths import parse_lengths
from tunesmith.recipe.schema import Bench
from tunesmith.track.console import Progress

_WARMUP_TOKENS = 128


@dataclass(frozen=True)
class Level:
    """One amount of load. `concurrency` is None in an open loop, where each request has its own moment."""

    name: str  # c16 | r4 | trace
    requests: tuple[Request, ...]
    concurrency: int | None = None
    rate: float | None = None
    warmup: tuple[Request, ...] = ()


def num_prompts(bench: Bench) -> int:
    """Return how many prompts the closed loops and rates send, all of them different where that is possible.

    A server that remembers the beginnings of prompts would answer a repeated one faster.
    """
    num_levels = len(bench.concurrency) + len(bench.rates)
    return num_levels * (bench.num_requests + bench.num_warmup_requests)


def levels_of(bench: Bench, prompts: Sequence[Prompt], asking: Asking, *, seed: int) -> list[Level]:
    """Return closed loops by rising concurrency, then open loops by rising rates.

    Args:
        bench: what is asked for.
        prompts: taken in turn, from level to level; used again when there are fewer than `num_prompts`.
        asking: what requests ask for.
        seed: draws lengths of answers, and the moments of Poisson arrivals, the same ones at every rate but for scale.
    """
    generator = random.Random(seed)
    lengths = parse_lengths(bench.output_tokens) if bench.output_tokens is not None else None
    num_taken = 0

    def take(count: int, due: Sequence[float] | None = None) -> tuple[Request, ...]:
        nonlocal num_taken
        taken = [prompts[(num_taken + index) % len(prompts)] for index in range(count)]
        num_taken += count
        wanted = [lengths.draw(generator) if lengths else None for _ in taken]
        return tuple(
            asking.request(prompt, due[index] if due else 0.0, num_output_tokens=wanted[index])
            for index, prompt in enumerate(taken)
        )

    levels = []
    for concurrency in sorted(bench.concurrency):
        warmup, requests = take(bench.num_warmup_requests), take(bench.num_requests)
        levels.append(Level(f"c{concurrency}", requests, concurrency=concurrency, warmup=warmup))
    for rate in sorted(bench.rates):
        warmup = take(bench.num_warmup_requests)
        requests = take(bench.num_requests, moments(rate, bench.num_requests, bench.arrivals, seed=seed))
        levels.append(Level(f"r{rate:g}", requests, rate=rate, warmup=warmup))
    return levels


def trace_level(bench: Bench, trace: Sequence[Recorded], asking: Asking, measure: Measure, *, seed: int) -> Level:
    """Return the level `trace`: every recorded request at its moment, `trace_speed` times as fast."""
    generator = random.Random(f"trace {seed}")
    requests = tuple(
        asking.request(
            prompt_from(recorded, measure, generator),
            recorded.seconds / bench.trace_speed,
            num_output_tokens=recorded.output_tokens,
        )
        for recorded in trace
    )
    # Prompts of the trace are not for warming up: a server may remember them.
    words = measure.words_for(_WARMUP_TOKENS)
    others = [prompt_of("warm-up", words, generator) for _ in range(bench.num_warmup_requests)]
    return Level("trace", requests, warmup=tuple(asking.request(prompt) for prompt in others))


def measure(target: Target, levels: Sequence[Level]) -> dict[str, LevelRun]:
    """Run every level against an OpenAI-compatible endpoint; return what each gave, by name.

    After a signal the level under way is the last one, and is there as far as it came.

    Raises:
        BenchError: not one request was answered.
    """
    results: dict[str, LevelRun] = {}
    for level in levels:
        with Progress(f"bench {level.name}", len(level.requests), "requests", calm=True) as progress:
            results[level.name] = run_level(
                target,
                level.requests,
                concurrency=level.concurrency,
                rate=level.rate,
                warmup=level.warmup,
                on_done=progress.advance,
            )
        if results[level.name].ended_by == "signal":
            break
    _raise_if_all_failed(target, results)
    return results


def was_stopped(results: dict[str, LevelRun]) -> bool:
    """Return whether a signal ended the measurement before its time."""
    return any(result.ended_by == "signal" for result in results.values())


def _raise_if_all_failed(target: Target, results: dict[str, LevelRun]) -> None:
    timings = [timing for result in results.values() for timing in result.timings]
    if any(not timing.failure for timing in timings) or was_stopped(results):
        return
    what = "no request came to an end"
    if timings:
        kinds = [(timing.failure, timing.detail) for timing in timings]
        kind, detail = max(set(kinds), key=kinds.count)
        count = kinds.count((kind, detail))
        what = f"not one of {len(timings)} requests was answered; {count} times: {kind}: {detail}"
    raise BenchError(what, where=target.url, do="look into the server's log")
