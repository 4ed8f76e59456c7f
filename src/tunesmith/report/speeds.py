"""The section on the load test: how fast the tuned model answers, and what happens as the load grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from tunesmith.artifacts import Speeds
from tunesmith.recipe.environment import redact
from tunesmith.report import wording
from tunesmith.report.figures.bars import throughput
from tunesmith.report.figures.latency import Level, latency_chart
from tunesmith.report.figures.load import Line, over_load
from tunesmith.report.findings import Findings, finite, is_number, request_times

Context = dict[str, Any]
Levels = Sequence[tuple[str, dict[str, Any]]]

_MS = wording.milliseconds
_TARGETS = {
    "ttft_p95_ms": ("First token p95", "≤", _MS),
    "e2e_p95_ms": ("Answer p95", "≤", _MS),
    "tpot_p95_ms": ("Per token p95", "≤", _MS),
    "output_tokens_per_second": ("Tokens/s", "≥", wording.number),
    "good_fraction": ("Good requests", "≥", wording.share),
}


def speed(found: Findings) -> Context | None:
    """Return what the load test measured."""
    speeds = found.speeds
    if not speeds or not speeds.levels:
        return None
    levels = sorted(speeds.levels.items(), key=_load)
    times = request_times(found.run_dir, speeds)
    limits = {str(target.get("target")): finite(target.get("limit")) for target in speeds.targets}
    figures: list[tuple[str, Markup | None]] = [
        ("Time to first token", _latency("ttft", levels, times, limits.get("ttft_p95_ms"), "Time to first token")),
        ("Whole answer", _latency("e2e", levels, times, limits.get("e2e_p95_ms"), "Whole answer")),
    ]
    figures += _growing_load(levels, limits) or [
        ("Throughput", _throughput(levels, limits.get("output_tokens_per_second")))
    ]
    return {
        "figures": [(title, figure) for title, figure in figures if figure],
        "levels": [(_level_name(name, level), level) for name, level in levels],
        "targets": _targets(speeds),
        "has_marks": bool(times),
        "failures": _failure_kinds(levels),
        "has_good": any(is_number(level.get("good_fraction")) for _, level in levels),
        "is_open": any(not is_number(level.get("concurrency")) for _, level in levels),
        "client": _client(speeds.client),
        "warnings": [redact(wording.shown(text)) for text in speeds.warnings],
    }


def _growing_load(levels: Levels, limits: dict[str, float | None]) -> list[tuple[str, Markup | None]]:
    """Return throughput and times over the load, for closed and open loops of three levels or more."""
    figures: list[tuple[str, Markup | None]] = []
    for key, axis in (("concurrency", "requests in flight"), ("rate", "requests per second")):
        of_kind = [level for _, level in levels if is_number(level.get(key))]
        if len(of_kind) < 3:
            continue
        loads = [float(level[key]) for level in of_kind]

        def line(name: str, statistic: str, style: str, found: list[dict[str, Any]] = of_kind) -> Line:
            return Line(name, [finite(level.get(statistic)) for level in found], style)

        tokens = [line("tokens/s", "output_tokens_per_second", "main")]
        first = [line("median", "ttft_median_ms", "main"), line("p95", "ttft_p95_ms", "second")]
        whole = [line("median", "e2e_median_ms", "main"), line("p95", "e2e_p95_ms", "second")]
        for title, lines, limit, unit in (
            ("Throughput, tokens per second", tokens, "output_tokens_per_second", "tokens/s"),
            ("First token, milliseconds: median and p95", first, "ttft_p95_ms", "ms"),
            ("Whole answer, milliseconds: median and p95", whole, "e2e_p95_ms", "ms"),
        ):
            figures.append((title, over_load(loads, lines, limits.get(limit), title=title, axis=axis, unit=unit)))
    return figures


def _latency(
    name: str, levels: Levels, times: dict[str, dict[str, list[float]]], target: float | None, title: str
) -> Markup | None:
    known = [
        Level(
            _level_name(key, level),
            times.get(key, {}).get(name, []),
            float(level[f"{name}_median_ms"]),
            float(level[f"{name}_p95_ms"]),
            finite(level.get(f"{name}_p99_ms")),
        )
        for key, level in levels
        if is_number(level.get(f"{name}_median_ms")) and is_number(level.get(f"{name}_p95_ms"))
    ]
    return latency_chart(known, target, title=title)


def _throughput(levels: Iterable[tuple[str, dict[str, Any]]], target: float | None) -> Markup | None:
    known = [
        (_level_name(key, level), float(level["output_tokens_per_second"]))
        for key, level in levels
        if is_number(level.get("output_tokens_per_second"))
    ]
    told = "; ".join(f"{name}: {wording.number(value)} tokens/s" for name, value in known)
    return throughput(known, target, told=f"Throughput. {told}")


def _level_name(key: str, level: dict[str, Any]) -> str:
    if is_number(level.get("concurrency")):
        return f"{level['concurrency']} at once"
    return f"{level['rate']:g} per second" if is_number(level.get("rate")) else key


def _load(item: tuple[str, dict[str, Any]]) -> tuple[int, float]:
    """Sort closed loops by concurrency, then open ones by rate, then a trace."""
    concurrency, rate = item[1].get("concurrency"), item[1].get("rate")
    if is_number(concurrency):
        return 0, float(concurrency or 0)
    return (1, float(rate or 0)) if is_number(rate) else (2, 0.0)


def _failure_kinds(levels: Levels) -> list[str]:
    found = {key.removeprefix("failed_") for _, level in levels for key in level if key.startswith("failed_")}
    return sorted(found - {"fraction"})


def _client(limits: dict[str, Any]) -> str:
    """Return what the load generator can do, or nothing when that was not measured."""
    rates = [limits.get(key) for key in ("requests_per_second", "tokens_per_second", "lateness_p99_ms")]
    if not all(is_number(rate) for rate in rates):
        return ""
    requests, tokens, late = rates
    late_told = f"its stamps were late by {wording.milliseconds(late)} (p99)"
    return f"{wording.number(requests, 3)} requests/s and {wording.number(tokens, 3)} tokens/s on one core; {late_told}"


def _targets(speeds: Speeds) -> list[Context]:
    """Return one row per target with what each level reached."""
    rows: dict[str, Context] = {}
    for target in speeds.targets:
        key = str(target.get("target"))
        name, sign, told = _TARGETS.get(key, (wording.sentence(key), "", wording.number))
        row = rows.setdefault(key, {"name": name, "limit": f"{sign} {told(target.get('limit'))}".strip(), "cells": []})
        row["cells"].append({"value": told(target.get("value")), "passed": bool(target.get("passed"))})
    return list(rows.values())
