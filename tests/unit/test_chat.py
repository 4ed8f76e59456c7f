"""What people type and stop: bytes that are no text, Ctrl-C between two columns."""

from __future__ import annotations

import _thread
import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_chat_server import Reply, ScriptedChatServer
from tunesmith import chat


def streamed(*texts: str) -> bytes:
    events = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def test_bytes_that_are_no_text_are_asked_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedChatServer(lambda request, number: Reply(streamed("yes"))) as server:
        talk = chat.Talk(server.url, "m", system="be brief \udce9")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n/quit\n"), encoding="utf-8"))
        chat._converse([talk], [None])  # type: ignore[list-item]  # whose label one model alone does not need
        assert list(talk.ask("half \ud800")) == ["yes"]
    first, second = (request["messages"] for request in server.requests)
    assert [message["content"] for message in first] == ["be brief ?", "caf\ufffd?"]
    assert second[-1]["content"] == "half ?"
    assert capsys.readouterr().out == "yes\n"


def test_tools_of_an_editor_that_writes_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_bytes(b'\xef\xbb\xbf[{"name": "find"}]\r\n')
    assert chat._read_tools(str(file)) == [{"type": "function", "function": {"name": "find"}}]


def test_an_answer_that_was_stopped_is_in_no_conversation() -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return Reply(streamed(*["word "] * 60), drip_seconds=0.001)

    with ScriptedChatServer(script) as server:
        talks = [chat.Talk(server.url, "base"), chat.Talk(server.url, "tuned")]
        threading.Timer(0.5, _thread.interrupt_main).start()
        chat._answer_side_by_side(talks, "tell me")
        listeners = [thread for thread in threading.enumerate() if "listen" in thread.name]
        begun = time.monotonic()
        for listener in listeners:
            listener.join(20)
        assert not any(listener.is_alive() for listener in listeners) and time.monotonic() - begun < 20
        assert len(server.requests) == 2 and [talk.messages for talk in talks] == [[], []]
