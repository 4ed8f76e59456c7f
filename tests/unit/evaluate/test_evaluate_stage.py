"""The stage against a scripted endpoint: every item accounted, a killed run asks only what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_chat_server import Reply, Request, ScriptedChatServer, completion
from tunesmith.artifacts import Endpoint, Scores, Weights, Which
from tunesmith.errors import EvaluateError, ServeError
from tunesmith.evaluate import stage
from tunesmith.evaluate.client import Patience
from tunesmith.evaluate.interview import what_answers_depend_on
from tunesmith.recipe.schema import Data, Evaluate, FunctionCallTask, Model, Recipe, Source, TextTask
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

# Quick to try again; the limits are for machines that stand still, no test here waits for one.
QUICK = Patience(timeout_seconds=60.0, connect_timeout_seconds=60.0, num_tries=2, first_pause_seconds=0.01)
NUM_ROWS = 12


class FakeServing:
    """Both models behind one scripted server; notes in which order they are asked for."""

    def __init__(self, server: ScriptedChatServer) -> None:
        self.server = server
        self.asked_for: list[Which] = []

    def endpoint(self, which: Which) -> Endpoint:
        self.asked_for.append(which)
        return self.server.endpoint(which)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_run({"lineage": {"model": {"weights": "w1", "rest": "r1"}}})
    run_dir.save(Weights("merge/model", "base", {"model.safetensors": "abc"}, 3))
    return run_dir


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": f"{i}"}) + "\n" for i in range(NUM_ROWS)))
    task = TextTask((str(rows),), ("exact_match", "jaccard"), None, 16)
    evaluate = Evaluate(text=task, concurrency=3)
    return Recipe("r", Model("base"), Data(()), output_dir=str(tmp_path / "outputs"), evaluate=evaluate)


def tuned_knows(request: Request, number: int) -> dict[str, Any]:
    """The tuned model repeats what it was told to say, the base model never does."""
    words = request["messages"][0]["content"].split()
    return completion(words[1] if request["model"] == "tuned" else "what?")


@contextlib.contextmanager
def serving(script: Any) -> Iterator[FakeServing]:
    with ScriptedChatServer(script) as server:
        yield FakeServing(server)


def items(run_dir: RunDir, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run_dir.items(task).read_text().splitlines()]


def test_base_beside_tuned(recipe: Recipe, run_dir: RunDir) -> None:
    with serving(tuned_knows) as served:
        scores = stage.run(recipe, run_dir, served, patience=QUICK)
        assert served.asked_for == ["base", "tuned"]
        assert len(served.server.requests) == 2 * NUM_ROWS
    found = scores.tasks["text"]["exact_match"]
    assert (found["base"], found["tuned"], found["num_items"], found["num_pairs"]) == (0.0, 1.0, NUM_ROWS, NUM_ROWS)
    assert found["verdict"] == "improved" and found["p_value"] == pytest.approx(2 / 2**NUM_ROWS)
    assert (found["num_fixed"], found["num_broken"], found["difference"]) == (NUM_ROWS, 0, 1.0)
    assert found["tuned_low"] == pytest.approx(0.7575, abs=1e-4) and found["tuned_high"] == 1.0
    assert (found["better"], found["maximum"]) == ("higher", 1.0)
    assert scores.num_unanswered == 0 and scores.failures == {"text": {"base": {}, "tuned": {}}}
    run_dir.save(scores)
    assert run_dir.load(Scores) == scores
    told = items(run_dir, "text")
    assert scores.items == {"text": "evaluate/text.items.jsonl"}
    assert [item["reference"] for item in told] == [str(i) for i in range(NUM_ROWS)]
    assert told[3]["id"].endswith("rows.jsonl:4#2") and told[3]["prompt_tail"] == "say 3"
    assert told[3]["base"]["answer"] == "what?" and told[3]["base"]["correct"] is False
    assert told[3]["tuned"]["answer"] == "3" and told[3]["tuned"]["correct"] is True
    assert stage.summary(scores)["evaluate/text/exact_match/tuned"] == 1.0
    assert stage.summary(scores)["evaluate/text/exact_match/base"] == 0.0


def test_without_the_base_model(recipe: Recipe, run_dir: RunDir) -> None:
    evaluate = Evaluate(base_model=False, text=recipe.evaluate.text if recipe.evaluate else None)
    recipe = dataclasses.replace(recipe, evaluate=evaluate)
    with serving(tuned_knows) as served:
        scores = stage.run(recipe, run_dir, served, patience=QUICK)
        assert served.asked_for == ["tuned"]
    found = scores.tasks["text"]["exact_match"]
    assert found["base"] is None and found["tuned"] == 1.0 and "verdict" not in found
    assert "base" not in items(run_dir, "text")[0]


def test_answered_items_are_not_asked_again(recipe: Recipe, run_dir: RunDir) -> None:
    with serving(tuned_knows) as served:
        first = stage.run(recipe, run_dir, served, patience=QUICK)
    with serving(tuned_knows) as served:
        second = stage.run(recipe, run_dir, served, patience=QUICK)
        assert served.asked_for == [] and served.server.requests == []
    assert second.tasks == first.tasks


def test_another_run_need_not_ask_the_same_base_model(recipe: Recipe, run_dir: RunDir, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "other")
    other.write_run({"lineage": {"model": {"weights": "w1", "rest": "r1"}}})
    other.save(Weights("merge/model", "base", {"model.safetensors": "def"}, 3))
    with serving(tuned_knows) as served:
        first = stage.run(recipe, run_dir, served, patience=QUICK)
        second = stage.run(recipe, other, served, patience=QUICK)
        assert [request["model"] for request in served.server.requests].count("base") == NUM_ROWS
        assert served.asked_for == ["base", "tuned", "tuned"]
    assert second.tasks == first.tasks


def test_a_killed_evaluation_asks_only_what_is_missing(recipe: Recipe, run_dir: RunDir, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Dying(FakeServing):
        def endpoint(self, which: Which) -> Endpoint:
            if which == "tuned":
                raise Killed
            return super().endpoint(which)

    with ScriptedChatServer(tuned_knows) as server, pytest.raises(Killed):
        stage.run(recipe, run_dir, Dying(server), patience=QUICK)
    shutil.rmtree(tmp_path / "outputs")  # where runs share answers
    kept = run_dir.stage("evaluate") / "answers.base.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # five answers, and half of a sixth
    with serving(tuned_knows) as served:
        scores = stage.run(recipe, run_dir, served, patience=QUICK)
        asked = [request["model"] for request in served.server.requests]
    assert asked.count("base") == NUM_ROWS - 5 and asked.count("tuned") == NUM_ROWS
    assert scores.tasks["text"]["exact_match"]["tuned"] == 1.0


@pytest.mark.parametrize("change", ["weights", "max_tokens", "seed", "base"])
def test_answers_of_something_else_are_not_used(recipe: Recipe, run_dir: RunDir, change: str) -> None:
    with serving(tuned_knows) as served:
        stage.run(recipe, run_dir, served, patience=QUICK)
    expected = {"base": NUM_ROWS, "tuned": NUM_ROWS}
    if change == "weights":
        run_dir.save(Weights("merge/model", "base", {"model.safetensors": "other"}, 3))
        expected["base"] = 0
    elif change == "base":
        run_dir.write_run({"lineage": {"model": {"weights": "w2", "rest": "r1"}}})
        expected["tuned"] = 0
    elif change == "seed":
        recipe = dataclasses.replace(recipe, seed=1)
    else:
        assert recipe.evaluate and recipe.evaluate.text
        text = dataclasses.replace(recipe.evaluate.text, max_tokens=17)
        recipe = dataclasses.replace(recipe, evaluate=dataclasses.replace(recipe.evaluate, text=text))
    with serving(tuned_knows) as served:
        stage.run(recipe, run_dir, served, patience=QUICK)
        asked = [request["model"] for request in served.server.requests]
    assert {which: asked.count(which) for which in ("base", "tuned")} == expected


def test_equal_questions_are_asked_once(recipe: Recipe, run_dir: RunDir, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "say 1", "completion": "1"}\n' * 4)
    with serving(tuned_knows) as served:
        scores = stage.run(recipe, run_dir, served, patience=QUICK)
        assert len(served.server.requests) == 2
    assert scores.tasks["text"]["exact_match"]["num_items"] == 4 == len(items(run_dir, "text"))


def test_failed_items_are_wrong_counted_and_left_out_of_the_comparison(recipe: Recipe, run_dir: RunDir) -> None:
    def script(request: Request, number: int) -> Reply | dict[str, Any]:
        content, model = request["messages"][0]["content"], request["model"]
        if content == "say 3" and model == "base":
            return Reply(b"broken", 500)
        if content == "say 4" and model == "tuned":
            return Reply(b'{"error": {"message": "too long"}}', 400)
        if content == "say 5":
            return Reply(b"not json")
        return completion(content.split()[1])

    with serving(script) as served:
        scores = stage.run(recipe, run_dir, served, patience=QUICK)
    found = scores.tasks["text"]["exact_match"]
    assert (found["base"], found["tuned"]) == (10 / NUM_ROWS, 10 / NUM_ROWS)
    assert (found["base_num_failed"], found["tuned_num_failed"], found["num_pairs"]) == (2, 2, NUM_ROWS - 3)
    assert (found["difference"], found["verdict"]) == (0.0, "cannot tell")
    assert scores.failures["text"] == {
        "base": {"request_failed:http_500": 1, "request_failed:malformed": 1},
        "tuned": {"request_failed:http_400": 1, "request_failed:malformed": 1},
    }
    assert scores.num_unanswered == 3  # a 400 would be refused again
    told = items(run_dir, "text")
    assert len(told) == NUM_ROWS
    assert told[4]["tuned"]["error"] == "request_failed:http_400" and told[4]["tuned"]["detail"] == "too long"
    with serving(tuned_knows) as served:
        stage.run(recipe, run_dir, served, patience=QUICK)
        assert len(served.server.requests) == 4


def test_an_endpoint_that_dies_is_started_once_more(recipe: Recipe, run_dir: RunDir) -> None:
    with ScriptedChatServer(tuned_knows) as second:
        first = ScriptedChatServer(lambda r, n: tuned_knows(r, n) if n < 5 else Reply(b"", hang_up=True))

        class Restarting(FakeServing):
            def endpoint(self, which: Which) -> Endpoint:
                super().endpoint(which)
                return (first if len(self.asked_for) == 1 else second).endpoint(which)

        with first:
            served = Restarting(second)
            scores = stage.run(recipe, run_dir, served, patience=QUICK)
    assert served.asked_for == ["base", "base", "tuned"]
    assert scores.num_unanswered == 0 and scores.tasks["text"]["exact_match"]["num_pairs"] == NUM_ROWS


def test_an_endpoint_that_cannot_be_started_again_costs_its_items(recipe: Recipe, run_dir: RunDir) -> None:
    class Gone(FakeServing):
        def endpoint(self, which: Which) -> Endpoint:
            if which in self.asked_for and which == "base":
                raise ServeError("the port is taken")
            return super().endpoint(which)

    script = lambda r, n: Reply(b"", hang_up=True) if r["model"] == "base" and n >= 5 else tuned_knows(r, n)  # noqa: E731
    with ScriptedChatServer(script) as server:
        scores = stage.run(recipe, run_dir, Gone(server), patience=QUICK)
    found = scores.tasks["text"]["exact_match"]
    assert (found["base_num_failed"], found["num_pairs"], found["tuned"]) == (NUM_ROWS - 5, 5, 1.0)


def test_nothing_answered_stops_with_the_commonest_reason(recipe: Recipe, run_dir: RunDir) -> None:
    with serving(lambda r, n: Reply(b'{"error": {"message": "no chat template"}}', 400)) as served:
        with pytest.raises(
            EvaluateError, match="none of 12 items was answered by the base model: 12 × http_400"
        ) as raised:
            stage.run(recipe, run_dir, served, patience=QUICK)
        assert raised.value.where == served.server.url
    assert "no chat template" in raised.value.what and "server.log" in raised.value.do


def test_both_tasks_share_one_server_start(recipe: Recipe, run_dir: RunDir, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = {"messages": [{"role": "user", "content": "call 1"}, answer], "tools": [tool]}
    quiet = {
        "messages": [{"role": "user", "content": "hello 2"}, {"role": "assistant", "content": "hi"}],
        "tools": [tool],
    }
    (tmp_path / "calls.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(quiet) + "\n")
    assert recipe.evaluate
    task = FunctionCallTask((str(tmp_path / "calls.jsonl"),))
    recipe = dataclasses.replace(recipe, evaluate=Evaluate(text=recipe.evaluate.text, function_calls=task))

    def script(request: Request, number: int) -> dict[str, Any]:
        if request["messages"][0]["content"] == "call 1" and request["model"] == "tuned":
            return completion(None, [("f", '{"n": 1}')])
        return tuned_knows(request, number)

    with serving(script) as served:
        scores = stage.run(recipe, run_dir, served, patience=QUICK)
        assert served.asked_for == ["base", "tuned"]
    found = scores.tasks["function_calls"]
    assert (found["accuracy"]["base"], found["accuracy"]["tuned"]) == (0.5, 1.0)
    assert (found["call_accuracy"]["base"], found["call_accuracy"]["tuned"]) == (0.0, 1.0)
    assert (found["made_a_call"]["num_items"], found["abstention_accuracy"]["num_items"]) == (1, 1)
    assert scores.tasks["text"]["exact_match"]["num_items"] == NUM_ROWS
    assert scores.failures["function_calls"] == {"base": {"no_call": 1}, "tuned": {}}
    assert items(run_dir, "function_calls")[0]["tuned"]["answer"] == 'f({"n": 1})'


def test_line_separators_in_answers_stay_on_their_line(recipe: Recipe, run_dir: RunDir) -> None:
    with serving(lambda r, n: completion("a\u2028b\x85c\nd")) as served:
        stage.run(recipe, run_dir, served, patience=QUICK)
    assert len(items(run_dir, "text")) == NUM_ROWS
    assert items(run_dir, "text")[0]["tuned"]["answer"] == "a\u2028b\x85c\nd"


def test_the_base_model_is_known_by_its_files_where_no_hashes_are_noted(tmp_path: Path) -> None:
    base = tmp_path / "base"
    files.write_text(base / "config.json", '{"model_type": "llama"}')
    files.write_bytes(base / "model.safetensors", b"weights")
    recipe = Recipe("r", Model(str(base)), Data((Source("x"),)), output_dir=str(tmp_path / "outputs"))
    run_dir = RunDir(tmp_path / "bare")
    first = what_answers_depend_on(recipe, run_dir, "base")
    assert what_answers_depend_on(recipe, run_dir, "base") == first
    files.write_bytes(base / "model.safetensors", b"WEIGHTS")
    assert what_answers_depend_on(recipe, run_dir, "base") != first


def test_answers_depend_on_a_template_files_content(recipe: Recipe, run_dir: RunDir, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("one")
    recipe = dataclasses.replace(recipe, data=Data((), chat_template=str(template)))
    first = what_answers_depend_on(recipe, run_dir, "tuned")
    template.write_text("two")
    assert what_answers_depend_on(recipe, run_dir, "tuned") != first
