"""Rules over a run's numbers: what passes, what fails, and that the evidence says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.artifacts import Checkpoint, Dataset, Scores, Speeds, Verdict, Weights
from tunesmith.gate import stage as gate
from tunesmith.recipe.gate_rules import RuleError, parse_rule
from tunesmith.recipe.schema import Data, Model, Recipe
from tunesmith.store.run_dir import RunDir

IMPROVED = {
    "base": 0.04,
    "tuned": 0.91,
    "num_items": 200,
    "base_low": 0.02,
    "base_high": 0.08,
    "tuned_low": 0.86,
    "tuned_high": 0.94,
    "base_num_failed": 0,
    "tuned_num_failed": 2,
    "num_pairs": 198,
    "difference": 0.88,
    "difference_low": 0.83,
    "difference_high": 0.92,
    "p_value": 1e-40,
    "verdict": "improved",
    "better": "higher",
    "maximum": 1.0,
}
UNSURE = IMPROVED | {"base": 0.5, "tuned": 0.55, "difference": 0.05, "p_value": 0.3, "verdict": "cannot tell"}
WORSE = IMPROVED | {"base": 0.5, "tuned": 0.4, "difference": -0.1, "difference_low": -0.15, "difference_high": -0.05}
WORSE |= {"verdict": "regressed"}
SMALLER = IMPROVED | {"base": 9.0, "tuned": 5.0, "difference": -4.0, "difference_low": -5.0, "difference_high": -3.0}
SMALLER |= {"better": "lower"}
ALONE = {"base": None, "tuned": 0.7, "num_items": 10, "maximum": 1.0, "better": "higher"}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path)
    counts = {"read": 100, "quarantined": 3}
    run_dir.save(Dataset("sft", "data/train", None, counts, 97, 5000, 2000, 80, "k", "t", "c"))
    run_dir.save(Checkpoint("train/final", "lora", "b", 50, 2.5, 0.4, None, 10, 100, 9.0, 20.0, 1, 3.0))
    tasks: dict[str, dict[str, dict[str, Any]]] = {
        "text": {"exact_match": IMPROVED, "jaccard": UNSURE},
        "bfcl.simple_python": {"accuracy": ALONE},
    }
    tasks["text"]["rouge2"] = WORSE
    tasks["lm"] = {"perplexity": SMALLER}
    run_dir.save(Scores(tasks, failures={"text": {"tuned": {"empty_answer": 4}}}))
    run_dir.save(Weights("merge/model", "b", {}, 1, {"top1_agreement": 0.9995}))
    run_dir.save(Speeds({"c16": {"concurrency": 16, "ttft_p95_ms": 480.5, "e2e_p95_ms": None}}))
    return run_dir


def decide(run_dir: RunDir, *rules: str) -> Verdict:
    return gate.run(Recipe("r", Model("base"), Data(()), gate=rules), run_dir)


@pytest.mark.parametrize(
    ("rule", "passed", "evidence"),
    [
        ("bench.c16.ttft_p95_ms < 500", True, "bench.c16.ttft_p95_ms = 480.5"),
        ("bench.c16.ttft_p95_ms < 480.5", False, "bench.c16.ttft_p95_ms = 480.5"),
        ("bench.c16.ttft_p95_ms <= 480.5", True, ""),
        ("evaluate.text.exact_match >= 0.9", True, "95 % interval 0.86 … 0.94, 200 items; base 0.04"),
        ("evaluate.text.exact_match > 0.95", False, "not answered, counted as wrong: 2 by the tuned model"),
        ("evaluate.text.exact_match.base < 0.1", True, "= 0.04"),
        ("evaluate.text.exact_match.difference_low > 0.5", True, "= 0.83"),
        ("evaluate.bfcl.simple_python.accuracy == 0.7", True, "= 0.7"),
        ("train.final_loss < 1", True, "train.final_loss = 0.4"),
        ("train.num_steps == 50", True, "= 50"),
        ("data.counts.quarantined == 0", False, "= 3"),
        ("data.num_tokens > 1_000", True, "= 5,000"),
        ("improved(evaluate.text.exact_match)", True, "base 0.04 → tuned 0.91; difference +0.88 (+0.83 … +0.92"),
        ("improved(evaluate.text.jaccard)", False, "p = 0.3) on 198 items"),
        ("improved(evaluate.text.jaccard)", False, "cannot tell"),
        (
            "evaluate.text.exact_match - evaluate.text.exact_match.base > 0.5",
            True,
            "0.87 > 0.5; evaluate.text.exact_match = 0.91",
        ),
        ("2 * (train.first_loss - 0.5) / 4 == 1", True, "1 == 1; train.first_loss = 2.5"),
        ("train.first_loss - 1 - 1 < -train.final_loss + 1", True, "0.5 < 0.6"),
        ("train.final_loss < train.first_loss", True, "0.4 < 2.5; train.final_loss = 0.4; train.first_loss = 2.5"),
        ("1 / data.counts.validation > 0", False, "has no number data.counts.validation"),
        ("train.num_steps / (train.num_steps - 50) > 0", False, "nan > 0"),
        ("not_regressed(evaluate.text.exact_match)", True, "improved"),
        ("not_regressed(evaluate.text.jaccard)", True, "cannot tell"),
        ("not_regressed(evaluate.text.rouge2)", False, "regressed"),
        ("not_regressed(evaluate.text.rouge2, 0.2)", True, "at most 0.15 worse, 0.2 allowed"),
        ("not_regressed(evaluate.text.rouge2, 0.1)", False, "may be 0.15 worse, 0.1 allowed"),
        ("not_regressed(evaluate.lm.perplexity, 0.5)", True, "at most 0 worse"),
        ("evaluate.num_unanswered == 0", True, "= 0"),
        ("evaluate.text.exact_match.tuned_num_failed == 0", False, "evaluate.text.exact_match.tuned_num_failed = 2"),
        ("evaluate.text.failures.tuned.empty_answer < 5", True, "= 4"),
        ("merge.proof.top1_agreement >= 0.999", True, "= 0.9995"),
        ("improved(evaluate.bfcl.simple_python.accuracy)", False, "not measured on both models: base –, tuned 0.7"),
        # what is not there
        (
            "evaluate.text.exactmatch > 0.5",
            False,
            "the run has no number evaluate.text.exactmatch; nearest: evaluate.text.",
        ),
        ("bench.c32.ttft_p95_ms < 500", False, "nearest: bench.c16.ttft_p95_ms"),
        ("bench.c16.e2e_p95_ms < 500", False, "has no number bench.c16.e2e_p95_ms"),
        ("train.validation_loss < 1", False, "has no number train.validation_loss"),
        ("evaluate.bfcl.simple_python > 0.5", False, "nearest: evaluate.bfcl.simple_python.accuracy"),
        ("improved(evaluate.text.exact_matc)", False, "nearest: evaluate.text.exact_match"),
        ("improved(evaluate.text.exact_match.tuned)", False, "nearest: evaluate.text.exact_match"),
    ],
)
def test_rule(run_dir: RunDir, rule: str, passed: bool, evidence: str) -> None:
    (decided,) = decide(run_dir, rule).rules
    assert decided["rule"] == rule
    assert decided["passed"] is passed, decided
    assert evidence in decided["evidence"]


def test_evidence_says_where_numbers_come_from(run_dir: RunDir) -> None:
    run_dir.save(Scores({"text": {"exact_match": IMPROVED}}, items={"text": "evaluate/text.items.jsonl"}))
    rules = decide(run_dir, "evaluate.text.exact_match > 0.5", "bench.c16.ttft_p95_ms < 2 * train.num_steps").rules
    (number,) = rules[0]["numbers"]
    around = {"base": 0.04, "low": 0.86, "high": 0.94, "num_items": 200}
    path = "evaluate.text.exact_match"
    assert number == {"path": path, "value": 0.91} | around | {"from": "evaluate/text.items.jsonl"}
    assert (rules[1]["left"], rules[1]["sign"], rules[1]["right"]) == (480.5, "<", 100.0)
    assert [n["from"] for n in rules[1]["numbers"]] == ["bench/artifact.json", "train/artifact.json"]


def test_all_rules_must_hold_and_none_is_fine(run_dir: RunDir) -> None:
    assert decide(run_dir).passed and decide(run_dir).rules == ()
    verdict = decide(run_dir, "train.final_loss < 1", "train.final_loss < 0.1", "train.num_steps > 1")
    assert not verdict.passed
    assert [rule["passed"] for rule in verdict.rules] == [True, False, True]
    run_dir.save(verdict)
    assert run_dir.load(Verdict) == verdict


def test_stages_that_did_not_run_fail_their_rules_only(tmp_path: Path) -> None:
    verdict = decide(RunDir(tmp_path / "empty"), "improved(evaluate.text.bleu)", "bench.c16.ttft_p95_ms < 500")
    assert [rule["passed"] for rule in verdict.rules] == [False, False]
    assert all("the stage that makes it left none" in rule["evidence"] for rule in verdict.rules)


def test_values_that_are_no_number_satisfy_nothing(run_dir: RunDir) -> None:
    run_dir.save(Speeds({"c16": {"ttft_p95_ms": float("nan")}}))
    rules = [f"bench.c16.ttft_p95_ms {operator} 500" for operator in ("<", "<=", ">", ">=", "==")]
    assert not any(rule["passed"] for rule in decide(run_dir, *rules).rules)


def test_lower_can_be_better(run_dir: RunDir) -> None:
    record = IMPROVED | {"base": 9.0, "tuned": 5.0, "difference": -4.0, "better": "lower", "verdict": "improved"}
    run_dir.save(Scores({"lm": {"perplexity": record}}))
    assert decide(run_dir, "improved(evaluate.lm.perplexity)").passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluate.text.exact_match", "expected `PATH < NUMBER`"),
        ("train.final_loss < small", "'small' is not a number"),
        ("train.final_loss < nan", "nan"),
        ("train < 1", "whole group"),
        ("evaluate > 1", "`evaluate.TASK.METRIC`"),
        ("bench < 1", "`bench.LEVEL.METRIC`"),
        ("evaluate..text > 1", "between two dots"),
        ("train.final_loss. < 1", "ends with one"),
        ("loss < 1", "a path begins with evaluate, bench, train, merge, data"),
        ("loss.final < 1", "a path begins with evaluate, bench, train, merge, data"),
        ("improved(train.final_loss)", "only numbers of `evaluate`"),
        ("improved(evaluate.text.bleu) > 1", "expected"),
        ("__import__('os') < 1", "expected"),
        ("1 < 2", "reads no number"),
        ("train.final_loss < 1 < 2", "expected"),
        ("(train.final_loss < 1", "expected"),
        ("train.final_loss < 5shots", "expected"),
        ("train.final_loss ** 2 < 1", "expected"),
        ("improved(evaluate.text.bleu, 0.1)", "expected"),
        ("not_regressed(evaluate.text.bleu, much)", "how much worse"),
        ("not_regressed(bench.c1.e2e_p95_ms)", "only numbers of `evaluate`"),
        ("(" * 390 + "1", "too many parentheses"),
        ("1 + " * 200 + "train.final_loss < 1", "longer than"),
    ],
)
def test_what_is_no_rule(text: str, message: str) -> None:
    with pytest.raises(RuleError) as raised:
        parse_rule(text)
    assert message in str(raised.value)
