"""Runs side by side: settings, numbers, verdicts, and the items in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.artifacts import Checkpoint, Scores, Verdict
from tunesmith.compare import compare, item_differences
from tunesmith.errors import StageError
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir


def make_run(
    path: Path, loss: float, right: dict[str, bool | None], recipe: str = "train:\n  learning_rate: 0.1\n"
) -> RunDir:
    """`right` maps an item's id to whether the tuned model is right; None is a failed request."""
    run = RunDir(path)
    files.write_text(run.resolved_recipe, recipe)
    run.save(Checkpoint("train/final", "lora", "b", 5, 2.5, loss, None, 1, 2, 1.0, 1.0, 1, 1.0))
    share = sum(bool(value) for value in right.values()) / max(1, len(right))
    record: dict[str, Any] = {
        "base": 0.1,
        "tuned": share,
        "num_items": len(right),
        "tuned_low": 0.0,
        "verdict": "improved",
    }
    run.save(Scores({"text": {"exact_match": record}}, {"text": run.relative(run.items("text"))}))
    run.save(Verdict(share > 0.5, ({"rule": "x", "passed": share > 0.5, "evidence": ""},)))
    lines = [
        {
            "id": name,
            "prompt_tail": f"prompt of {name}",
            "reference": "r",
            "tuned": {"correct": bool(value), "error": "request_failed:timeout" if value is None else ""},
        }
        for name, value in right.items()
    ]
    files.write_text(run.items("text"), "".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_numbers_side_by_side(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", 0.5, {"a": True, "b": False})
    two = make_run(tmp_path / "two", 0.25, {"a": True, "b": True}, "train:\n  learning_rate: 0.2\n")
    empty = RunDir(tmp_path / "empty")
    found = compare([one, two, empty])
    assert found.runs == ("one", "two", "empty")
    lines = {line.path: line.values for line in found.lines}
    assert lines["recipe.train.learning_rate"] == (0.1, 0.2, None)
    assert lines["train.final_loss"] == (0.5, 0.25, None)
    assert lines["evaluate.text.exact_match"] == (0.5, 1.0, None)
    assert lines["evaluate.text.exact_match.base"] == (0.1, 0.1, None)
    assert lines["evaluate.text.exact_match.verdict"] == ("improved", "improved", None)
    assert lines["gate"] == ("failed", "passed", None)
    assert "evaluate.text.exact_match.tuned_low" not in lines
    rows = found.rows()
    assert rows[0] == ["", "one", "two", "empty"] and all(len(row) == 4 for row in rows)
    assert ["train.final_loss", "0.5", "0.25", "–"] in rows
    json.dumps(found.to_json())


def test_equal_settings_are_not_shown(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 0.5, {"a": True}) for name in ("one", "two")]
    assert not [line for line in compare(runs).lines if line.path.startswith("recipe.")]


def test_items_fixed_and_broken(tmp_path: Path) -> None:
    before = {"f": False, "b": True, "rr": True, "ww": False, "lost": None, "gone": True}
    one = make_run(tmp_path / "one", 0.5, before)
    two = make_run(tmp_path / "two", 0.5, {"f": True, "b": False, "rr": True, "ww": False, "lost": True, "new": True})
    (found,) = item_differences(one, two)
    assert (found.fixed, found.broken) == (("f",), ("b",))
    assert (found.num_right_in_both, found.num_wrong_in_both, found.num_not_comparable) == (1, 1, 3)
    sentences = compare([one, two]).item_sentences()
    assert sentences[0].startswith("text: two fixed 1 and broke 1 of 4 items against one")
    assert sentences[1:] == ["  fixed: f", "  broken: b"]


def test_an_item_with_another_prompt_is_another_item(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, 0.5, {"a": True}) for name in ("one", "two"))
    two.items("text").write_text(two.items("text").read_text().replace("prompt of", "question of"))
    (found,) = item_differences(one, two)
    assert (found.num_items, found.num_not_comparable) == (0, 1)


def test_one_run_and_runs_without_scores(tmp_path: Path) -> None:
    assert compare([RunDir(tmp_path / "a")]).lines == ()
    assert compare([RunDir(tmp_path / "a"), RunDir(tmp_path / "b")]).items == ()


def test_broken_items_are_one_clear_error(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, 0.5, {"a": True}) for name in ("one", "two"))
    two.items("text").write_text("{broken")
    with pytest.raises(StageError, match="the items of task text cannot be read"):
        compare([one, two])
