"""From single requests to a level's numbers.

Percentiles are linear between the two nearest ranks (Hyndman and Fan's type 7, numpy's default): p of n sorted values
lies at rank (n - 1) · p. Times are over answered requests; failures are counted beside them, by kind. Throughput is
what answered requests produced, over the time from the first request of the level to the end of the last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.bench.client import LevelRun, Timing
from tunesmith.recipe.schema import Targets

_PERCENTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LevelSummary = dict[str, float | int | None]


def summarise(run: LevelRun) -> LevelSummary:
    """Return the numbers of one level; a time that nothing was measured for is None."""
    answered = [timing for timing in run.timings if not timing.failure]
    failures = Counter(timing.failure for timing in run.timings if timing.failure)
    num_output = sum(timing.num_output_tokens or 0 for timing in answered)
    wall = run.wall_seconds
    summary: LevelSummary = {
        "concurrency": run.concurrency,
        "num_requests": len(run.timings),
        "num_failed": len(run.timings) - len(answered),
        "wall_seconds": round(wall, 6),
        "requests_per_second": _rounded(len(answered) / wall if wall else None),
        "output_tokens_per_second": _rounded(num_output / wall if wall else None),
        "mean_output_tokens": _rounded(_mean([timing.num_output_tokens or 0 for timing in answered])),
        "mean_prompt_tokens": _rounded(
            _mean([t.num_prompt_tokens for t in answered if t.num_prompt_tokens is not None])
        ),
        "num_without_usage": sum(not timing.has_usage for timing in answered),
        "client_cpu_fraction": round(run.client_cpu_fraction, 4),
    }
    summary |= {f"failed_{kind}": count for kind, count in sorted(failures.items())}
    for name, seconds in _times(answered).items():
        summary |= _statistics(name, [1000 * value for value in seconds])
    return summary


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return a percentile of at least one value, linear between the nearest ranks."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * fraction
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def judge(targets: Targets, levels: dict[str, LevelSummary]) -> list[dict[str, Any]]:
    """Return each target of the recipe against each level. What was not measured does not pass."""
    verdicts: list[dict[str, Any]] = []
    for name, at_most in (("ttft_p95_ms", True), ("e2e_p95_ms", True), ("output_tokens_per_second", False)):
        limit = getattr(targets, name)
        if limit is None:
            continue
        for level, summary in levels.items():
            value = summary.get(name)
            passed = value is not None and (value <= limit if at_most else value >= limit)
            verdicts.append({"target": name, "limit": limit, "level": level, "value": value, "passed": passed})
    return verdicts


def _times(answered: list[Timing]) -> dict[str, list[float]]:
    return {
        "ttft": [timing.ttft for timing in answered if timing.ttft is not None],
        "e2e": [timing.e2e for timing in answered if timing.e2e is not None],
        "tpot": [timing.tpot for timing in answered if timing.tpot is not None],
        "itl": [gap for timing in answered for gap in timing.itl],
    }


def _statistics(name: str, values: list[float]) -> LevelSummary:
    summary: LevelSummary = {f"{name}_mean_ms": _rounded(_mean(values))}
    for word, fraction in _PERCENTILES.items():
        summary[f"{name}_{word}_ms"] = _rounded(percentile(values, fraction) if values else None)
    return summary


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
