"""Dialogues: what is asked after what was said, in both protocols, and what comes of replies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.multi_turn.checking import check
from tunesmith.evaluate.bfcl.multi_turn.dialogue import Manner, converse
from tunesmith.evaluate.bfcl.multi_turn.functions import Function, describe, has_official
from tunesmith.evaluate.bfcl.multi_turn.replies import calls_of, turns_of
from tunesmith.evaluate.bfcl.multi_turn.world import PROGRAMS, methods_of
from tunesmith.evaluate.bfcl.python_calls import Undecodable
from tunesmith.evaluate.client import Answer, Request, ToolCall

ITEM: dict[str, Any] = {
    "id": "multi_turn_miss_func_900",
    "question": [
        [{"role": "user", "content": "Make a directory a."}],
        [],
        [{"role": "user", "content": "Where am I?"}],
    ],
    "initial_config": {},
    "involved_classes": ["GorillaFileSystem"],
    "missed_function": {"1": ["mkdir"]},
}
WANTED = [[], ["mkdir(dir_name='a')"], ["pwd()"]]


def names(functions: Sequence[Function]) -> list[str]:
    return [function["name"] for function in functions]


def manner(protocol: Literal["prompt", "fc-openai-tools"]) -> Manner:
    return Manner(
        protocol,
        describe(Path("/nonexistent")),
        system_prompt=lambda functions: f"You may call {' '.join(names(functions))}",
        tools=lambda functions: tuple({"type": "function", "function": {"name": name}} for name in names(functions)),
        reply=lambda answer: [{c.name: c.arguments} for c in answer.tool_calls] if answer.tool_calls else answer.text,
        max_tokens=50,
    )


def hold(how: Manner, replies: list[Answer], item: dict[str, Any] = ITEM) -> tuple[list[Request], Any]:
    """Return the requests, and the result once the replies have led to one."""
    dialogue, requests = converse(item, how), []
    try:
        requests.append(next(dialogue))
        for reply in replies:
            requests.append(dialogue.send(reply))
    except StopIteration as stop:
        return requests, stop.value
    return requests, None


def said(request: Request) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request.messages]


def test_a_prompted_dialogue() -> None:
    texts = ["There is no way.", "[mkdir(dir_name='a')]", "Done.", "[pwd(), ls()]", ""]
    requests, result = hold(manner("prompt"), [Answer(text=text) for text in texts])
    assert result == [["There is no way."], ["[mkdir(dir_name='a')]", "Done."], ["[pwd(), ls()]", ""]]
    assert [request.tools for request in requests] == [()] * 5 and requests[0].max_tokens == 50
    (role, prompt), asked = said(requests[0])
    assert role == "system" and "mkdir" not in prompt and "pwd" in prompt
    assert asked == ("user", "Make a directory a.")
    added = said(requests[1])[-1][1]
    assert added.startswith("[{'name': 'mkdir'")
    assert added.endswith("\nI have updated some more functions you can choose from. What about now?")
    assert said(requests[2])[-2:] == [
        ("assistant", "[mkdir(dir_name='a')]"),
        ("user", "[{'role': 'tool', 'name': \"mkdir(dir_name='a')\", 'content': 'None'}]"),
    ]
    assert said(requests[4])[-1] == (
        "user",
        "[{'role': 'tool', 'name': 'pwd()', 'content': '{\"current_working_directory\": \"//\"}'}, "
        "{'role': 'tool', 'name': 'ls()', 'content': '{\"current_directory_content\": [\"a\"]}'}]",
    )
    assert check(ITEM, WANTED, turns_of(result, "prompt")).valid


def test_a_dialogue_with_tools() -> None:
    make = Answer(text="I make it", tool_calls=(ToolCall("mkdir", '{"dir_name": "a"}'),))
    look = Answer(tool_calls=(ToolCall("pwd", "{}"), ToolCall("ls", '{"a": true}')))
    done = Answer(text="Done.")
    requests, result = hold(manner("fc-openai-tools"), [done, make, done, look, done])
    assert result == [
        ["Done."],
        [[{"mkdir": '{"dir_name": "a"}'}], "Done."],
        [[{"pwd": "{}"}, {"ls": '{"a": true}'}], "Done."],
    ]
    offered = [[tool["function"]["name"] for tool in request.tools] for request in requests]
    assert "mkdir" not in offered[0] and offered[1][-1] == "mkdir" and offered[4] == offered[1]
    assert said(requests[0]) == [("user", "Make a directory a.")]
    assert said(requests[1])[-1] == ("user", "I have updated some more functions you can choose from. What about now?")
    assert requests[2].messages[-2] == {
        "role": "assistant",
        "content": "I make it",
        "tool_calls": [{"type": "function", "function": {"name": "mkdir", "arguments": '{"dir_name": "a"}'}}],
    }
    assert said(requests[2])[-1] == ("tool", "None")
    assert said(requests[4])[-2:] == [
        ("tool", '{"current_working_directory": "//"}'),
        ("tool", '{"current_directory_content": ["a"]}'),
    ]
    assert check(ITEM, WANTED, turns_of(result, "fc-openai-tools")).valid


def test_a_dialogue_is_the_same_when_it_is_held_again() -> None:
    replies = [
        Answer(text=text) for text in ("[mkdir(dir_name='b')]", "x", "[touch(file_name='c')]", "x", "[ls()]", "x")
    ]
    assert hold(manner("prompt"), replies) == hold(manner("prompt"), replies)


def test_a_model_that_never_stops_is_stopped() -> None:
    forever = [Answer(text="[pwd()]")] * 100
    requests, result = hold(manner("prompt"), forever)
    assert len(requests) == 21 and result == [["[pwd()]"] * 21]
    assert check(ITEM, WANTED, turns_of(result, "prompt")).error_type == "multi_turn:force_terminated"
    # In the last turn nothing is missing, and the calls are judged.
    last = [Answer(text="no"), Answer(text="[mkdir(dir_name='a')]"), Answer(text="no"), *forever]
    requests, result = hold(manner("prompt"), last)
    assert len(requests) == 3 + 21 and check(ITEM, WANTED, turns_of(result, "prompt")).valid


def test_a_system_prompt_of_the_item_comes_after_ours() -> None:
    item = ITEM | {
        "question": [[{"role": "system", "content": "Be kind."}, *ITEM["question"][0]], *ITEM["question"][1:]]
    }
    requests, _ = hold(manner("prompt"), [], item)
    (role, text), asked = said(requests[0])
    assert role == "system" and text.startswith("You may call") and text.endswith("\n\nBe kind.") and asked[0] == "user"


def test_a_function_held_back_that_is_not_there_is_told() -> None:
    with pytest.raises(DataError, match="'fly', which no program of the item has"):
        hold(manner("prompt"), [], ITEM | {"missed_function": {"1": ["fly"]}})


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        ("[pwd(), cd(folder='a')]", ["pwd()", "cd(folder='a')"]),
        ("```pwd()```", ["pwd()"]),
        ("sort('a.txt')", ["sort()"]),  # the official decoder drops arguments without a name
        ("f(x=true, y=-1, z=[1, {'a': None}])", ["f(x='true', y=-1, z=[1, {'a': None}])"]),
        ("f(x={'a': 1, 'b': 'c'})", ["f(x={'a': 1, 'b': 'c'})"]),
        ("f(x=g(y=1))", ["f(x=g(y=1))"]),
        ("f(x=g())", ["f(x='g()')"]),
        ("f(x={'a': {'b': 1}, 'c': {}})", ["f(x=a(b=1))"]),
        ([], []),
        (["pwd()"], ["pwd()"]),
    ],
)
def test_text_to_calls(reply: Any, calls: list[str]) -> None:
    assert calls_of(reply, "prompt") == calls


@pytest.mark.parametrize(
    "reply", ["Done.", "", "f(x={})", "[5]", "[f(", None, 5, {"a": 1}, [1], "(" * 10_000, "f(x=1" * 10**6]
)
def test_text_without_calls(reply: Any) -> None:
    if reply == "":
        assert calls_of(reply, "prompt") == []
        return
    with pytest.raises(Undecodable):
        calls_of(reply, "prompt")


def test_tool_calls_to_calls() -> None:
    reply = [{"f": '{"a": "x\'y", "b": [1, null, true]}'}, {"g": {}}]
    assert calls_of(reply, "fc-openai-tools") == ['f(a="x\'y",b=[1, None, True])', "g()"]
    for broken in ("Done.", [{"f": "{"}], [{"f": "[]"}], [{"f": "[" * 100_000}], [{"f": "1" * 200_000}], [5], None):
        with pytest.raises(Undecodable):
            calls_of(broken, "fc-openai-tools")


def test_replies_that_are_no_calls_are_left_out() -> None:
    response = [["Let me see", "[pwd()]", "[]", "[ls()]", "Done"], [], "text", ["Done"]]
    assert turns_of(response, "prompt") == [[["pwd()"], ["ls()"]], [], [], []]
    assert turns_of("Error during inference", "prompt") == "Error during inference"


def test_our_own_descriptions_name_every_parameter() -> None:
    described = describe(Path("/nonexistent"))
    for name, program in PROGRAMS.items():
        assert names(described[name]) == list(methods_of(program))
        for function in described[name]:
            code = methods_of(program)[function["name"]].__code__
            parameters = function["parameters"]
            assert list(parameters["properties"]) == list(code.co_varnames[1 : code.co_argcount])
            assert len(function["description"].split()) > 6
    (move,) = [function for function in described["GorillaFileSystem"] if function["name"] == "tail"]
    assert move["parameters"] == {
        "type": "dict",
        "properties": {
            "file_name": {"type": "string", "description": "Its name; no path."},
            "lines": {"type": "integer", "description": "How many.", "default": 10},
        },
        "required": ["file_name"],
    }


def test_official_descriptions_are_taken_where_they_are(tmp_path: Path) -> None:
    assert not has_official(tmp_path)
    folder = tmp_path / "multi_turn_func_doc"
    folder.mkdir()
    assert has_official(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        describe(tmp_path)
    files = ("gorilla_file_system", "math_api", "message_api", "posting_api", "ticket_api", "trading_bot")
    for file, (name, program) in zip((*files, "travel_booking", "vehicle_control"), PROGRAMS.items(), strict=False):
        del name
        lines = [json.dumps({"name": method, "description": "", "parameters": {}}) for method in methods_of(program)]
        (folder / f"{file}.json").write_text("\n".join(lines))
    assert describe(tmp_path)["MathAPI"][0] == {"name": "logarithm", "description": "", "parameters": {}}
    (folder / "math_api.json").write_text('{"name": "logarithm"}')
    with pytest.raises(DataError, match="not the functions of MathAPI"):
        describe(tmp_path)
