"""A judge over a real socket: order swapped, verdicts read however they are written, nothing lost when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_chat_server import Reply, ScriptedChatServer, completion
from tests.fakes.scripted_chat_server import Request as Received
from tunesmith import summary
from tunesmith.artifacts import Scores, Which
from tunesmith.evaluate import stage
from tunesmith.evaluate.client import Patience
from tunesmith.evaluate.interview import Model
from tunesmith.evaluate.judge import read_verdict, tuned_score
from tunesmith.recipe.schema import Data, Evaluate, JudgeTask, Recipe
from tunesmith.recipe.schema import Model as BaseModel
from tunesmith.store.run_dir import RunDir

QUICK = Patience(timeout_seconds=60.0, connect_timeout_seconds=60.0, num_tries=1, num_tries_when_busy=1)
NUM_ROWS = 10


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"reason": "A is right", "winner": "B"}', "B"),
        ('```json\n{"reason": "…", "winner": "a"}\n```', "A"),
        ('Both are fine.\n{"winner": "tie", "reason": "same"} Done.', "tie"),
        ('{"winner": "A"} no, on reflection: {"winner": "B"}', "B"),
        ('<think>{"winner": "A"}</think>{"winner": "Answer B"}', "B"),
        ('{"WINNER": "Neither"}', "tie"),
        ('{"verdict": "draw"}', "tie"),
        ("My verdict is [[C]]", "tie"),
        ("[[A]]", "A"),
        ("**Winner:** B", "B"),
        ("The winner is answer A.", "A"),
        (" B.\n", "B"),
        ('{"winner": "A"', "A"),  # cut at max_tokens, and still said
        ("", None),
        ("Answer A is better than B", None),
        ('{"winner": "C"}', None),
        ('{"winner": null}', None),
        ('{"reason": "A"}', None),
        ("{" * 100_000, None),
        ('{"a":' * 50_000, None),
        ("I cannot judge this.", None),
    ],
)
def test_verdicts_are_read_or_not(text: str, verdict: str | None) -> None:
    assert read_verdict(text) == verdict


def test_only_a_preference_that_survives_the_swap_counts() -> None:
    assert tuned_score("B", "A") == 1.0 and tuned_score("A", "B") == 0.0
    others = [(f, s) for f in ("A", "B", "tie") for s in ("A", "B", "tie") if (f, s) not in (("A", "B"), ("B", "A"))]
    assert len(others) == 7 and {tuned_score(f, s) for f, s in others} == {0.5}  # type: ignore[arg-type]


class Panel:
    """Two models and a judge, all behind one server."""

    def __init__(self, path: Path, judge: Any, **settings: Any) -> None:
        self._path, self._judge, self._settings = path, judge, settings
        rows = [{"prompt": f"say {i}", "completion": f"reference {i}"} for i in range(NUM_ROWS)]
        (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.requests: list[Received] = []

    def _script(self, request: Received, number: int) -> Reply | dict[str, Any]:
        asked = request["messages"][-1]["content"]
        if request["model"] == "the-judge":
            made: Reply | dict[str, Any] = self._judge(request)
            return made
        number = int(asked.split()[1])
        return completion("both say this" if number == 9 else f"{request['model']} answer {number}")

    def run(self) -> tuple[Scores, list[dict[str, Any]]]:
        with ScriptedChatServer(self._script) as server:
            task = JudgeTask((str(self._path / "rows.jsonl"),), f"{server.url}/v1", "the-judge", **self._settings)
            recipe = Recipe("r", BaseModel("base"), Data(()), evaluate=Evaluate(judge=task, concurrency=4))
            run_dir = RunDir(self._path / "run")
            names: tuple[Which, ...] = ("base", "tuned")
            models = {which: self._model(server, which, run_dir) for which in names}
            scores = stage.measure(recipe, run_dir, models, patience=QUICK)
            self.requests = [request for request in server.requests if request["model"] == "the-judge"]
        return scores, [json.loads(line) for line in run_dir.items("judge").read_text().splitlines()]

    def _model(self, server: ScriptedChatServer, which: Which, run_dir: RunDir) -> Model:
        answers = run_dir.stage("evaluate") / f"answers.{which}.jsonl"
        return Model(which, lambda: server.endpoint(which), which, answers)


def prefers(word: str) -> Any:
    """A judge that prefers the answer with a word in it, whichever place it has."""

    def judge(request: Received) -> dict[str, Any]:
        shown = request["messages"][-1]["content"]
        first = shown[shown.index("<answer A") : shown.index("<answer B")]
        return completion(json.dumps({"reason": f"has {word}", "winner": "A" if word in first else "B"}))

    return judge


def test_a_judge_that_sees_the_difference(tmp_path: Path) -> None:
    panel = Panel(tmp_path, prefers("tuned"))
    scores, items = panel.run()
    found = scores.tasks["judge"]["win_rate"]
    assert (found["num_wins"], found["num_losses"], found["num_ties"], found["num_pairs"]) == (9, 0, 1, NUM_ROWS)
    assert (found["base"], found["tuned"]) == (pytest.approx(0.05), pytest.approx(0.95))
    assert found["difference"] == pytest.approx(0.9) and found["p_value"] == pytest.approx(2 / 2**9)
    assert found["verdict"] == "improved"
    assert summary.comparison_table(scores).endswith("improved; 9 won, 1 tied, 0 lost")
    assert len(panel.requests) == 2 * 9  # equal answers are a tie without asking
    note = "base shown first: prefers tuned; tuned shown first: prefers tuned; has tuned"
    assert items[0]["tuned"]["detail"] == note and items[0]["base"]["correct"] is False
    assert items[9]["tuned"]["detail"] == "the answers are equal" and items[9]["tuned"]["scores"] == {"win_rate": 0.5}
    (text, _) = [r["messages"][-1]["content"] for r in panel.requests if "say 0" in r["messages"][-1]["content"]]
    assert "reference 0" in text and "user: say 0" in text and "Criteria: correctness first" in text
    assert scores.protocol["tasks"]["judge"]["judge"] == "the-judge"


def test_a_judge_that_favours_a_place_finds_no_winner(tmp_path: Path) -> None:
    scores, _ = Panel(tmp_path, lambda request: completion('{"winner": "A"}')).run()
    found = scores.tasks["judge"]["win_rate"]
    assert (found["num_wins"], found["num_losses"], found["num_ties"]) == (0, 0, NUM_ROWS)
    assert (found["tuned"], found["verdict"]) == (0.5, "cannot tell")


def test_unreadable_verdicts_are_reminded_once_counted_and_part_of_no_number(tmp_path: Path) -> None:
    def judge(request: Received) -> dict[str, Any]:
        text = request["messages"][1]["content"]
        if "say 3" in text:
            return completion("hard to say")
        if "say 4" in text and len(request["messages"]) == 2:
            return completion("hmm")
        asked = dict(request, messages=request["messages"][:2])
        return dict(prefers("base")(asked))

    panel = Panel(tmp_path, judge)
    scores, items = panel.run()
    found = scores.tasks["judge"]["win_rate"]
    assert (found["num_wins"], found["num_losses"], found["num_ties"]) == (0, 8, 1)
    assert found["num_items"] == NUM_ROWS - 1 and found["verdict"] == "regressed"
    assert scores.failures["judge"] == {"base": {"unparsable_verdict": 1}, "tuned": {"unparsable_verdict": 1}}
    assert items[3]["tuned"]["error"] == "unparsable_verdict" and items[3]["tuned"]["answer"] == "tuned answer 3"
    assert len(panel.requests) == 2 * 9 + 2 + 2 and scores.num_unanswered == 0


def test_a_judge_that_fails_costs_its_items_and_is_asked_again_next_time(tmp_path: Path) -> None:
    def failing(request: Received) -> Reply | dict[str, Any]:
        broken = any(f"say {i}" in request["messages"][1]["content"] for i in (1, 2))
        return Reply(b"overloaded", 503) if broken else dict(prefers("tuned")(request))

    panel = Panel(tmp_path, failing)
    scores, items = panel.run()
    assert scores.tasks["judge"]["win_rate"]["num_wins"] == 7
    assert scores.failures["judge"]["tuned"] == {"request_failed:http_503": 2} and scores.num_unanswered == 2
    assert items[1]["tuned"]["detail"] == "the judge: overloaded" and items[1]["tuned"]["answered"] is False
    panel._judge = prefers("tuned")
    scores, _ = panel.run()
    assert scores.tasks["judge"]["win_rate"]["num_wins"] == 7 + 2 and scores.num_unanswered == 0


def test_a_judge_that_is_not_there_costs_its_task_only(tmp_path: Path) -> None:
    panel = Panel(tmp_path, prefers("tuned"))
    with ScriptedChatServer(panel._script) as server:
        dead = ScriptedChatServer(panel._script)
        dead._server.server_close()
        task = JudgeTask((str(tmp_path / "rows.jsonl"),), dead.url, "the-judge")
        recipe = Recipe("r", BaseModel("base"), Data(()), evaluate=Evaluate(judge=task))
        run_dir = RunDir(tmp_path / "run")
        names: tuple[Which, ...] = ("base", "tuned")
        models = {which: panel._model(server, which, run_dir) for which in names}
        scores = stage.measure(recipe, run_dir, models, patience=QUICK)
    assert scores.tasks["judge"] == {} and scores.num_unanswered == NUM_ROWS
    assert scores.failures["judge"]["tuned"] == {"request_failed:not_asked": NUM_ROWS}


def test_the_reference_is_shown_only_when_wanted(tmp_path: Path) -> None:
    panel = Panel(tmp_path, prefers("tuned"), show_reference=False, criteria="brevity", limit=2)
    scores, _ = panel.run()
    assert scores.tasks["judge"]["win_rate"]["num_items"] == 2
    assert not any("reference" in request["messages"][1]["content"] for request in panel.requests)
    assert all("Criteria: brevity" in request["messages"][1]["content"] for request in panel.requests)


def test_an_answer_cannot_close_its_own_mark(tmp_path: Path) -> None:
    panel = Panel(tmp_path, prefers("tuned"))
    panel.run()
    marks = {line for line in panel.requests[0]["messages"][1]["content"].splitlines() if line.startswith("</answer A")}
    others = {line for line in panel.requests[-1]["messages"][1]["content"].splitlines() if line.startswith("</answer")}
    assert len(marks) == 1 and not marks & others
