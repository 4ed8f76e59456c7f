"""What a load test found: the record, and what a reader of it must know."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.artifacts import Speeds
from tunesmith.bench import own_limits
from tunesmith.bench.client import LevelRun
from tunesmith.bench.levels import was_stopped
from tunesmith.bench.own_limits import Limits
from tunesmith.bench.summary import failures, judge, summarise
from tunesmith.recipe.schema import Targets
from tunesmith.store import files

CountTokens = Callable[[str], int]

_BUSY_CPU_FRACTION = 0.7
_SEVERAL_TOKENS = 1.1  # per event
_DISAGREEMENT = 0.05  # of tokens; one a text is left out, since servers may count the end of an answer
_LATE_MS = 5.0


def speeds_of(
    results: dict[str, LevelRun],
    targets: Targets,
    limits: Limits | None,
    *,
    seconds: float,
    requests: str | None = None,
    count_tokens: CountTokens | None = None,
) -> Speeds:
    """Return the record of a load test.

    Args:
        results: what each level gave.
        targets: what it is held against.
        limits: what the client can do; None when that was not measured.
        seconds: how long all of it took.
        requests: where the requests' timings are, for the record.
        count_tokens: counts a text by the model's tokenizer, to check the server's own counts.
    """
    summaries = {}
    told: list[str] = []
    for name, result in results.items():
        summary = summarise(result, targets)
        if count_tokens is not None and result.texts:
            ours = sum(count_tokens(text) for text, _ in result.texts)
            theirs = sum(count for _, count in result.texts)
            summary["tokenizer_count_ratio"] = round(ours / theirs, 4) if theirs else None
            told += _disagreement(name, ours, theirs, len(result.texts))
        summaries[name] = summary
        told += _about_level(name, result)
        told += own_limits.complaints(limits, name, summary) if limits else []
    return Speeds(
        levels=summaries,
        requests=requests,
        targets=tuple(judge(targets, summaries)),
        seconds=round(seconds, 3),
        partial=was_stopped(results),
        client=own_limits.as_record(limits) if limits else {},
        warnings=tuple(told),
    )


def write_requests(path: Path, results: dict[str, LevelRun]) -> None:
    """Write every request's timings, one JSON object per line."""
    lines = [
        json.dumps({"level": name} | dataclasses.asdict(timing), ensure_ascii=False)
        for name, result in results.items()
        for timing in result.timings
    ]
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def _about_level(name: str, result: LevelRun) -> Iterator[str]:
    failed = failures(result)
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
        yield f"{name}: {failed.total()} of {len(result.timings)} requests failed ({kinds})"
    if result.is_partial:
        why = "the level's time limit" if result.ended_by == "limit" else "a signal"
        missing = f"{result.num_unfinished} requests in flight and {result.num_unsent} not sent"
        yield f"{name}: ended early by {why}, with {missing}"
    if result.client_cpu_fraction > _BUSY_CPU_FRACTION:
        share = f"{result.client_cpu_fraction:.0%}"
        yield f"{name}: the load generator itself used {share} of a core: times may be its own"
    answered = [timing for timing in result.timings if not timing.failure]
    if any(not timing.has_usage for timing in answered):
        yield f"{name}: the server reports no usage: output tokens are counted as stream events"
    num_tokens, num_events = sum(t.num_output_tokens or 0 for t in answered), sum(t.num_events for t in answered)
    if num_events and num_tokens > _SEVERAL_TOKENS * num_events:
        each = f"{num_tokens / num_events:.1f} tokens"
        yield f"{name}: the server sends {each} per event: inter-token latency is the time between events"
    late = [1000 * timing.sent_late for timing in result.timings]
    num_late = sum(value > _LATE_MS for value in late)
    if result.concurrency is None and num_late > 0.01 * len(late):
        counted = "their latencies count from then all the same"
        yield f"{name}: sent over {_LATE_MS:g} ms after they were due: {num_late} of {len(late)} requests; {counted}"


def _disagreement(name: str, ours: int, theirs: int, num_texts: int) -> Iterator[str]:
    apart = abs(ours - theirs)
    if apart > num_texts and apart > _DISAGREEMENT * theirs:
        counts = f"the server counts {theirs:,} output tokens where the tokenizer counts {ours:,}"
        yield f"{name}: {counts}, in {num_texts} answers: tokens/s and times per token go by the server"
