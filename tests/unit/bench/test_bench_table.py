"""What a terminal shows of a load test."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.artifacts import Speeds
from tunesmith.bench.table import table


def shown(levels: dict[str, dict[str, Any]]) -> list[str]:
    return table(Speeds(levels=levels, targets=(), client={}, warnings=())).splitlines()


def level(tokens: float | None, p95: float | None, **load: float) -> dict[str, Any]:
    return {"num_requests": 9, "output_tokens_per_second": tokens, "e2e_p95_ms": p95, **load}


def bars(levels: dict[str, dict[str, Any]]) -> list[str]:
    lines = shown(levels)
    heads = [number for number, line in enumerate(lines) if "whole answer p95, ms" in line]
    return lines[heads[-1] :] if heads else []


def test_three_levels_are_drawn_over_the_load_and_two_are_not() -> None:
    two = {"c4": level(100.0, 80.0, concurrency=4), "c1": level(50.0, 40.0, concurrency=1)}
    assert not bars(two)
    head, *drawn = bars(two | {"c16": level(200.0, 640.0, concurrency=16), "r2": level(1.0, 1.0, rate=2.0)})
    assert [line.split("at once")[0].strip() for line in drawn] == ["1", "4", "16"], "by their load"
    assert [line.count("█") for line in drawn] == [6 + 1, 12 + 3, 24 + 24]
    places = {tuple(bar.start() for bar in re.finditer("█+", line)) for line in drawn}
    assert places == {(head.index("tokens/s"), head.index("whole"))}
    assert [line.split()[-1] for line in drawn] == ["40.0", "80.0", "640.0"]


def test_levels_without_an_answer_have_no_bar() -> None:
    levels = {f"r{rate:g}": level(None, None, rate=rate) for rate in (0.5, 1.0, 2.0)}
    _, *drawn = bars(levels)
    assert [line.split() for line in drawn] == [[f"{rate:g}", "per", "second", "–", "–"] for rate in (0.5, 1.0, 2.0)]
