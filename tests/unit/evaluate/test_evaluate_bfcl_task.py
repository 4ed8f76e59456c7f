"""The leaderboard as a task: base beside tuned over a real socket, labelled numbers, result files, prompts."""

from __future__ import annotations

import copy
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_chat_server import Request, completion
from tests.unit.evaluate.test_evaluate_bfcl_responses import write_data
from tests.unit.evaluate.test_evaluate_stage import items, serving
from tunesmith.artifacts import Weights
from tunesmith.evaluate import stage
from tunesmith.evaluate.bfcl import prompts, task
from tunesmith.evaluate.bfcl.categories import CATEGORIES, COLLECTIONS
from tunesmith.evaluate.bfcl.format_sensitivity import FORMS, form_of
from tunesmith.evaluate.client import Patience
from tunesmith.recipe.schema import BfclCategory, BfclTask, Data, Evaluate, Model, Recipe
from tunesmith.store.run_dir import RunDir

PATIENT = Patience(timeout_seconds=60.0, num_tries=2, first_pause_seconds=0.01)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_run({"lineage": {"model": {"weights": "w1", "rest": "r1"}}})
    run_dir.save(Weights("merge/model", "base", {"model.safetensors": "abc"}, 3))
    return run_dir


def _recipe(data: Path, **settings: Any) -> Recipe:
    names = {"categories": ("simple_python",), "data": str(data), "max_tokens": 32} | settings
    evaluate = Evaluate(bfcl=BfclTask(**names), concurrency=2)
    return Recipe("mine", Model("base"), Data(()), output_dir=str(data.parent / "outputs"), evaluate=evaluate)


def _number(request: Request) -> int:
    """Return which item is asked: its function's name ends in it."""
    return int(json.dumps(request).split("f_")[1][0])


def _data(directory: Path) -> Path:
    """Return three items that say their number, and two of irrelevance."""
    write_data(directory)
    path = directory / "BFCL_v4_simple_python.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["function"] = copy.deepcopy(line["function"])
        line["function"][0]["description"] = f"f_{number}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_data(directory, "irrelevance", 2)
    return directory


def test_base_beside_tuned_with_protocol_and_data_version(tmp_path: Path, run_dir: RunDir) -> None:
    def script(request: Request, number: int) -> dict[str, Any]:
        if "f_" not in json.dumps(request):
            return completion("None of the functions can be used.")
        right = request["model"] == "tuned" and _number(request) > 0
        return completion(f"[f(n={_number(request) if right else 99})]")

    recipe = _recipe(_data(tmp_path / "data"), categories=("simple", "irrelevance"))
    with serving(script) as served:
        scores = stage.run(recipe, run_dir, served, patience=PATIENT)
        asked = served.server.requests
    assert all("tools" not in request for request in asked)
    found = scores.tasks["bfcl.simple_python"]["accuracy"]
    assert (found["base"], found["tuned"], found["num_items"]) == (0.0, pytest.approx(2 / 3), 3)
    assert scores.tasks["bfcl.irrelevance"]["accuracy"]["tuned"] == 1.0
    assert scores.failures["bfcl.simple_python"]["tuned"] == {"value_error:others": 1}
    told = items(run_dir, "bfcl.simple_python")
    assert told[1]["tuned"]["answer"] == "[f(n=1)]" and told[1]["reference"] == '{"f": {"n": [1]}}'
    assert "expected one of [1]" in told[1]["base"]["detail"]
    label = scores.protocol["tasks"]["bfcl.simple_python"]
    assert (label["protocol"], label["data_version"], label["num_items"]) == ("prompt", "BFCL_v4", 3)
    result = json.loads((run_dir.stage("evaluate") / "results/bfcl_mine-tuned_simple_python_3.json").read_text())
    assert result == {
        "dataset": "BFCL_v4_simple_python",
        "total": 3,
        "correct": 2,
        "incorrect": 1,
        "errors": 0,
        "accuracy": pytest.approx(2 / 3),
        "success_rate": 1.0,
        "protocol": "prompt",
    }
    # Numbers of which categories are missing are not made up.
    assert "bfcl" not in scores.tasks


def test_calls_over_the_api_and_requests_that_fail(tmp_path: Path, run_dir: RunDir) -> None:
    from tests.fakes.scripted_chat_server import Reply

    def script(request: Request, number: int) -> Any:
        if _number(request) == 2:
            return Reply({"error": {"message": "too long"}}, 400)
        return completion(None, [("f", json.dumps({"n": _number(request)}))])

    recipe = _recipe(_data(tmp_path / "data"), protocol="fc-openai-tools")
    with serving(script) as served:
        scores = stage.run(recipe, run_dir, served, patience=PATIENT)
        sent = served.server.requests[0]
    assert sent["tools"][0]["function"]["parameters"]["type"] == "object"
    assert sent["messages"] == [{"role": "user", "content": "go"}]
    assert scores.tasks["bfcl.simple_python"]["accuracy"]["tuned"] == pytest.approx(2 / 3)
    result = json.loads((run_dir.stage("evaluate") / "results/bfcl_mine-base_simple_python_3.json").read_text())
    assert (result["correct"], result["incorrect"], result["errors"]) == (2, 0, 1)
    assert result["success_rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("is_parsed", [True, False])
def test_the_native_protocol_reads_calls_wherever_the_server_left_them(
    tmp_path: Path, run_dir: RunDir, is_parsed: bool
) -> None:
    def script(request: Request, number: int) -> dict[str, Any]:
        arguments = json.dumps({"n": _number(request)})
        if is_parsed:
            return completion(None, [("f", arguments)])
        return completion(f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>')

    recipe = _recipe(_data(tmp_path / "data"), protocol="fc-native-template")
    with serving(script) as served:
        scores = stage.run(recipe, run_dir, served, patience=PATIENT)
        sent = served.server.requests[0]
    assert sent["tools"][0]["function"]["parameters"]["type"] == "dict"
    assert scores.tasks["bfcl.simple_python"]["accuracy"]["tuned"] == 1.0


def test_format_sensitivity_asks_every_item_in_every_form(tmp_path: Path, run_dir: RunDir) -> None:
    data = _data(tmp_path / "data")
    (data / "BFCL_v4_format_sensitivity.json").write_text(json.dumps({"simple_python": ["simple_python_1"]}))
    with serving(lambda request, number: completion("[f(n=1)]")) as served:
        scores = stage.run(_recipe(data, categories=("format_sensitivity",)), run_dir, served, patience=PATIENT)
    assert len(items(run_dir, "bfcl.format_sensitivity")) == 26
    # Three plain forms of Python, Markdown and the other style understand it; tagged and other notations do not.
    assert scores.tasks["bfcl.format_sensitivity"]["accuracy"]["tuned"] == pytest.approx(5 / 26)
    path = run_dir.stage("evaluate") / "results/bfcl_mine-tuned_format_sensitivity_26.json"
    assert json.loads(path.read_text())["accuracy_max_delta"] == 100.0


def test_summary_numbers_appear_when_all_their_categories_are_there() -> None:
    def record(value: float, name: str) -> dict[str, Any]:
        return {"accuracy": {"base": 0.0, "tuned": value, "num_items": CATEGORIES[name].num_items}}

    measured = {f"bfcl.{name}": record(0.5, name) for name in COLLECTIONS["non_live"]}
    made = task.leaderboard_numbers(measured)["bfcl"]
    assert set(made) == {"non_live_simple", "non_live"}
    assert made["non_live"]["tuned"] == 0.5 and made["non_live"]["base"] == 0.0
    assert task.leaderboard_numbers({"text": {}}) == {}


def test_the_recipe_names_every_category_that_can_be_asked() -> None:
    offered = set(typing.get_args(BfclCategory))
    single = {c.name for c in CATEGORIES.values() if c.scorer in ("calls", "irrelevance", "relevance")}
    assert single <= offered and "format_sensitivity" in offered
    assert offered <= set(COLLECTIONS) | {name for c in CATEGORIES.values() for name in c.names}


# ---- prompts


_JAVA = {
    "name": "A.b",
    "description": "Does it.",
    "parameters": {
        "type": "dict",
        "properties": {
            "x": {"type": "any", "description": "X."},
            "l": {"type": "ArrayList", "description": "L.", "items": {"type": "String"}},
        },
        "required": ["x"],
    },
}


def test_java_parameters_become_strings_that_say_what_they_were() -> None:
    (hinted,) = prompts.hinted([_JAVA], "java")
    assert hinted["description"] == "Does it. Note that the provided function is in Java 8 SDK syntax."
    properties = hinted["parameters"]["properties"]
    assert properties["x"]["description"] == (
        "X. This parameter can be of any type of Java object in string representation."
    )
    assert properties["l"] == {
        "type": "string",
        "description": "L. This is Java ArrayList type parameter in string representation. The list elements "
        "are of type String; they are not in string representation.",
    }
    assert "items" in _JAVA["parameters"]["properties"]["l"], "the data itself is left alone"


def test_tools_of_the_api_have_its_types_and_names() -> None:
    function = {
        "name": "a.b",
        "description": "",
        "parameters": {
            "type": "dict",
            "properties": {
                "x": {"type": "float", "description": "X."},
                "t": {"type": "tuple", "items": {"type": "float"}},
                "d": {"type": "dict", "properties": {"y": {"type": "any"}}},
                "l": {"type": "array", "items": {"type": "dict", "properties": {"z": {"type": "double"}}}},
            },
        },
    }
    (tool,) = prompts.openai_tools([function])
    assert tool["function"]["name"] == "a_b"
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "x": {"type": "number", "format": "float", "description": "X. This is a float type value."},
            "t": {"type": "array", "items": {"type": "number"}},
            "d": {"type": "object", "properties": {"y": {"type": "string"}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"z": {"type": "number"}}}},
        },
    }


def test_the_default_prompt_word_by_word() -> None:
    text = prompts.system_prompt([{"name": "f"}])
    assert text.startswith("You are an expert in composing functions.You are given a question and a set of possible")
    assert "MUST put it in the format of [func_name1(params_name1=params_value1, params_name2=params_value2...)" in text
    assert text.endswith('that you can invoke.\n[\n    {\n        "name": "f"\n    }\n]\n')
    assert ". {types}" not in text and "response.\n\nAt each turn" in text


def test_every_form_asks_for_its_own_notation() -> None:
    texts = {form.name: prompts.system_prompt([_JAVA], form) for form in FORMS}
    assert len(set(texts.values())) == 26
    for name, text in texts.items():
        assert ("<TOOLCALL>" in text) == form_of(name).tagged
        assert ("must be one of: string, integer" in text) == form_of(name).notation.endswith("xml")


def test_a_system_message_of_the_item_stands_behind_the_prompt() -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "go"}
    assert prompts.prompted([system, user], "P")[0]["content"] == "P\n\nBe brief."
    assert prompts.prompted([user], "P") == [{"role": "system", "content": "P"}, user]
