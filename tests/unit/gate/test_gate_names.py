"""Rules are held against what a run will have before it runs: misspelt names are found, unknowable ones let through."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests import finished_runs
from tunesmith.artifacts import Scores
from tunesmith.bench.client import LevelRun
from tunesmith.bench.summary import summarise
from tunesmith.cli.app import main
from tunesmith.evaluate.stage import tasks_of
from tunesmith.frozen import frozen
from tunesmith.gate.names import foreseen, unknown_numbers
from tunesmith.gate.numbers import numbers
from tunesmith.recipe.schema import Bench, Data, Evaluate, FunctionCallTask, JudgeTask, Model, Recipe, TextTask

RECIPE = Recipe(
    "r",
    Model("base"),
    Data(()),
    evaluate=Evaluate(text=TextTask(("rows.jsonl",)), function_calls=FunctionCallTask(("rows.jsonl",))),
    bench=Bench(concurrency=(1, 16), rates=(0.5,), trace="trace.jsonl"),
)


@pytest.mark.parametrize(
    ("rule", "nearest"),
    [
        ("evaluate.text.exact_mach > 0.5", "evaluate.text.exact_match"),
        ("evaluate.text.rouge > 0.5", "evaluate.text.rouge1"),
        ("improved(evaluate.function_call.accuracy)", "evaluate.function_calls.accuracy"),
        ("evaluate.function_calls > 0.5", "evaluate.function_calls.accuracy"),
        ("not_regressed(evaluate.bfcl.simple_python.accuracy)", "evaluate."),
        ("bench.c16.ttft_p95 < 500", "bench.c16.ttft_p95_ms"),
        ("bench.c32.ttft_p95_ms < 500", "bench.c16.ttft_p95_ms"),
        ("train.finalloss < 1", "train.final_loss"),
        ("train.method == 1", "train."),
        ("data.counts.quarantine == 0", "data.counts.quarantined"),
        ("merge.prof.top1_agreement > 0.9", "merge.proof."),
        ("evaluate.text.exact_match - evaluate.text.exact_match.bas / bench.c2.itl_mean_ms > 0", "bench.c1"),
    ],
)
def test_unknown_names(rule: str, nearest: str) -> None:
    misfits = list(unknown_numbers(dataclasses.replace(RECIPE, gate=("train.final_loss < 9", rule))))
    assert [misfit.path for misfit in misfits] == [("gate", 1)]
    assert nearest in misfits[0].do, misfits[0]


@pytest.mark.parametrize(
    "rule",
    [
        "evaluate.text.rougeL.difference_low > 0",
        "evaluate.num_unanswered == 0",
        "evaluate.function_calls.failures.tuned.no_call < 3",
        "bench.c1.failed_timeout == 0",
        "bench.trace.good_fraction >= 0.99",
        "bench.c16.itl_p99_ms < 9 * bench.c1.itl_p99_ms",
        "train.validation_loss < 1",
        "data.length_histogram.128 > 0",
        "merge.proof.whatever_it_proves > 0",
    ],
)
def test_known_names(rule: str) -> None:
    assert not list(unknown_numbers(dataclasses.replace(RECIPE, gate=(rule,))))


SETS_AND_JUDGE = Evaluate(
    text=TextTask((), sets={"dev": ("d.jsonl",), "hard": ("h.jsonl",)}),
    judge=JudgeTask(("rows.jsonl",), "http://judge", "judge"),
)


@pytest.mark.parametrize("evaluate", [RECIPE.evaluate, SETS_AND_JUDGE], ids=["rows", "sets and judge"])
def test_tasks_count_what_is_foreseen(evaluate: Evaluate) -> None:
    names = [f"evaluate.{task.name}.{metric.name}" for task in tasks_of(evaluate) for metric in task.metrics]
    known = foreseen(dataclasses.replace(RECIPE, evaluate=evaluate))
    assert [name for name in names if name not in known.exact] == []
    of_tasks = [name for name in known.exact if name.startswith("evaluate.") and name.count(".") > 1]
    assert [name for name in of_tasks if name not in names] == []


def test_a_text_task_of_sets_only_has_no_number_of_its_own() -> None:
    recipe = dataclasses.replace(RECIPE, evaluate=SETS_AND_JUDGE, gate=("evaluate.text.exact_match > 0",))
    (misfit,) = unknown_numbers(recipe)
    assert "evaluate.text.dev.exact_match" in misfit.do


def test_load_test_counts_what_is_foreseen() -> None:
    known = foreseen(RECIPE)
    for level, run in (("c16", LevelRun(concurrency=16)), ("r0.5", LevelRun(rate=0.5))):
        names = {f"bench.{level}.{name}" for name in summarise(run)}
        assert names <= {*known.exact}, names - {*known.exact}
        beyond = {n for n in known.exact if n.startswith(f"bench.{level}.")} - names
        assert {name.rpartition(".")[2] for name in beyond} <= {"sent_late_p99_ms", "tokenizer_count_ratio"}


def test_sections_that_only_the_run_can_name_are_let_through() -> None:
    @frozen
    class WithHarness(Evaluate):
        lm_eval: Any = None
        judge: Any = None

    recipe = dataclasses.replace(RECIPE, evaluate=WithHarness(lm_eval=TextTask(("x",))))
    assert not list(unknown_numbers(dataclasses.replace(recipe, gate=("evaluate.lm_eval.hellaswag.acc > 0.5",))))
    assert list(unknown_numbers(dataclasses.replace(recipe, gate=("evaluate.judge.win_rate > 0.5",))))


def test_every_number_of_a_finished_run_is_foreseen(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path)
    known = foreseen(finished_runs.recipe())
    found = numbers(run_dir)
    assert len(found) > 150
    assert [path for path in found if not known.has(path)] == []


def test_check_plan_and_run_refuse_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[3]
    setting = ["--set", "gate=[bench.c8.ttft_p59_ms < 500]", "--set", f"output_dir={tmp_path}"]
    setting += ["--set", f"model.name_or_path={root}/quickstart/base"]
    for verb in ("check", "plan", "run"):
        assert main([verb, str(root / "recipes/quickstart.yaml"), *setting]) == 2
        assert "bench.c8.ttft_p95_ms" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_scores_without_tasks_have_their_own_numbers(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "minimal")
    run_dir.save(Scores({}, num_unanswered=2))
    assert numbers(run_dir)["evaluate.num_unanswered"] == 2
