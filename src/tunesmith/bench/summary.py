"""From single requests to a level's numbers.

Percentiles are linear between the two nearest ranks (Hyndman and Fan's type 7, numpy's default): p of n sorted values
lies at rank (n - 1) · p.

Failed requests have no latency, so the times are over answered requests; a server that fails its slow requests would
look fast by them alone. Three numbers therefore always count every request that ended, and stand beside the times:
`failed_fraction`, `good_fraction` (answered within every latency target) and `good_requests_per_second` (goodput).
Throughput is what answered requests produced, over the time from the level's begin to the end of its last request.
Requests still in flight when a level was ended early are in none of these; `num_unfinished` and `num_unsent` count what
is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.bench.client import LevelRun
from tunesmith.bench.stream import Timing
from tunesmith.recipe.schema import Targets

PERCENTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LevelSummary = dict[str, float | int | None]

_AT_MOST = ("ttft_p95_ms", "e2e_p95_ms", "tpot_p95_ms")
_AT_LEAST = ("output_tokens_per_second", "good_fraction")


def summarise(run: LevelRun, targets: Targets | None = None) -> LevelSummary:
    """Return the numbers of one level; a time that nothing was measured for is None."""
    answered = [timing for timing in run.timings if not timing.failure]
    num_good = sum(_is_good(timing, targets or Targets()) for timing in answered)
    num_output = sum(timing.num_output_tokens or 0 for timing in answered)
    num_events = sum(timing.num_events for timing in answered)
    wall, total = run.wall_seconds, len(run.timings)
    summary: LevelSummary = {
        "concurrency": run.concurrency,
        "rate": run.rate,
        "num_requests": total,
        "num_failed": total - len(answered),
        "failed_fraction": _ratio(total - len(answered), total),
        "num_good": num_good,
        "good_fraction": _ratio(num_good, total),
        "good_requests_per_second": _ratio(num_good, wall),
        "num_unfinished": run.num_unfinished,
        "num_unsent": run.num_unsent,
        "wall_seconds": round(wall, 6),
        "requests_per_second": _ratio(len(answered), wall),
        "output_tokens_per_second": _ratio(num_output, wall),
        "mean_output_tokens": _rounded(_mean([timing.num_output_tokens or 0 for timing in answered])),
        "mean_prompt_tokens": _rounded(
            _mean([t.num_prompt_tokens for t in answered if t.num_prompt_tokens is not None])
        ),
        "tokens_per_event": _ratio(num_output, num_events),
        "num_without_usage": sum(not timing.has_usage for timing in answered),
        "client_cpu_fraction": round(run.client_cpu_fraction, 4),
    }
    if run.concurrency is None:
        late = [1000 * timing.sent_late for timing in run.timings]
        summary["sent_late_p99_ms"] = _rounded(percentile(late, 0.99) if late else None)
    summary |= {f"failed_{kind}": count for kind, count in sorted(failures(run).items())}
    for name, seconds in _times(answered).items():
        summary |= _statistics(name, [1000 * value for value in seconds])
    return summary


def failures(run: LevelRun) -> Counter[str]:
    """Return how many requests failed, by kind."""
    return Counter(timing.failure for timing in run.timings if timing.failure)


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return a percentile of at least one value, linear between the nearest ranks."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * fraction
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def judge(targets: Targets, levels: dict[str, LevelSummary]) -> list[dict[str, Any]]:
    """Return each target of the recipe against each level. What was not measured, or not to its end, does not pass."""
    verdicts: list[dict[str, Any]] = []
    for name in (*_AT_MOST, *_AT_LEAST):
        limit = getattr(targets, name)
        if limit is None:
            continue
        for level, summary in levels.items():
            value = summary.get(name)
            passed = value is not None and (value <= limit if name in _AT_MOST else value >= limit)
            passed = passed and not summary.get("num_unfinished") and not summary.get("num_unsent")
            verdicts.append({"target": name, "limit": limit, "level": level, "value": value, "passed": passed})
    return verdicts


def _is_good(timing: Timing, targets: Targets) -> bool:
    limits = ((timing.ttft, targets.ttft_p95_ms), (timing.e2e, targets.e2e_p95_ms), (timing.tpot, targets.tpot_p95_ms))
    # An answer of one token has no time per further token, and cannot miss it.
    return all(limit is None or seconds is None or 1000 * seconds <= limit for seconds, limit in limits)


def _times(answered: list[Timing]) -> dict[str, list[float]]:
    return {
        "ttft": [timing.ttft for timing in answered if timing.ttft is not None],
        "e2e": [timing.e2e for timing in answered if timing.e2e is not None],
        "tpot": [timing.tpot for timing in answered if timing.tpot is not None],
        "itl": [gap for timing in answered for gap in timing.itl],
    }


def _statistics(name: str, values: list[float]) -> LevelSummary:
    values = sorted(values)
    summary: LevelSummary = {f"{name}_mean_ms": _rounded(_mean(values))}
    for word, fraction in PERCENTILES.items():
        summary[f"{name}_{word}_ms"] = _rounded(percentile(values, fraction) if values else None)
    return summary


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
