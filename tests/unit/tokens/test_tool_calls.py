"""Calls are found in every family's writing, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.tokens.tool_calls import certain_content, parse_tool_calls

A = {"name": "find", "arguments": {"city": "Köln", "nights": 3, "open": True, "with": [1.5, None]}}
B = {"name": "book.it-now_2", "arguments": {}}
SAY = {"name": "say", "arguments": {"text": "</tool_call>"}}
JSON_A, JSON_B = json.dumps(A, ensure_ascii=False), json.dumps(B)
LLAMA_A = json.dumps({"type": "function", "name": "find", "parameters": A["arguments"]}, ensure_ascii=False)
ARGUMENTS_A = json.dumps(A["arguments"], ensure_ascii=False)

FOUND: list[tuple[str, str, list[dict[str, Any]]]] = [
    (f"<tool_call>\n{JSON_A}\n</tool_call>", "", [A]),
    (f"<tool_call>{JSON_A}</tool_call>\n<tool_call>\n{JSON_B}\n</tool_call>", "", [A, B]),
    (f"Let me see. \n<tool_call>\n{JSON_A}\n</tool_call>\n", "Let me see.", [A]),
    (f"One <tool_call>{JSON_A}</tool_call> and two", "One and two", [A]),
    (f"<tool_call>\n{JSON_A}", "", [A]),  # whole JSON, the closing tag cut off
    (f'<tool_call>\n{{"name": "find", "arguments": {json.dumps(ARGUMENTS_A)}}}\n</tool_call>', "", [A]),
    ('<tool_call>\n{"name": "say", "arguments": {"text": "</tool_call>"}}\n</tool_call>', "", [SAY]),
    (f"[TOOL_CALLS] [{JSON_A}, {JSON_B}]", "", [A, B]),
    (f"[TOOL_CALLS]find{ARGUMENTS_A}[TOOL_CALLS]book.it-now_2{{}}", "", [A, B]),
    (f"Sure.[TOOL_CALLS]find[ARGS]{ARGUMENTS_A}", "Sure.", [A]),
    (f"[TOOL_CALLS]find[CALL_ID]abc123XYZ[ARGS]{ARGUMENTS_A}", "", [A]),
    (LLAMA_A, "", [A]),
    (f"<|python_tag|>{LLAMA_A}", "", [A]),
    (f"<|python_tag|>{LLAMA_A}; {JSON_B}", "", [A, B]),
    (f"{JSON_A};{JSON_B}", "", [A, B]),
    (f"<function=find>{ARGUMENTS_A}</function>", "", [A]),
    (f"<|tool_call|>[{JSON_A}]<|/tool_call|>", "", [A]),
    (f"functools[{JSON_A}, {JSON_B}]", "", [A, B]),
    (f" [{JSON_A}, {JSON_B}]\n", "", [A, B]),
    (f"```json\n[{JSON_A}]\n```", "", [A]),
    ('[{"function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]', "", [{"name": "f", "arguments": {"x": 1}}]),
    ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [{"name": "now", "arguments": {}}]),
]  # fmt: skip

LEFT_ALONE = [
    "",
    "Just words.",
    "<tool_call>",
    "<tool_call>\nnot json\n</tool_call>",
    '<tool_call>\n{"name": "find", "arguments": {"city": "Kö',
    '<tool_call>{"name": "find", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
    "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
    "<tool_call>__import__('os').system('true')</tool_call>",
    '{"name": "Ada", "age": 36}',
    '[{"name": "Ada"}, {"name": "Bob"}]',
    f"[{JSON_A}, 7]",
    f"The call would be {JSON_A}",
    "[TOOL_CALLS]",
    "[TOOL_CALLS] []",
    "<function=find>no</function>",
    "<function=a b>{}</function>",
    "functools[",
    "[" * 100_000,
    "<tool_call>" + "{" * 50_000,
    '<tool_call>{"name": "f", "arguments": "not json"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "{} {}"}</tool_call>',
]


@pytest.mark.parametrize(("text", "content", "calls"), FOUND)
def test_calls_are_found(text: str, content: str, calls: list[dict[str, Any]]) -> None:
    assert parse_tool_calls(text) == (content, calls)


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_everything_else_is_left_alone(text: str) -> None:
    assert parse_tool_calls(text) == (text, [])


def test_a_broken_call_beside_a_good_one_stays_in_the_text() -> None:
    content, calls = parse_tool_calls(f"<tool_call>oops</tool_call> <tool_call>{JSON_A}</tool_call>")
    assert (content, calls) == ("<tool_call>oops</tool_call>", [A])


@given(st.text(alphabet='<>[]{}"\\|/_ \n\té:,;abctool_callTOOL_CALLSnamearguments`', max_size=200))
def test_garbage_never_hurts(text: str) -> None:
    content, calls = parse_tool_calls(text)
    assert calls or content == text
    assert 0 <= certain_content(text) <= len(text)


_ARGUMENTS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=12), st.lists, max_leaves=4),
)


@given(st.lists(_ARGUMENTS, min_size=1, max_size=3), st.text(max_size=20).filter(lambda t: not set(t) & set("<[{`")))
def test_hermes_round_trip(arguments: list[dict[str, Any]], words: str) -> None:
    calls = [{"name": f"f{i}", "arguments": a} for i, a in enumerate(arguments)]
    text = words + "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
    assert parse_tool_calls(text) == (words.rstrip(), calls)


@pytest.mark.parametrize(("text", "content", "calls"), FOUND)
def test_what_is_certain_early_stays_content(text: str, content: str, calls: list[dict[str, Any]]) -> None:
    shown = ""
    for end in range(len(text) + 1):
        certain = text[: certain_content(text[:end])]
        assert certain.startswith(shown), "what was given out cannot be taken back"
        shown = certain
    assert content.startswith(shown)


def test_words_are_certain_at_once() -> None:
    assert certain_content("Hello") == 5
    assert certain_content("Hello ") == 5
    assert certain_content("1 < 2 and <t") == len("1 < 2 and")
    assert certain_content("1 <to") == 1
    assert certain_content("1 <tx") == 5
