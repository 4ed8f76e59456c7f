"""Tool calls from end to end: a model that recites one, the server, OpenAI's client."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.tiny_checkpoint import byte_tokenizer, make_reciting_checkpoint
from tunesmith import chat
from tunesmith.chosen_model import Choice
from tunesmith.serve.engine import ServedModel
from tunesmith.serve.process import ServerProcess
from tunesmith.serve.stage import serving

TOOL: Any = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
MESSAGES: Any = [{"role": "user", "content": "a room in Köln"}]
ARGUMENTS = {"city": "Köln 🏨", "nights": 2}
ANSWER = (
    f"I look.\n<tool_call>\n{json.dumps({'name': 'find', 'arguments': ARGUMENTS}, ensure_ascii=False)}\n</tool_call>"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("reciting")
    encoded = byte_tokenizer().apply_chat_template(MESSAGES, tools=[TOOL], add_generation_prompt=True, return_dict=True)
    path = make_reciting_checkpoint(root / "model", ANSWER, num_prompt_tokens=len(encoded["input_ids"]))
    model = ServedModel(path, "recites", dtype="float32")
    with serving(model, engine="embedded", log=root / "log", timeout_seconds=120) as running:
        yield running


def ask(server: ServerProcess, **options: Any) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    return client.chat.completions.create(model="recites", messages=MESSAGES, tools=[TOOL], temperature=0, **options)


def test_a_call_comes_out_of_the_text(server: ServerProcess) -> None:
    answer = ask(server)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    (call,) = choice.message.tool_calls
    assert call.function.name == "find" and json.loads(call.function.arguments) == ARGUMENTS
    assert answer.usage.completion_tokens == len(ANSWER.encode()) + 1


def test_a_call_is_streamed(server: ServerProcess) -> None:
    chunks = [chunk.choices[0] for chunk in ask(server, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "I look."
    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert pieces[0].function.name == "find" and len(pieces) > 10
    assert json.loads("".join(piece.function.arguments or "" for piece in pieces)) == ARGUMENTS
    assert chunks[-1].finish_reason == "tool_calls"


def test_a_call_cut_off_by_the_limit_is_no_call(server: ServerProcess) -> None:
    choice = ask(server, max_tokens=40).choices[0]
    assert choice.finish_reason == "length" and not choice.message.tool_calls
    assert choice.message.content == ANSWER[:40]


OTHER: Any = {"type": "function", "function": {"name": "find_all", "parameters": {"type": "object", "properties": {}}}}
BEGINNING = '<tool_call>\n{"name": "find", "arguments": '


@pytest.fixture(scope="module")
def unwilling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model that would rather write x than begin a call, and goes on with arguments and nonsense."""
    root = tmp_path_factory.mktemp("unwilling")
    encoded = byte_tokenizer().apply_chat_template(
        MESSAGES, tools=[TOOL, OTHER], add_generation_prompt=True, return_dict=True
    )
    num_begun = len(byte_tokenizer().encode(BEGINNING))
    text = "x" * num_begun + json.dumps(ARGUMENTS, ensure_ascii=False) + " and so on"
    path = make_reciting_checkpoint(root / "model", text, num_prompt_tokens=len(encoded["input_ids"]))
    model = ServedModel(path, "recites", dtype="float32", max_model_len=400)
    with serving(model, engine="embedded", log=root / "log", timeout_seconds=120) as running:
        yield running


def force(server: ServerProcess, choice: Any, **options: Any) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    options = {"temperature": 0, "tools": [TOOL, OTHER], "tool_choice": choice} | options
    return client.chat.completions.create(model="recites", messages=MESSAGES, **options)


NAMED: Any = {"type": "function", "function": {"name": "find"}}


def test_a_named_call_is_forced(unwilling: ServerProcess) -> None:
    assert (force(unwilling, "auto").choices[0].message.content or "").startswith("xxx")
    answer = force(unwilling, NAMED, n=2)
    for choice in answer.choices:
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        assert call.function.name == "find" and json.loads(call.function.arguments) == ARGUMENTS
    pieces = [c for chunk in force(unwilling, NAMED, stream=True) for c in chunk.choices[0].delta.tool_calls or []]
    assert pieces[0].function.name == "find"
    assert json.loads("".join(piece.function.arguments or "" for piece in pieces)) == ARGUMENTS


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_some_call_is_forced(unwilling: ServerProcess, temperature: float) -> None:
    choice = force(unwilling, "required", temperature=temperature, seed=3, max_tokens=120).choices[0]
    if choice.finish_reason == "length":  # the arguments of a model that knows none may go on for ever
        assert choice.message.content.startswith('<tool_call>\n{"name": "find')
    else:
        assert choice.message.tool_calls[0].function.name in ("find", "find_all")
        assert isinstance(json.loads(choice.message.tool_calls[0].function.arguments), dict)


def test_what_cannot_be_forced_is_refused(unwilling: ServerProcess) -> None:
    for choice, tools in (("required", []), ({"type": "function", "function": {"name": "nobody"}}, [TOOL])):
        with pytest.raises(openai.BadRequestError) as told:
            force(unwilling, choice, tools=tools)
        assert told.value.param == "tool_choice"


def test_an_object_is_an_object(unwilling: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{unwilling.url}/v1", api_key="none", max_retries=0)
    wanted: Any = {"type": "json_object"}
    choice = client.chat.completions.create(
        model="recites", messages=MESSAGES, response_format=wanted, max_tokens=150, temperature=1, seed=1
    ).choices[0]
    assert choice.message.content and choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_chat_shows_calls_as_people_write_them(server: ServerProcess) -> None:
    talk = chat.Talk(server.url, "recites", [TOOL])
    shown = "".join(talk.ask(MESSAGES[0]["content"]))
    assert shown == 'I look.\n→ find(city="Köln 🏨", nights=2)'
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert "".join(talk.give_result('{"rooms": 3}')) is not None
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert talk.messages[2]["tool_call_id"] == talk.messages[1]["tool_calls"][0]["id"]
    assert "".join(talk.give_result("again")) == "(no call waits for a result)"
    talk.reset()
    assert talk.messages == []


def test_two_answers_stand_side_by_side(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    talks = [chat.Talk(server.url, "recites", [TOOL]), chat.Talk(server.url, "recites", [TOOL])]
    chat._answer_side_by_side(talks, MESSAGES[0]["content"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.count("recites") == 2 for line in lines)
    assert any(line.count("I look.") == 2 for line in lines)
    assert [message["role"] for message in talks[1].messages] == ["user", "assistant"]


def test_piped_lines_are_asked_one_after_the_other(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a room in Köln\n\n/reset\na room in Köln\n/nonsense\n"))
    talk = chat.Talk(server.url, "recites", [TOOL])
    chat._converse([talk], [Choice(server.model, "embedded", server.log, 1.0)])
    captured = capsys.readouterr()
    assert captured.out == 'I look.\n→ find(city="Köln 🏨", nights=2)\n' * 2
    assert captured.err.count("/quit ends") == 2, "once at the beginning, once for the unknown word"
    assert len(talk.messages) == 2


def test_the_command_answers_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoded = byte_tokenizer().apply_chat_template(MESSAGES, tools=[TOOL], add_generation_prompt=True, return_dict=True)
    path = make_reciting_checkpoint(tmp_path / "model", "Fine.", num_prompt_tokens=len(encoded["input_ids"]))
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([TOOL["function"]]))
    assert chat.chat(str(path), str(tmp_path), message=MESSAGES[0]["content"], tools=str(tools)) == 0
    assert capsys.readouterr().out.strip() == "Fine."
