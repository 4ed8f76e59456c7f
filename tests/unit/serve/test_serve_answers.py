"""Answers are put together from pieces of text, with their calls taken out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.serve.embedded.chat_text import ChatText
from tunesmith.serve.embedded.sequence import GrowingText

CALL = '<tool_call>\n{"name": "find", "arguments": {"city": "Köln", "n": 2}}\n</tool_call>'


def grown(text: str, size: int, **options: Any) -> tuple[ChatText, list[dict[str, Any]]]:
    choice = ChatText(finds_calls=True, streams=True, **options)
    deltas = [delta for at in range(0, len(text), size) for delta in choice.add(text[at : at + size])]
    return choice, deltas + choice.finish()


def assembled(deltas: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Put streamed deltas together as OpenAI's client does."""
    content = "".join(delta.get("content") or "" for delta in deltas)
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for piece in delta.get("tool_calls", []):
            call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.get("id", "")
            call["name"] += piece["function"].get("name", "")
            call["arguments"] += piece["function"].get("arguments", "")
    return content, [calls[i] for i in sorted(calls)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("Hello there.", "Hello there.", []),
        (CALL, "", ["find"]),
        (f"I look. \n{CALL}\n{CALL}", "I look.", ["find", "find"]),
        (f"a {CALL} b", "a b", ["find"]),
        ("1 < 2, <tool", "1 < 2, <tool", []),
        ("<tool_call>oops</tool_call>", "<tool_call>oops</tool_call>", []),
        ('{"name": "find", "parameters": {}}', "", ["find"]),
        ('{"a": 1}', '{"a": 1}', []),
        ("[TOOL_CALLS]find{}", "", ["find"]),
    ],
)
def test_streamed_and_whole_say_the_same(text: str, content: str, names: list[str], size: int) -> None:
    choice, deltas = grown(text, size)
    at_once = ChatText(finds_calls=True)
    assert at_once.add(text) == []
    at_once.finish()
    whole = at_once.message()
    streamed_content, streamed_calls = assembled(deltas)
    assert streamed_content == content == (whole["content"] or "")
    assert [call["name"] for call in streamed_calls] == names
    for streamed, call in zip(streamed_calls, whole.get("tool_calls", []), strict=True):
        assert len(streamed["id"]) == len(call["id"]) == 9
        assert json.loads(streamed["arguments"]) == json.loads(call["function"]["arguments"])
    assert choice.finish_reason("stop") == ("tool_calls" if names else "stop")
    assert choice.finish_reason("length") == "length"


def test_a_streamed_call_comes_piece_by_piece() -> None:
    _, deltas = grown(CALL, 4)
    pieces = [delta["tool_calls"][0]["function"] for delta in deltas]
    assert pieces[0] == {"name": "find", "arguments": ""}
    assert len(pieces) > 5 and all(piece["arguments"] for piece in pieces[1:])


def test_a_call_that_is_cut_off() -> None:
    cut = CALL[:50]
    choice, deltas = grown(cut, 3)
    content, calls = assembled(deltas)
    assert content == "" and calls[0]["arguments"] == cut[cut.index('{"city') :]
    assert choice.finish_reason("length") == "length"
    whole = ChatText(finds_calls=True)
    whole.add(cut)
    whole.finish()
    assert whole.message() == {"role": "assistant", "content": cut}


def test_braces_and_quotes_in_arguments_do_not_end_them() -> None:
    arguments = {"text": '}"]{\\"', "inside": [{"deep": {}}]}
    text = f'<tool_call>{{"name": "f", "arguments": {json.dumps(arguments)}}}</tool_call>'
    for size in (1, 3, 50):
        ((call,),) = (assembled(grown(text, size)[1])[1],)
        assert json.loads(call["arguments"]) == arguments


def test_without_tools_nothing_is_taken_out() -> None:
    choice = ChatText(finds_calls=False, streams=True)
    assert choice.add(CALL) == [{"content": CALL}]
    assert choice.finish() == []
    assert choice.message() == {"role": "assistant", "content": CALL}


def test_one_call_when_parallel_calls_are_not_wanted() -> None:
    choice, deltas = grown(f"{CALL}\n{CALL}", 3, one_call=True)
    assert len(choice.message()["tool_calls"]) == 1
    assert len(assembled(deltas)[1]) == 1


def bytes_decode(ids: Any) -> str:
    return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("text", ["plain", "Köln 東京 🦊", "🦊"])
def test_characters_appear_whole(text: str) -> None:
    growing = GrowingText(bytes_decode, ())
    pieces = [growing.push(byte) for byte in text.encode()]
    assert "".join(pieces) + growing.finish() == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_are_no_text_do_not_block() -> None:
    growing = GrowingText(bytes_decode, ())
    out = "".join(growing.push(0xFF) for _ in range(20)) + growing.push(65) + growing.finish()
    assert out.endswith("A") and out.count("\ufffd") >= 8


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abcdef", ("cd",), "ab"),
        ("abcXdef", ("cd", "X"), "abc"),
        ("aaab", ("aab",), "a"),
        ("abc", ("cd",), "abc"),
        ("ab", ("ab",), ""),
    ],
)
def test_stop_strings_across_pieces(text: str, stop: tuple[str, ...], expected: str) -> None:
    growing = GrowingText(bytes_decode, stop)
    out = ""
    for byte in text.encode():
        out += growing.push(byte)
        if growing.stopped:
            break
    out += growing.finish()
    assert out == expected
    assert growing.stopped == (expected != text)
