"""A load test's numbers as people read them in a terminal: one column per level."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.bench.summary import LevelSummary

_COUNTS = (
    ("requests", "num_requests", ""),
    ("failed", "num_failed", ""),
    ("good, %", "good_fraction", "%"),
    ("requests/s", "requests_per_second", ".2f"),
    ("good requests/s", "good_requests_per_second", ".2f"),
    ("output tokens/s", "output_tokens_per_second", ",.1f"),
)
_TIMES = (("first token", "ttft"), ("whole answer", "e2e"), ("per token", "tpot"), ("between tokens", "itl"))
_WORDS = ("mean", "median", "p90", "p95", "p99")


def table(levels: Mapping[str, LevelSummary]) -> str:
    """Return the numbers of all levels as aligned text; times in milliseconds."""
    rows = [(label, [_shown(summary.get(key), form) for summary in levels.values()]) for label, key, form in _COUNTS]
    for label, name in _TIMES:
        for word in _WORDS:
            cells = [_shown(summary.get(f"{name}_{word}_ms"), ",.1f") for summary in levels.values()]
            rows.append((f"{label} {word}, ms", cells))
    width = max(len(label) for label, _ in rows)
    lines = [" " * width + "".join(f"{name:>12}" for name in levels)]
    lines += [f"{label:<{width}}" + "".join(f"{cell:>12}" for cell in cells) for label, cells in rows]
    return "\n".join(lines)


def _shown(value: float | int | None, form: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if form == "%" else format(value, form)
