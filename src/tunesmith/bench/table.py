"""A load test's numbers as people read them in a terminal: one column per level, targets below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.artifacts import Speeds
from tunesmith.bench.summary import LevelSummary

_TIMES = (("first token", "ttft"), ("whole answer", "e2e"), ("per further token", "tpot"), ("between events", "itl"))
_WORDS = ("mean", "median", "p90", "p95", "p99")
_TARGETS = {
    "ttft_p95_ms": "first token p95 ≤ {} ms",
    "e2e_p95_ms": "whole answer p95 ≤ {} ms",
    "tpot_p95_ms": "per further token p95 ≤ {} ms",
    "output_tokens_per_second": "tokens/s ≥ {}",
    "good_fraction": "good ≥ {}",
}
_GAP = 3
_BAR = 24  # letters
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def table(speeds: Speeds) -> str:
    """Return the numbers of all levels, times in milliseconds, and what became of the targets."""
    levels = list(speeds.levels.values())
    rows: list[tuple[str, str, list[str]]] = [("", "", list(speeds.levels)), *_counts(levels)]
    for label, name in _TIMES:
        rows.append(("", "", []))
        for word in _WORDS:
            cells = [_digits(level.get(f"{name}_{word}_ms")) for level in levels]
            rows.append((f"{label}, ms" if word == "mean" else "", word, cells))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    width = max((len(cell) for _, _, cells in rows for cell in cells), default=0) + _GAP
    lines = [
        f"  {label:<{widths[0]}}  {word:<{widths[1]}}" + "".join(f"{cell:>{width}}" for cell in cells)
        for label, word, cells in rows
    ]
    return "\n".join(line.rstrip() for line in [*lines, *_over_load(levels), *_verdicts(speeds)])


def _counts(levels: list[LevelSummary]) -> Iterator[tuple[str, str, list[str]]]:
    yield "requests", "", [_number(level.get("num_requests")) for level in levels]
    yield "failed", "", [_number(level.get("num_failed")) for level in levels]
    for kind in sorted({key for level in levels for key in level if key.startswith("failed_")} - {"failed_fraction"}):
        yield "", kind.removeprefix("failed_"), [_number(level.get(kind)) for level in levels]
    if any(level.get("num_unfinished") or level.get("num_unsent") for level in levels):
        missing = [(level.get("num_unfinished") or 0) + (level.get("num_unsent") or 0) for level in levels]
        yield "not measured", "", [_number(count) for count in missing]
    yield "good", "", [_share(level.get("good_fraction")) for level in levels]
    yield "requests/s", "", [_digits(level.get("requests_per_second")) for level in levels]
    yield "", "good", [_digits(level.get("good_requests_per_second")) for level in levels]
    yield "tokens/s", "", [_digits(level.get("output_tokens_per_second")) for level in levels]
    yield "tokens", "prompt", [_digits(level.get("mean_prompt_tokens")) for level in levels]
    yield "", "answer", [_digits(level.get("mean_output_tokens")) for level in levels]
    yield "load generator", "of a core", [_share(level.get("client_cpu_fraction"), 2) for level in levels]
    if any(level.get("sent_late_p99_ms") is not None for level in levels):
        yield "", "late p99, ms", [_digits(level.get("sent_late_p99_ms")) for level in levels]


def _over_load(levels: list[LevelSummary]) -> Iterator[str]:
    """Draw throughput and the slower answers over the load, one line for each of three levels or more."""
    for key, unit in (("concurrency", "at once"), ("rate", "per second")):
        found = sorted((level for level in levels if level.get(key) is not None), key=lambda level: level.get(key) or 0)
        if len(found) < 3:
            continue
        names = [f"{level.get(key):g} {unit}" for level in found]
        first = max(map(len, names))
        columns = [
            (title, [level.get(statistic) for level in found])
            for title, statistic in (("tokens/s", "output_tokens_per_second"), ("whole answer p95, ms", "e2e_p95_ms"))
        ]
        room = max(len(_digits(value)) for _, values in columns for value in values) + 1 + _BAR
        yield from ("", f"  {'':<{first}}" + "".join(f"{'':{_GAP}}{title:<{room}}" for title, _ in columns))
        for index, name in enumerate(names):
            bars = (_bar(values[index], max(value or 0 for value in values)) for _, values in columns)
            yield f"  {name:>{first}}" + "".join(f"{'':{_GAP}}{bar:<{room}}" for bar in bars)


def _bar(value: float | None, largest: float) -> str:
    """Return a bar of eighths of letters, and the value behind it."""
    whole, eighths = divmod(round(8 * _BAR * (value or 0) / largest) if largest else 0, 8)
    return f"{'█' * whole}{_EIGHTHS[eighths]} {_digits(value)}"


def _verdicts(speeds: Speeds) -> Iterator[str]:
    by_target: dict[str, list[dict[str, Any]]] = {}
    for verdict in speeds.targets:
        by_target.setdefault(str(verdict["target"]), []).append(verdict)
    if by_target:
        yield ""
    for name, verdicts in by_target.items():
        limit = verdicts[0]["limit"]
        shown = _share(limit) if name == "good_fraction" else f"{limit:,g}"
        marks = "   ".join(f"{verdict['level']} {'✓' if verdict['passed'] else '✗'}" for verdict in verdicts)
        yield f"  {_TARGETS.get(name, name + ' {}').format(shown)}:  {marks}"


def _number(value: float | int | None) -> str:
    return f"{value:,.0f}" if value else "–"


def _share(value: float | int | None, digits: int = 4) -> str:
    return "–" if value is None else f"{100 * value:.{digits}g} %"


def _digits(value: float | int | None) -> str:
    """Return three or four digits, as many as matter."""
    if value is None:
        return "–"
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
