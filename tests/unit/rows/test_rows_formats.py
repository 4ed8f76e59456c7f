# ruff: noqa: E501 - one case per line
"""Every spelling of a row, to one; and every reason why a row is not usable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.recipe.schema import RowFormat
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.rows.formats import BadShape, detect, to_conversation

U = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Hello"}
B = {"role": "assistant", "content": "Go away"}
S = {"role": "system", "content": "Be kind"}
FLAT = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
TOOL = {"type": "function", "function": FLAT}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"y": 2}'}


def text_of(value: Any) -> str:
    return json.dumps(value)


GOOD: list[tuple[str, RowFormat, dict[str, Any], list[dict[str, Any]]]] = [
    ("messages", "messages", {"messages": [S, U, A]}, [S, U, A]),
    ("messages as JSON text", "messages", {"messages": text_of([U, A])}, [U, A]),
    ("system column", "messages", {"messages": [U, A], "system": "Be kind"}, [S, U, A]),
    ("own system wins", "messages", {"messages": [S, U, A], "system": "Be rude"}, [S, U, A]),
    ("developer", "messages", {"messages": [S | {"role": "developer"}, U, A]}, [S, U, A]),
    ("text parts", "messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, A]}, [U, A]),
    ("null content of a call", "messages", {"messages": [U, CALLS | {"content": None}, RESULT, A]}, [U, CALLS, RESULT, A]),
    ("missing content of a call", "messages", {"messages": [U, {"role": "assistant", "tool_calls": [CALL]}]}, [U, CALLS]),
    (
        "arguments as JSON text",
        "messages",
        {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}}]}]},
        [U, CALLS],
    ),
    ("flat calls", "messages", {"messages": [U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "1"}}]}]}, [U, CALLS]),
    ("ids are kept", "messages", {"messages": [U, CALLS | {"tool_calls": [{"id": "c1", **CALL}]}]}, [U, CALLS | {"tool_calls": [{"id": "c1", **CALL}]}]),
    ("legacy function_call", "messages", {"messages": [U, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": "1"}'}}, {"role": "function", "name": "f", "content": '{"y": 2}'}]}, [U, CALLS, RESULT | {"name": "f"}]),
    ("tool result as data", "messages", {"messages": [U, CALLS, RESULT | {"content": {"y": 2}}]}, [U, CALLS, RESULT]),
    ("tool_calls null", "messages", {"messages": [U, A | {"tool_calls": None}]}, [U, A]),
    ("empty arguments", "messages", {"messages": [U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": ""}]}]}, [U, CALLS | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}]),
    ("greeting first", "messages", {"messages": [A, U, A]}, [A, U, A]),
    ("from/value under messages", "messages", {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [U, A]),
    (
        "sharegpt",
        "sharegpt",
        {"system": "Be kind", "conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "1"}}'}, {"from": "observation", "value": '{"y": 2}'}, {"from": "gpt", "value": "Hello"}]},
        [S, U, CALLS, RESULT, A],
    ),
    ("sharegpt list of calls", "sharegpt", {"conversations": [{"from": "user", "value": "Hi"}, {"from": "function_call", "value": text_of([CALL["function"]])}]}, [U, CALLS]),
    ("sharegpt role/content", "sharegpt", {"conversations": [U, A]}, [U, A]),
    ("prompt/completion", "prompt_completion", {"prompt": "Hi", "completion": "Hello"}, [U, A]),
    ("prompt/completion as messages", "prompt_completion", {"prompt": [S, U], "completion": [A]}, [S, U, A]),
    ("completion as one message", "prompt_completion", {"prompt": [U], "completion": A}, [U, A]),
    ("completion that looks like JSON", "prompt_completion", {"prompt": "Hi", "completion": "[{1"}, [U, {"role": "assistant", "content": "[{1"}]),
    ("instruction", "instruction", {"instruction": "Hi", "output": "Hello"}, [U, A]),
    ("instruction with input", "instruction", {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be kind"}, [S, {"role": "user", "content": "Add\n1 2"}, {"role": "assistant", "content": "3"}]),
    ("instruction with history", "instruction", {"instruction": "Hi", "input": "", "output": "Hello", "history": [["a", "b"]]}, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, U, A]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row_format", "value", "messages"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD]
)
def test_row_becomes_messages(row_format: RowFormat, value: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert detect([value]) == row_format
    conversation = to_conversation(value, row_format)
    assert isinstance(conversation, Conversation)
    assert list(conversation.messages) == messages
    assert to_conversation(conversation.to_json(), "messages") == conversation


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        text_of([TOOL]),
        text_of([FLAT]),
        [FLAT],
        [text_of(TOOL)],
        [FLAT | {"parameters": text_of(FLAT["parameters"])}],
    ],
)
def test_tool_declarations_in_every_spelling(tools: Any) -> None:
    conversation = to_conversation({"messages": [U, A], "tools": tools}, "messages")
    assert conversation == Conversation((U, A), (TOOL,))


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_no_tools_in_every_spelling(tools: Any) -> None:
    assert to_conversation({"messages": [U, A], "tools": tools}, "messages") == Conversation((U, A))


def test_tool_without_parameters_takes_none() -> None:
    conversation = to_conversation({"messages": [U, A], "tools": [{"name": "f", "strict": True}]}, "messages")
    assert isinstance(conversation, Conversation)
    declared = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}, "strict": True}
    assert conversation.tools == ({"type": "function", "function": declared},)


PREFERENCES: list[tuple[str, dict[str, Any], Preference]] = [
    ("texts", {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}, Preference(Conversation((U,)), (A,), (B,))),
    ("messages", {"prompt": [S, U], "chosen": [A], "rejected": [B]}, Preference(Conversation((S, U)), (A,), (B,))),
    ("system column", {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away", "system": "Be kind"}, Preference(Conversation((S, U)), (A,), (B,))),
    ("whole conversations", {"prompt": "Hi", "chosen": [U, A], "rejected": [U, B]}, Preference(Conversation((U,)), (A,), (B,))),
    ("no prompt", {"chosen": [S, U, A, U, A], "rejected": [S, U, A, U, B]}, Preference(Conversation((S, U, A, U)), (A,), (B,))),
    ("a beginning of the other", {"chosen": [U, A], "rejected": [U, A, U, B]}, Preference(Conversation((U,)), (A,), (A, U, B))),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"}, "rejected": {"from": "gpt", "value": "Go away"}, "system": "Be kind"}, Preference(Conversation((S, U)), (A,), (B,))),
    ("three lists", {"prompt_messages": [U], "chosen_messages": [A], "rejected_messages": [B], "tools": [FLAT]}, Preference(Conversation((U,), (TOOL,)), (A,), (B,))),
    ("instruction", {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go away"}, Preference(Conversation((U,)), (A,), (B,))),
    ("calls", {"prompt": "Hi", "chosen": [CALLS, RESULT, A], "rejected": [B]}, Preference(Conversation((U,)), (CALLS, RESULT, A), (B,))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"), [case[1:] for case in PREFERENCES], ids=[case[0] for case in PREFERENCES]
)
def test_row_becomes_a_preference(value: dict[str, Any], expected: Preference) -> None:
    assert detect([value]) == "preference"
    assert to_conversation(value, "preference") == expected
    assert to_conversation(expected.to_json(), "preference") == expected


BAD: list[tuple[RowFormat, dict[str, Any], str]] = [
    ("messages", {}, "no 'messages'"),
    ("messages", {"messages": []}, "is empty"),
    ("messages", {"messages": 5}, "not a list"),
    ("messages", {"messages": "nonsense"}, "not valid JSON"),
    ("messages", {"messages": [U]}, "no message is an assistant's"),
    ("messages", {"messages": [A]}, "every message is an assistant's"),
    ("messages", {"messages": [U, "Hello"]}, "message 2 is not an object"),
    ("messages", {"messages": [U, {"content": "x"}]}, "message 2 has no role"),
    ("messages", {"messages": [U, {"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
    ("messages", {"messages": [U, {"role": "assistant", "content": "  "}]}, r"message 2 \(assistant\) is empty"),
    ("messages", {"messages": [{"role": "user"}, A]}, r"message 1 \(user\) is empty"),
    ("messages", {"messages": [{"role": "user", "content": 5}, A]}, "content is not text"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}, "'image_url'"),
    ("messages", {"messages": [U, RESULT, A]}, "message 2 is a tool result, and no call"),
    ("messages", {"messages": [U, CALLS, A, RESULT]}, "message 4 is a tool result"),
    ("messages", {"messages": [U, {"role": "assistant", "tool_calls": ["f"]}]}, "call is not an object"),
    ("messages", {"messages": [U, {"role": "assistant", "tool_calls": [{"arguments": {}}]}]}, "no function name"),
    ("messages", {"messages": [U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]}, "arguments of f are not"),
    ("messages", {"messages": [U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "arguments of f are not"),
    ("messages", {"messages": [U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": 3}]}]}, "arguments of f are not"),
    ("messages", {"messages": [U, A], "tools": {"name": "f"}}, "tools are not a list"),
    ("messages", {"messages": [U, A], "tools": "[{"}, "not valid JSON"),
    ("messages", {"messages": [U, A], "tools": [5]}, "tool 1 is not an object"),
    ("messages", {"messages": [U, A], "tools": [TOOL, {"description": "x"}]}, "tool 2 has no name"),
    ("messages", {"messages": [U, A], "tools": [FLAT | {"parameters": [1]}]}, "parameters are not an object"),
    ("messages", {"messages": [U, A], "tools": [{"function": "f"}]}, "function is not an object"),
    ("messages", {"messages": [U, A], "system": 5}, "'system' must be text"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "f(x)"}]}, "the call is not valid JSON"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "[]"}]}, "empty list of calls"),
    ("prompt_completion", {"prompt": "", "completion": "x"}, "'prompt' is empty"),
    ("prompt_completion", {"prompt": "x", "completion": " "}, "'completion' is empty"),
    ("prompt_completion", {"prompt": "x"}, "no 'completion'; what it has: prompt"),
    ("prompt_completion", {"prompt": "x", "completion": 5}, "completion: the messages are not a list"),
    ("prompt_completion", {"prompt": "x", "completion": [U]}, "no message is an assistant's"),
    ("instruction", {"instruction": 7, "output": "x"}, "'instruction' must be text"),
    ("instruction", {"instruction": "x", "output": "y", "history": [["a"]]}, "history 1"),
    ("preference", {"prompt": "x", "chosen": "a", "rejected": "a"}, "are equal"),
    ("preference", {"chosen": "a", "rejected": "b"}, "prompt must end"),
    ("preference", {"prompt": [U, A], "chosen": "a", "rejected": "b"}, "prompt must end"),
    ("preference", {"prompt": "x", "chosen": [U], "rejected": [A]}, "do not begin with the prompt|does not begin"),
    ("preference", {"prompt": "other", "chosen": [U, A], "rejected": [U, B]}, "do not begin with the prompt"),
    ("preference", {"prompt": "x", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
    ("chatgpt_export", {"mapping": 5}, "not a tree"),
    ("chatgpt_export", {"mapping": {}}, "no message is an assistant's"),
]  # fmt: skip


@pytest.mark.parametrize(("row_format", "value", "reason"), BAD)
def test_bad_shape_says_why(row_format: RowFormat, value: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadShape, match=reason):
        to_conversation(value, row_format)


def node(parent: str | None, role: str | None, *parts: Any, **more: Any) -> dict[str, Any]:
    content = {"content_type": more.pop("content_type", "text"), "parts": list(parts)}
    message = {"author": {"role": role}, "content": content, **more} if role else None
    return {"parent": parent, "message": message}


TREE = {
    "root": node(None, None),
    "s": node("root", "system", ""),
    "u": node("s", "user", "Hi"),
    "old": node("u", "assistant", "Go away"),
    "thought": node("u", "assistant", "hm", content_type="thoughts"),
    "code": node("thought", "assistant", "print(1)", recipient="python"),
    "result": node("code", "tool", "1"),
    "a1": node("result", "assistant", "Hel", "lo"),
    "a2": node("a1", "assistant", "World"),
    "hidden": node("a2", "user", "secret", metadata={"is_visually_hidden_from_conversation": True}),
    "older": node("old", "user", "Why?"),
}


def test_chatgpt_tree_follows_the_current_node() -> None:
    expected = (U, {"role": "assistant", "content": "Hello\n\nWorld"})
    value = {"title": "t", "mapping": TREE, "current_node": "hidden"}
    assert detect([value]) == "chatgpt_export"
    assert to_conversation(value, "chatgpt_export") == Conversation(expected)
    # Without it the longest path is taken, which is the same one here.
    assert to_conversation({"mapping": TREE}, "chatgpt_export") == Conversation(expected)
    other = to_conversation({"mapping": TREE, "current_node": "old"}, "chatgpt_export")
    assert other == Conversation((U, {"role": "assistant", "content": "Go away"}))


def test_chatgpt_tree_with_a_circle_or_a_picture_is_bad() -> None:
    circle = {"a": node("b", "user", "x"), "b": node("a", "assistant", "y")}
    with pytest.raises(BadShape, match="circle"):
        to_conversation({"mapping": circle, "current_node": "a"}, "chatgpt_export")
    picture = {"a": node(None, "user", {"asset_pointer": "x"}, content_type="multimodal_text")}
    with pytest.raises(BadShape, match="not text"):
        to_conversation({"mapping": picture, "current_node": "a"}, "chatgpt_export")


@pytest.mark.parametrize(
    ("values", "do"),
    [
        ([{"question": "a", "answer": "b"}], "{question: prompt, answer: completion}"),
        ([{"prompt": "a", "response": "b"}], "{response: completion}"),
        ([{"text": "a"}], "rename the columns"),
        ([{"messages": [U, A], "label": True}], "label is true"),
        ([{"messages": [U, A]}, {"prompt": "a", "completion": "b"}], "split the file"),
    ],
)
def test_unknown_formats_say_what_to_do(values: list[dict[str, Any]], do: str) -> None:
    with pytest.raises(DataError) as caught:
        detect(values)
    assert do in caught.value.do


def test_rows_of_no_format_do_not_hide_the_others() -> None:
    assert detect([{"x": 1}, {"messages": [U, A]}]) == "messages"
