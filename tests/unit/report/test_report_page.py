from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import finished_runs
from tunesmith import summary
from tunesmith.artifacts import Report, Scores, Verdict
from tunesmith.recipe.schema import Recipe
from tunesmith.report import stage
from tunesmith.store.run_dir import RunDir

KINDS = ("full", "minimal", "failed", "wide", "hostile")
VOID = {"meta", "br", "img", "input", "link", "hr"}


class _Page(HTMLParser):
    """Checks that elements nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def _page(tmp_path: Path, kind: str) -> tuple[RunDir, Report, _Page]:
    run_dir = finished_runs.write(tmp_path / kind, kind)
    record = stage.run(finished_runs.recipe(), run_dir)
    return run_dir, record, _Page(run_dir.report_page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_gives_a_whole_page(tmp_path: Path, kind: str) -> None:
    run_dir, record, page = _page(tmp_path, kind)
    assert record.num_bytes == run_dir.report_page.stat().st_size < 400_000
    assert run_dir.absolute(record.path) == run_dir.report_page
    assert len(page.ids) == len(set(page.ids))
    targets = [value for name, value in page.attributes if name == "href"]
    assert all(target.startswith("#") and target[1:] in page.ids for target in targets), "links stay in the page"
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on") or name == "src"]


def test_a_full_run_shows_everything(tmp_path: Path) -> None:
    _, _, page = _page(tmp_path, "full")
    assert {"results", "trained", "curves", "examples", "speed", "gate", "lineage", "recipe"} <= set(page.ids)
    for text in (
        "Gate passed",
        "4.1\u202f%",
        "95.8\u202f%",
        "+91.7",
        "regressed",
        "cannot tell",
        "bench.c8.ttft_p95_ms < 500",
    ):
        assert text in page.text, text
    for text in (
        "rows sorted by length waste little padding",
        "f62d68a2e977fd23",
        "17cd2be84f60a935",
        "100.00%",
        "AMD EPYC",
    ):
        assert text in page.text, text
    assert "${env:TRACKING_URI}" in page.text
    assert "6\u202f000" in page.text and "abababababab… and 1 more files" in page.text
    assert "people = 2" in page.text, "function calls are laid out"


def test_missing_stages_are_left_out(tmp_path: Path) -> None:
    _, _, page = _page(tmp_path, "minimal")
    assert not {"results", "examples", "speed", "gate"} & set(page.ids)
    assert {"trained", "curves", "lineage"} <= set(page.ids)


def test_an_empty_run_directory_gives_a_page(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "empty")
    stage.run(finished_runs.recipe(), run_dir)
    assert "No stage has finished yet" in _Page(run_dir.report_page.read_text()).text


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    _, _, page = _page(tmp_path, "failed")
    assert "Stage train failed" in page.text and "the loss is not finite at step 297" in page.text
    assert "losses are not finite and leave gaps" in page.text


def test_a_broken_record_is_told_and_the_rest_shown(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "full")
    run_dir.artifact("evaluate").write_text('{"kind": "scores"')
    stage.run(finished_runs.recipe(), run_dir)
    page = _Page(run_dir.report_page.read_text())
    assert "the record of stage evaluate cannot be read" in page.text and "speed" in page.ids


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    run_dir, _, page = _page(tmp_path, "hostile")
    text = run_dir.report_page.read_text(encoding="utf-8")
    assert "<script>document" not in text and "<img" not in text
    assert "<script>document.title='owned'</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "\x00" not in text and "\x1b" not in text
    assert "x" * 1200 in text and "x" * 1201 not in text, "long texts are cut"


def test_no_secret_reaches_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", finished_runs.SECRET)
    run_dir = finished_runs.write(tmp_path, "full")
    run_dir.save(Verdict(False, ({"rule": "a", "passed": False, "evidence": f"key {finished_runs.SECRET}"},)))
    run = run_dir.read_run()
    run["stages"]["bench"] = {"state": "failed", "error": f"401 for {finished_runs.SECRET}"}
    run["command"].append(finished_runs.SECRET)
    run_dir.write_run(run)
    run_dir.resolved_recipe.write_text(f"key: {finished_runs.SECRET}")
    stage.run(finished_runs.recipe(), run_dir)
    for written in (run_dir.report_page, run_dir.report_document, run_dir.report_summary):
        assert finished_runs.SECRET not in written.read_text()


def test_a_hundred_thousand_lines_stay_small_and_keep_their_peak(tmp_path: Path) -> None:
    run_dir, record, page = _page(tmp_path, "long")
    assert record.num_bytes < 400_000
    curves = [json.loads(value) for name, value in page.attributes if name == "data-curves"]
    assert all(10 < len(line["points"]) < 500 for curve in curves for line in curve)
    # The one loss of 31.4159 among 100,000 stretches the axis of the loss.
    assert re.search(r">(30|32|35|40)</text>", run_dir.report_page.read_text())


def test_tuned_alone_is_shown_without_a_comparison(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "full")
    record = {"base": None, "tuned": 0.5, "tuned_low": 0.4, "tuned_high": 0.6, "num_items": 100, "maximum": 1.0}
    run_dir.save(Scores({"function_calls": {"accuracy": record}}))
    stage.run(finished_runs.recipe(), run_dir)
    page = _Page(run_dir.report_page.read_text())
    assert "Only the tuned model was measured" in page.text and "50.0\u202f%" in page.text


def test_sparse_records_of_other_writers_are_borne(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "full")
    tasks = {"mine": {"loss": {"tuned": 2.5, "base": 3.0}, "odd": {"tuned": float("nan")}, "gone": {}}}
    run_dir.save(Scores(tasks, {"mine": "evaluate/no-such-file.jsonl"}))  # type: ignore[arg-type]
    run_dir.write_run({"stages": None, "lineage": [], "decisions": None, "command": None})
    run_dir.requests.write_text("[]\n{}\nnonsense\n")
    stage.run(finished_runs.recipe(), run_dir)
    assert "2.5" in _Page(run_dir.report_page.read_text()).text


def test_numbers_of_the_harness_say_what_they_rest_on_and_parts_are_folded_away(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path / "run", "full")
    scores = run_dir.load(Scores)
    record = scores.tasks["text"]["exact_match"] | {
        "harness": "lm_eval 0.4.13",
        "task_version": "2.0",
        "num_fewshot": 5,
        "chat_template": "not applied",
        "backend": "checkpoint",
        "filter": "strict-match",
        "limit": 20,
    }
    more = {"lm_eval.mmlu": {"acc": record}}
    more |= {f"lm_eval.mmlu_{part}": {"acc": record | {"part_of": "lm_eval.mmlu"}} for part in ("law", "art")}
    run_dir.save(dataclasses.replace(scores, tasks=scores.tasks | more))
    stage.run(finished_runs.recipe(), run_dir)
    page = _Page(run_dir.report_page.read_text(encoding="utf-8"))
    about = "lm_eval 0.4.13, task version 2.0, 5-shot, chat template not applied, checkpoint, filter strict-match"
    assert f"{about}, only the first 20 items of each task" in page.text
    assert "Parts of these groups: 2 numbers" in page.text and "mmlu_art" in page.text


def test_the_title_of_the_recipe_is_used(tmp_path: Path) -> None:
    import dataclasses

    recipe: Recipe = finished_runs.recipe()
    recipe = dataclasses.replace(
        recipe, report=dataclasses.replace(recipe.report, title="Calls & more", num_examples=0)
    )
    run_dir = finished_runs.write(tmp_path, "full")
    stage.run(recipe, run_dir)
    page = _Page(run_dir.report_page.read_text())
    assert "Calls & more" in page.text and "book_table" not in page.text


@pytest.mark.parametrize("kind", KINDS)
def test_document_and_summary_stand_beside_the_page(tmp_path: Path, kind: str) -> None:
    run_dir, record, _ = _page(tmp_path, kind)
    told = json.loads(run_dir.absolute(record.document).read_text(), parse_constant=lambda word: pytest.fail(word))
    assert told["name"] == "quickstart-calls" and told["run"] == "20260131-142233-quickstart-calls"
    assert set(told["records"]) == {
        stage for stage in ("data", "train", "merge", "evaluate", "bench", "gate") if run_dir.artifact(stage).exists()
    }
    assert told["curves"]["train/loss"]["num_values"] == 420
    text = run_dir.absolute(record.summary).read_text()
    assert text.startswith("## quickstart-calls\n")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        widths = {len(re.findall(r"(?<!\\\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert len(tables) == {"minimal": 0, "failed": 0}.get(kind, 3)


def test_the_summary_says_what_the_page_says(tmp_path: Path) -> None:
    run_dir, record, _ = _page(tmp_path, "wide")
    text = run_dir.absolute(record.summary).read_text()
    assert "❌ **Gate failed** · 1 of 2 rules hold" in text
    assert "| ❌ | `bench.c8.ttft_p95_ms < 500` |" in text
    assert "| Function calls: Exactly right | 4.1 % | 95.8 % | +91.7 (+86.7 … +96.7) | ▲ improved |" in text
    assert "▲ 14 improved · ▼ 5 regressed · ≈ 9 cannot tell" in text
    assert "BFCL: simple\\_python" in text


def test_items_without_an_answer_are_told_wherever_their_number_stands(tmp_path: Path) -> None:
    from tunesmith.publish.card import model_card

    run_dir = finished_runs.write(tmp_path)
    scores = run_dir.load(Scores)
    told = "not answered, counted as wrong: 3 by the base model and 40 by the tuned model"
    scores.tasks["function_calls"]["accuracy"] |= {"base_num_failed": 3, "tuned_num_failed": 40}
    run_dir.save(scores)
    record = stage.run(finished_runs.recipe(), run_dir)
    page = _Page(run_dir.report_page.read_text())
    assert page.text.count(told) == 2, "in the headline and in the results"
    for text in (
        run_dir.absolute(record.summary).read_text(),
        model_card(finished_runs.recipe(), run_dir),
        summary.comparison_table(scores),
        summary.line("evaluate", scores),
    ):
        assert text.count(told) == 1


def test_hostile_text_stays_text_in_the_summary(tmp_path: Path) -> None:
    run_dir, record, _ = _page(tmp_path, "hostile")
    text = run_dir.absolute(record.summary).read_text()
    assert "<script>" not in text and "\\<script\\>" in text and "\x1b" not in text


def test_parts_of_a_benchmark_are_folded_and_left_out_of_the_overview(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "wide")
    scores = run_dir.load(Scores)
    record = dict(scores.tasks["lm_eval.mmlu"]["accuracy"])
    for index in range(57):
        scores.tasks[f"lm_eval.mmlu_{index}"] = {"accuracy": record | {"part_of": "lm_eval.mmlu"}}
    scores.protocol.update(
        seed=1, tasks={"lm_eval.mmlu": {"harness": "lm_eval 0.4.9", "num_fewshot": 5}, "judge": {"judge": "a-model"}}
    )
    run_dir.save(scores)
    record_of_report = stage.run(finished_runs.recipe(), run_dir)
    page = _Page(run_dir.report_page.read_text())
    assert "57 numbers" in page.text and "mmlu_56" in page.text
    assert "How this was measured" in page.text and "lm_eval 0.4.9" in page.text and "Fewshot" in page.text
    overview = run_dir.report_page.read_text().split("</figure>")[0]
    assert "BFCL: simple_java" in overview and "mmlu_3" not in overview
    assert "mmlu_3" not in run_dir.absolute(record_of_report.summary).read_text().replace("\\", "")


def test_a_judge_tells_whom_it_preferred(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "full")
    counts = {"num_wins": 41, "num_losses": 20, "num_ties": 9}
    record = {"base": 0.35, "tuned": 0.65, "num_items": 70, "maximum": 1.0, "verdict": "improved", "difference": 0.3}
    run_dir.save(Scores({"judge": {"preference": record | counts}}))
    stage.run(finished_runs.recipe(), run_dir)
    assert "41 won, 20 lost, 9 tied" in _Page(run_dir.report_page.read_text()).text


def test_serving_is_not_counted_twice(tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "full")
    state = run_dir.read_run()
    state["stages"] = {name: {"state": "done", "seconds": 60.0} for name in ("train", "evaluate", "serve")}
    run_dir.write_run(state)
    stage.run(finished_runs.recipe(), run_dir)
    assert "2 min 0 s in all" in _Page(run_dir.report_page.read_text()).text
