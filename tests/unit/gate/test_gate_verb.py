"""`tunesmith gate`: other rules on a finished run, for people, for scripts and for CI."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests import finished_runs
from tunesmith.artifacts import Verdict
from tunesmith.cli.app import main
from tunesmith.gate.junit import junit_xml


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(finished_runs.write(tmp_path / "run").path)


def test_rules_of_the_recipe(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (Path(run) / "gate" / "artifact.json").read_bytes()
    assert main(["gate", run]) == 0
    told = capsys.readouterr().out
    assert "✓ improved(evaluate.function_calls.accuracy)\n    base 0.041 → tuned 0.958" in told
    assert told.endswith("gate passed: 2 of 2 rules hold\n")
    assert (Path(run) / "gate" / "artifact.json").read_bytes() == before


def test_other_rules_and_the_exit_code(run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rules = ["--rule", "train.final_loss < 1", "--rule", "not_regressed(evaluate.function_calls.abstention_accuracy)"]
    assert main(["gate", run, *rules, "--junit", str(tmp_path / "gate.xml"), "--json"]) == 6
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is False and [rule["passed"] for rule in told["rules"]] == [True, False]
    suite = ET.parse(tmp_path / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failures = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failures == ["not_regressed(evaluate.function_calls.abstention_accuracy)"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("evaluate.text.blue > 1", "nearest: evaluate.text.bleu"),
        ("good", "expected `PATH < NUMBER`"),
    ],
)
def test_mistakes_are_told(run: str, rule: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", run, "--rule", rule]) == 2
    assert words in capsys.readouterr().err


def test_list_of_numbers(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", run, "--numbers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["evaluate.function_calls.accuracy", "0.958"] in lines
    assert main(["gate", run, "--numbers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [path for path, _ in lines]


def test_xml_holds_any_text() -> None:
    hostile = finished_runs.HOSTILE + "]]>\ufffe"
    verdict = Verdict(False, ({"rule": hostile, "passed": False, "evidence": hostile},))
    (case,) = ET.fromstring(junit_xml(verdict, hostile))[0]
    assert "{{ 7*7 }}" in str(case.get("name")) and case.find("failure") is not None
