"""Multi-turn categories in a recipe: a dialogue over a real socket, base beside tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_chat_server import Reply, Request, completion
from tests.unit.evaluate.test_evaluate_bfcl_multi_turn_scoring import WANTED, write
from tests.unit.evaluate.test_evaluate_stage import QUICK, items, serving
from tunesmith.artifacts import Weights
from tunesmith.evaluate import stage
from tunesmith.recipe.schema import BfclTask, Data, Evaluate, Model, Recipe
from tunesmith.store.run_dir import RunDir

PROGRAM = {"root": {"w": {"type": "directory", "contents": {"a.txt": {"type": "file", "content": "one"}}}}}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_run({"lineage": {"model": {"weights": "w1", "rest": "r1"}}})
    run_dir.save(Weights("merge/model", "base", {"model.safetensors": "abc"}, 3))
    return run_dir


def recipe(tmp_path: Path, last_turns: tuple[str, str] = ("Remove it.", "Remove it."), **settings: Any) -> Recipe:
    """Return a recipe with two items of three turns; the second turn is one where something is missing."""
    name = "multi_turn_miss_func"
    asked = [[[{"role": "user", "content": "Show a.txt."}], [], [{"role": "user", "content": t}]] for t in last_turns]
    item = {
        "involved_classes": ["GorillaFileSystem"],
        "initial_config": {"GorillaFileSystem": PROGRAM},
        "missed_function": {"1": ["rm"]},
    }
    data = tmp_path / "data"
    write(data / f"BFCL_v4_{name}.json", [item | {"id": f"{name}_{n}", "question": asked[n]} for n in range(2)])
    answers = [{"id": f"{name}_{n}", "ground_truth": WANTED} for n in range(2)]
    write(data / "possible_answer" / f"BFCL_v4_{name}.json", answers)
    task = BfclTask(**({"categories": (name,), "data": str(data), "max_tokens": 32} | settings))
    evaluate = Evaluate(bfcl=task, concurrency=2)
    return Recipe("mine", Model("base"), Data(()), output_dir=str(tmp_path / "outputs"), evaluate=evaluate)


def last(request: Request) -> str:
    return str(request["messages"][-1]["content"])


def test_a_dialogue_in_a_prompt(tmp_path: Path, run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    def script(request: Request, number: int) -> dict[str, Any]:
        if last(request) == "Show a.txt.":
            return completion("[cd(folder='/'), cat(file_name='a.txt')]")
        if last(request) == "Remove it." and request["model"] == "tuned":
            return completion("[rm(file_name='a.txt')]")
        return completion("That is all.")

    with serving(script) as served:
        scores = stage.run(recipe(tmp_path), run_dir, served, patience=QUICK)
        asked = served.server.requests
    assert scores.tasks["bfcl.multi_turn_miss_func"]["accuracy"]["tuned"] == 1.0
    assert scores.tasks["bfcl.multi_turn_miss_func"]["accuracy"]["base"] == 0.0
    assert scores.failures["bfcl.multi_turn_miss_func"]["base"] == {"multi_turn:empty_turn_model_response": 2}
    first, second = (line["tuned"] for line in items(run_dir, "bfcl.multi_turn_miss_func"))
    assert first["answer"].splitlines() == [
        "[\"[cd(folder='/'), cat(file_name='a.txt')]\", \"That is all.\"]",
        '["That is all."]',
        '["[rm(file_name=\'a.txt\')]", "That is all."]',
    ]
    assert second["correct"] and "expected" not in first["detail"]
    # The two items ask the same, so each request went out once a model: 5 by the tuned one, 4 by the base model.
    assert len(asked) == 9
    told = [request for request in asked if "'content': '{\"file_content\": \"one\"}'" in last(request)]
    assert len(told) == 2 and all("tools" not in request and request["max_tokens"] == 32 for request in asked)
    label = scores.protocol["tasks"]["bfcl.multi_turn_miss_func"]
    assert (label["protocol"], label["function_descriptions"]) == ("prompt", "own")
    assert "not comparable with the leaderboard's" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["fc-openai-tools", "fc-native-template"])
def test_a_dialogue_with_tools(protocol: str, tmp_path: Path, run_dir: RunDir) -> None:
    def script(request: Request, number: int) -> dict[str, Any]:
        names = [tool["function"]["name"] for tool in request["tools"]]
        if last(request) == "Show a.txt." and "rm" not in names:
            return completion(None, [("cd", '{"folder": "/"}'), ("cat", '{"file_name": "a.txt"}')])
        if last(request) == "Remove it." and "rm" in names:
            return completion(None, [("rm", '{"file_name": "a.txt"}')])
        return completion("That is all.")

    with serving(script) as served:
        scores = stage.run(recipe(tmp_path, protocol=protocol), run_dir, served, patience=QUICK)
        asked = served.server.requests
    assert scores.tasks["bfcl.multi_turn_miss_func"]["accuracy"]["tuned"] == 1.0
    (answered,) = [r for r in asked if r["model"] == "tuned" and last(r) == '{"file_content": "one"}']
    call, one, two = answered["messages"][-3:]
    assert [made["id"] for made in call["tool_calls"]] == [one["tool_call_id"], two["tool_call_id"]]


def test_a_request_that_fails_costs_its_item(tmp_path: Path, run_dir: RunDir) -> None:
    def script(request: Request, number: int) -> Any:
        if last(request) == "Remove it." and request["model"] == "tuned":
            return Reply({"error": {"message": "too long"}}, 400)
        return completion("That is all.")

    with serving(script) as served:
        scores = stage.run(recipe(tmp_path, ("Remove it.", "And now?")), run_dir, served, patience=QUICK)
    failures = scores.failures["bfcl.multi_turn_miss_func"]["tuned"]
    assert failures == {"request_failed:http_400": 1, "multi_turn:empty_turn_model_response": 1}
    result = json.loads((run_dir.stage("evaluate") / "results/bfcl_mine-tuned_multi_turn_miss_func_2.json").read_text())
    assert (result["errors"], result["incorrect"], result["success_rate"]) == (1, 1, 0.5)
