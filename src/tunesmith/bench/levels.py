"""The levels of load that a recipe asks for, and how they are measured one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.bench.client import LevelRun, Target, run_level
from tunesmith.bench.summary import failures
from tunesmith.bench.traffic import Asking, Prompt, Request, moments
from tunesmith.errors import BenchError
from tunesmith.recipe.schema import Bench
from tunesmith.track.console import Progress, warn


@dataclass(frozen=True)
class Level:
    """One amount of load. `concurrency` is None in an open loop, where each request has its own moment."""

    name: str  # c16 | r4 | trace
    requests: tuple[Request, ...]
    concurrency: int | None = None
    rate: float | None = None


def levels_of(bench: Bench, prompts: Sequence[Prompt], asking: Asking, *, seed: int) -> list[Level]:
    """Return the levels in the order they are measured: rising concurrency, rising rates.

    Args:
        bench: what is asked for.
        prompts: at least one; used again when there are fewer than requests.
        asking: what requests ask for.
        seed: draws the moments of Poisson arrivals, each rate on its own.
    """
    asked = [prompts[index % len(prompts)] for index in range(bench.num_requests)]
    levels = []
    for concurrency in sorted(bench.concurrency):
        requests = tuple(asking.request(prompt) for prompt in asked)
        levels.append(Level(f"c{concurrency}", requests, concurrency=concurrency))
    for rate in sorted(bench.rates):
        due = moments(rate, len(asked), bench.arrivals, seed=seed)
        requests = tuple(asking.request(prompt, moment) for prompt, moment in zip(asked, due, strict=True))
        levels.append(Level(f"r{rate:g}", requests, rate=rate))
    return levels


def measure(target: Target, levels: Sequence[Level], *, num_warmup: int = 0) -> dict[str, LevelRun]:
    """Run every level against an OpenAI-compatible endpoint; return what each gave, by name.

    After a signal the level under way is the last one, and is there as far as it came.

    Raises:
        BenchError: not one request was answered.
    """
    results: dict[str, LevelRun] = {}
    for level in levels:
        warmup = [level.requests[index % len(level.requests)] for index in range(num_warmup)]
        with Progress(f"bench {level.name}", len(level.requests), "requests") as progress:
            result = run_level(
                target,
                level.requests,
                concurrency=level.concurrency,
                rate=level.rate,
                warmup=warmup,
                on_done=progress.advance,
            )
        results[level.name] = result
        for text in complaints(level.name, result):
            warn(text)
        if result.ended_by == "signal":
            break
    _raise_if_all_failed(target, results)
    return results


def was_stopped(results: dict[str, LevelRun]) -> bool:
    """Return whether a signal ended the measurement before its time."""
    return any(result.ended_by == "signal" for result in results.values())


def _raise_if_all_failed(target: Target, results: dict[str, LevelRun]) -> None:
    timings = [timing for result in results.values() for timing in result.timings]
    if any(not timing.failure for timing in timings) or (not timings and was_stopped(results)):
        return
    what = "no request came to an end"
    if timings:
        kinds = [(timing.failure, timing.detail) for timing in timings]
        kind, detail = max(set(kinds), key=kinds.count)
        count = kinds.count((kind, detail))
        what = f"not one of {len(timings)} requests was answered; {count} times: {kind}: {detail}"
    raise BenchError(what, where=target.url, do="look into the server's log")


_BUSY_CPU_FRACTION = 0.7
_SEVERAL_TOKENS = 1.1


def complaints(name: str, result: LevelRun) -> list[str]:
    """Return what a reader of a level's numbers must know."""
    found = []
    failed = failures(result)
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
        found.append(f"{name}: {failed.total()} of {len(result.timings)} requests failed ({kinds})")
    if result.is_partial:
        why = "the level's time limit" if result.ended_by == "limit" else "a signal"
        missing = f"{result.num_unfinished} requests in flight and {result.num_unsent} not sent"
        found.append(f"{name}: ended early by {why}, with {missing}")
    if result.client_cpu_fraction > _BUSY_CPU_FRACTION:
        share = f"{result.client_cpu_fraction:.0%}"
        found.append(f"{name}: the load generator itself used {share} of a core: times may be its own")
    answered = [timing for timing in result.timings if not timing.failure]
    if any(not timing.has_usage for timing in answered):
        found.append(f"{name}: the server reports no usage: output tokens are counted as stream events")
    num_tokens, num_events = sum(t.num_output_tokens or 0 for t in answered), sum(t.num_events for t in answered)
    if num_events and num_tokens > _SEVERAL_TOKENS * num_events:
        each = f"{num_tokens / num_events:.1f} tokens"
        found.append(f"{name}: the server sends {each} per event: inter-token latency is the time between events")
    return found
