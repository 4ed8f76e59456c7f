"""Percentiles, sums and targets."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tunesmith.bench.client import LevelRun, Timing
from tunesmith.bench.summary import judge, percentile, summarise
from tunesmith.recipe.schema import Targets


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 1001])
def test_percentiles_are_numpys(count: int) -> None:
    generator = random.Random(count)
    values = [generator.expovariate(3.0) for _ in range(count)]
    for fraction in (0.0, 0.5, 0.9, 0.95, 0.99, 1.0):
        assert percentile(values, fraction) == pytest.approx(float(np.percentile(values, 100 * fraction)), rel=1e-12)


def test_a_level_where_nothing_was_answered_has_no_times() -> None:
    summary = summarise(LevelRun(2, [Timing("a:1", 0.0, failure="timeout")], wall_seconds=1.0))
    assert summary["num_failed"] == summary["failed_timeout"] == summary["num_requests"] == 1
    assert summary["ttft_p95_ms"] is None and summary["e2e_mean_ms"] is None
    assert summary["output_tokens_per_second"] == 0


def test_targets_are_judged_per_level() -> None:
    levels = {
        "c1": {"ttft_p95_ms": 100.0, "e2e_p95_ms": 900.0, "output_tokens_per_second": 50.0},
        "c8": {"ttft_p95_ms": 700.0, "e2e_p95_ms": None, "output_tokens_per_second": 300.0},
    }
    judged = judge(Targets(ttft_p95_ms=500, e2e_p95_ms=2000, output_tokens_per_second=100), levels)  # type: ignore[arg-type]
    assert {(v["target"], v["level"]): v["passed"] for v in judged} == {
        ("ttft_p95_ms", "c1"): True,
        ("ttft_p95_ms", "c8"): False,
        ("e2e_p95_ms", "c1"): True,
        ("e2e_p95_ms", "c8"): False,
        ("output_tokens_per_second", "c1"): False,
        ("output_tokens_per_second", "c8"): True,
    }
    assert judge(Targets(), levels) == []  # type: ignore[arg-type]
