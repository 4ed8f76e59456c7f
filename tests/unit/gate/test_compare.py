"""Runs side by side: settings, numbers, verdicts, and the items in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.artifacts import Checkpoint, Scores, Verdict
from tunesmith.cli.app import main
from tunesmith.compare.items import item_differences
from tunesmith.compare.runs import compare
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
    assert ["  train.final_loss", "0.5", "0.25", "–"] in rows and ["training", "", "", ""] in rows
    assert ["  train.final_loss", "0.5", "0.25", "-0.25 (-50.0 %)"] in compare([one, two]).rows()
    paths = [row[0].strip() for row in compare([one, two]).rows(everything=False)]
    assert "train.final_loss" in paths and "train.num_steps" not in paths
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
    assert (found.num_right_in_both, found.num_wrong_in_both) == (1, 1)
    assert (found.num_unanswered, found.num_alone) == (1, 2)
    sentences = compare([one, two]).item_sentences()
    assert sentences[0].startswith("text: two fixed 1 and broke 1 of 4 items against one")
    assert sentences[1] == "  left out: 1 not answered, 2 in one run only or with another prompt or reference"
    assert sentences[2].startswith("  correct: 0.5 → 0.5 (+0, 95 % ") and sentences[2].endswith(
        "no difference was seen"
    )
    assert sentences[3:] == ["  fixed: f", "  broken: b"]


def test_an_item_with_another_prompt_is_another_item(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, 0.5, {"a": True}) for name in ("one", "two"))
    two.items("text").write_text(two.items("text").read_text().replace("prompt of", "question of"))
    (found,) = item_differences(one, two)
    assert (found.num_items, found.num_alone) == (0, 1)


def edit_items(run: RunDir, change: Any) -> None:
    lines = [change(json.loads(line)) for line in run.items("text").read_text().splitlines()]
    run.items("text").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_stands_before_the_end_of_a_prompt_counts(tmp_path: Path) -> None:
    """Another system prompt or tool is another item, although the last message and the reference are the same."""
    one, two = (make_run(tmp_path / name, 0.5, {"a": True, "b": True}) for name in ("one", "two"))
    edit_items(one, lambda line: line | {"prompt_hash": "x"})
    edit_items(two, lambda line: line | {"prompt_hash": "x" if line["id"] == "a" else "y"})
    (found,) = item_differences(one, two)
    assert (found.num_items, found.num_alone) == (1, 1)


def test_rows_that_moved_are_the_same_rows(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", 0.5, {f"rows.jsonl:{i}#0": i > 2 for i in range(1, 7)})
    two = make_run(tmp_path / "two", 0.5, {f"rows.jsonl:{i}#0": i > 4 for i in range(1, 7)})

    def numbered_from(first: int) -> Any:
        """Rows 1 to 6 of the one are rows `first` and on of the other; rows 5 and 6 say the same."""

        def change(line: dict[str, Any]) -> dict[str, Any]:
            number = int(line["id"].split(":")[1].split("#")[0])
            name = f"rows.jsonl:{number + first - 1}#0"
            return line | {"id": name, "prompt_tail": f"prompt {min(number, 5)}", "prompt_hash": f"h{min(number, 5)}"}

        return change

    edit_items(one, numbered_from(1))
    edit_items(two, numbered_from(4))
    (found,) = item_differences(one, two)
    assert (found.num_items, found.num_alone) == (6, 0)
    assert found.broken == ("rows.jsonl:6#0", "rows.jsonl:7#0"), "rows 3 and 4, by their new names"
    (same,) = item_differences(one, one)
    assert (same.num_items, same.fixed, same.broken) == (6, (), ())


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    from tunesmith.compare.page import page

    runs = [make_run(tmp_path / place / "run", 0.5, {"a": place == "b"}) for place in ("a", "b")]
    found = compare(runs)
    assert found.runs == tuple(str(run.path) for run in runs)
    assert f"{runs[1].path} fixed 1 and broke 0 of 1 items against {runs[0].path}" in found.item_sentences()[0]
    assert str(runs[0].path) in page(found, runs)


def test_one_run_and_runs_without_scores(tmp_path: Path) -> None:
    assert compare([RunDir(tmp_path / "a")]).lines == ()
    assert compare([RunDir(tmp_path / "a"), RunDir(tmp_path / "b")]).items == ()


def test_broken_items_are_one_clear_error(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, 0.5, {"a": True}) for name in ("one", "two"))
    two.items("text").write_text("{broken")
    with pytest.raises(StageError, match="the items of task text cannot be read"):
        compare([one, two])


def test_common_items_are_compared_with_paired_statistics(tmp_path: Path) -> None:
    """The same figures as scipy gives: exact McNemar for right-or-wrong, randomisation for scores."""
    from scipy.stats import binomtest

    before = {str(i): i % 4 == 0 for i in range(120)}
    after = {str(i): i % 4 == 0 or i % 3 == 0 for i in range(120)} | {"0": False}
    one, two = make_run(tmp_path / "one", 0.5, dict(before)), make_run(tmp_path / "two", 0.5, dict(after))
    for run, right in ((one, before), (two, after)):
        lines = [json.loads(line) for line in run.items("text").read_text().splitlines()]
        for line in lines:
            line["tuned"]["scores"] = {"rougeL": 0.9 if right[line["id"]] else 0.4, "odd": None}
        run.items("text").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = item_differences(one, two)
    right, rouge = found.changes
    assert (right.metric, right.before, right.after) == ("correct", 0.25, sum(after.values()) / 120)
    assert right.p_value == pytest.approx(binomtest(1, len(found.fixed) + 1).pvalue, rel=1e-9)
    assert right.verdict == "improved" and right.difference_low > 0
    assert rouge.metric == "rougeL" and rouge.p_value < 0.001
    assert rouge.difference == pytest.approx(0.5 * right.difference)


def test_lower_is_better_where_the_record_says_so(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 0.5, {str(i): True for i in range(40)}) for name in ("one", "two")]
    for run, value in zip(runs, (3.0, 2.0), strict=True):
        lines = [json.loads(line) for line in run.items("text").read_text().splitlines()]
        for index, line in enumerate(lines):
            line["tuned"]["scores"] = {"perplexity": value + index / 100}
        run.items("text").write_text("".join(json.dumps(line) + "\n" for line in lines))
        scores = run.load(Scores)
        scores.tasks["text"]["perplexity"] = {"tuned": value, "better": "lower"}
        run.save(scores)
    (found,) = item_differences(*runs)
    assert [(change.metric, change.verdict) for change in found.changes][1] == ("perplexity", "improved")


def test_costs(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, 0.5, {"a": True}) for name in ("one", "two"))
    one.write_run({"stages": {"train": {"seconds": 10.0}, "serve": {"seconds": 3.0}, "evaluate": {"seconds": 4.0}}})
    lines = {line.path: line.values for line in compare([one, two]).lines}
    assert lines["cost.total_seconds"] == (14.0, None) and lines["cost.train_seconds"] == (10.0, None)


def test_page_and_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import finished_runs

    one = finished_runs.write(tmp_path / "one")
    two = finished_runs.write(tmp_path / "two<script>")
    text = two.items("function_calls").read_text().splitlines()[:-1]
    items = [json.loads(line) for line in text]
    for item in items[:3]:
        item["tuned"] = {"answer": 'book_table({"city": "Rome"})', "correct": False, "error": "wrong_value"}
    for run in (one, two):
        for task in ("function_calls", "text"):
            whole = [line for line in run.items(task).read_text().splitlines() if not line.endswith("cut")]
            run.items(task).write_text("\n".join(whole) + "\n")
    two.items("function_calls").write_text("".join(json.dumps(item) + "\n" for item in items))
    assert main(["compare", str(one.path), str(two.path)]) == 0
    told = capsys.readouterr().out
    assert "function_calls: two<script> fixed 0 and broke 2 of 9 items against one" in told
    assert main(["compare", str(one.path), str(two.path), "--html", str(tmp_path / "c.html")]) == 0
    page = (tmp_path / "c.html").read_text()
    assert (
        ">Broken</span>" in page
        and "two&lt;script&gt; · " in page
        and "<script>&" not in page
        and "two<script>" not in page
    )
    assert page.count("<article") == 2 and "<mark>  city = &#34;Rome&#34;\n</mark>" in page
    assert main(["compare", str(one.path), str(two.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("c.html\n")[2])
    assert found["items"][0]["broken"] == ["rows/held_out.jsonl:1#2", "rows/held_out.jsonl:2#2"]
