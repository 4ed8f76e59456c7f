"""Percentiles, sums and targets."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from tunesmith.bench.client import LevelRun
from tunesmith.bench.outcome import speeds_of
from tunesmith.bench.stream import Timing
from tunesmith.bench.summary import judge, percentile, summarise
from tunesmith.gate.names import LEVEL_NUMBERS
from tunesmith.recipe.schema import Targets


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 1001])
def test_percentiles_are_numpys(count: int) -> None:
    generator = random.Random(count)
    values = [generator.expovariate(3.0) for _ in range(count)]
    for fraction in (0.0, 0.5, 0.9, 0.95, 0.99, 1.0):
        assert percentile(values, fraction) == pytest.approx(float(np.percentile(values, 100 * fraction)), rel=1e-12)


def test_a_level_where_nothing_was_answered_has_no_times() -> None:
    summary = summarise(LevelRun(2, timings=[Timing("a:1", 0.0, failure="timeout")], wall_seconds=1.0))
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


def test_gate_rules_know_every_number() -> None:
    """`check` refuses a rule over a number that the run will not have: the gate's list and the summary are one."""
    run = LevelRun(timings=[answered(0.1, 1.0)], wall_seconds=1.0)
    run.texts = [("ab", 2)]
    (summary,) = speeds_of({"trace": run}, Targets(), None, seconds=1.0, count_tokens=len).levels.values()
    assert set(summary) == set(LEVEL_NUMBERS)


def test_counts_that_disagree_with_the_tokenizer_are_told() -> None:
    def warnings(told: int) -> tuple[str, ...]:
        run = LevelRun(1, timings=[answered(0.1, 1.0)] * 4, wall_seconds=1.0)
        run.texts = [("a" * 100, told)] * 4
        return speeds_of({"c1": run}, Targets(), None, seconds=1.0, count_tokens=len).warnings

    assert warnings(100) == warnings(101) == warnings(104) == ()
    assert "counts 480 output tokens where the tokenizer counts 400, in 4 answers" in warnings(120)[0]
    assert len(warnings(50)) == 1


def test_requests_that_an_open_loop_sent_late_are_told() -> None:
    timings = [dataclasses.replace(answered(0.1, 1.0), sent_late=late) for late in (0.0, 0.001, 0.02)]
    run = LevelRun(rate=3.0, timings=timings, wall_seconds=1.0)
    speeds = speeds_of({"r3": run}, Targets(), None, seconds=1.0)
    assert "sent over 5 ms after they were due: 1 of 3 requests" in speeds.warnings[0]
    assert speeds.levels["r3"]["sent_late_p99_ms"] == pytest.approx(19.62, abs=0.01)
    closed = LevelRun(3, timings=timings, wall_seconds=1.0)
    assert speeds_of({"c3": closed}, Targets(), None, seconds=1.0).warnings == ()


def answered(ttft: float, e2e: float, tpot: float | None = 0.01) -> Timing:
    return Timing("a:1", 0.0, ttft=ttft, e2e=e2e, tpot=tpot, num_output_tokens=10, num_events=10)


def test_goodput_counts_failed_requests_as_not_good() -> None:
    timings = [answered(0.1, 1.0), answered(0.1, 3.0), answered(0.9, 1.0), answered(0.1, 1.0, tpot=None)]
    timings += [answered(0.1, 1.0, tpot=0.2), Timing("a:1", 0.0, failure="stall")]
    run = LevelRun(2, timings=timings, wall_seconds=2.0)
    summary = summarise(run, Targets(ttft_p95_ms=500.0, e2e_p95_ms=2000.0, tpot_p95_ms=100.0))
    assert summary["num_good"] == 2 and summary["good_requests_per_second"] == 1
    assert summary["good_fraction"] == pytest.approx(2 / 6, abs=1e-4)
    assert summary["failed_fraction"] == pytest.approx(1 / 6, abs=1e-4)
    assert summarise(run)["num_good"] == 5, "without targets every answer is good"
    (verdict,) = judge(Targets(good_fraction=0.5), {"c2": summary})
    assert verdict["passed"] is False


def test_a_level_that_ended_early_passes_nothing() -> None:
    run = LevelRun(2, timings=[answered(0.1, 1.0)], wall_seconds=1.0, num_unfinished=1, ended_by="limit")
    (verdict,) = judge(Targets(ttft_p95_ms=500.0), {"c2": summarise(run)})
    assert verdict["value"] == 100 and verdict["passed"] is False
