"""A growing chat answer, taken apart into content and calls.

Streamed calls in the Hermes form are given out as they are written: first the name, then the arguments piece by piece.
Those of other families are short of a mark that says early enough that they are calls; they come whole, at the end.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable
from typing import Any

from tunesmith.tokens.tool_calls import certain_content, parse_tool_calls

_HERMES_HEAD = re.compile(r'<tool_call>\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')


class ChatText:
    """One choice of a chat.

    Args:
        finds_calls: tools were on offer.
        one_call: `parallel_tool_calls` was false.
        streams: give out deltas while the text grows; else only `message` is asked for.
        clean: removes special tokens from content that was decoded with them.
    """

    def __init__(
        self, *, finds_calls: bool, one_call: bool = False, streams: bool = False, clean: Callable[[str], str] = str
    ) -> None:
        self._finds_calls, self._one_call, self._streams, self._clean = finds_calls, one_call, streams, clean
        self._text = ""
        self._num_shown = 0  # characters of the content given out
        self._searched = 0  # where the text after the last streamed call begins
        self._open: _GrowingObject | None = None  # arguments of the call being written
        self._content = ""
        self.calls: list[dict[str, Any]] = []

    def add(self, text: str) -> list[dict[str, Any]]:
        """Take more text; return the deltas that are certain by now."""
        self._text += text
        if not self._streams:
            return []
        if not self._finds_calls:
            return [{"content": text}] if text else []
        deltas = [] if self.calls else self._show(self._text[: certain_content(self._text)])
        while self._open or self._begin_call(deltas):
            if not self._continue_call(deltas):
                break
        return deltas

    def finish(self) -> list[dict[str, Any]]:
        """Take the text as complete; return the deltas of what was held back."""
        if not self._finds_calls:
            self._content = self._text
            return []
        self._content, calls = parse_tool_calls(self._text)
        cut_off = self._open is not None or len(self.calls) > len(calls)
        # What has been given out as a call that never ended is not given out as text as well.
        deltas = [] if cut_off or not self._streams else self._show(self._content)
        for call in (calls[:1] if self._one_call else calls)[len(self.calls) :]:
            deltas.append(self._new_call(call["name"], json.dumps(call["arguments"], ensure_ascii=False)))
        return deltas

    def message(self) -> dict[str, Any]:
        """Return the whole message of a finished choice."""
        content = self._clean(self._content) if self._finds_calls else self._content
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self.calls else "")}
        return message | ({"tool_calls": self.calls} if self.calls else {})

    def finish_reason(self, reason: str | None) -> str | None:
        """Return the reason as the API words it: a stop after calls means that they are wanted."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _show(self, content: str) -> list[dict[str, Any]]:
        new, self._num_shown = content[self._num_shown :], max(self._num_shown, len(content))
        new = self._clean(new)
        return [{"content": new}] if new else []

    def _new_call(self, name: str, arguments: str) -> dict[str, Any]:
        # Nine letters and digits: Mistral's templates refuse any other identifier when the call comes back.
        identifier = "call" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(5))
        call = {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}
        self.calls.append(call)
        return {"tool_calls": [{"index": len(self.calls) - 1} | call]}

    def _begin_call(self, deltas: list[dict[str, Any]]) -> bool:
        """Look for the head of another call; return whether one has begun."""
        head = _HERMES_HEAD.search(self._text, self._searched)
        if head is None or (self._one_call and self.calls):
            return False
        self._searched = head.end()
        self._open = _GrowingObject()
        deltas.append(self._new_call(head.group(1), ""))
        return True

    def _continue_call(self, deltas: list[dict[str, Any]]) -> bool:
        """Give out more of the open call's arguments; return whether they are complete."""
        assert self._open is not None
        piece = self._open.take(self._text[self._searched :])
        self._searched += len(piece)
        if piece:
            deltas.append({"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": piece}}]})
        if not self._open.is_complete:
            return False
        self._open = None
        return True


class _GrowingObject:
    """Finds the end of a JSON object that comes in pieces, by its braces outside of strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.is_complete = False

    def take(self, text: str) -> str:
        """Return the part of the next piece that belongs to the object."""
        for at, letter in enumerate(text):
            if self._in_string:
                ends = letter == '"' and not self._escaped
                self._escaped = letter == "\\" and not self._escaped
                self._in_string = not ends
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_complete = True
                    return text[: at + 1]
        return text
