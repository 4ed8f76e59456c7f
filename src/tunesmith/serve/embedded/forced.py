"""Answers that must be a call, or a JSON object: what the next token may be.

A forced call is begun in the form in which the model's own chat template writes calls; the model then chooses among the
names that are allowed and writes the arguments, which are held to JSON letter by letter. What the arguments are called
and of which type they are is left to the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.tokens.chat import render
from tunesmith.tokens.jinja import TemplateProblem
from tunesmith.tokens.templates import ChatTemplate

_NAME, _KEY = "tunesmith_probe", "tunesmith_key"
_LONGEST_GAP, _LONGEST_NUMBER = 4, 32  # white space and digits that JSON would allow for ever
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_NUMBER_BEGINNING = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?([eE][+-]?\d*)?)?")


@dataclass(frozen=True)
class CallForm:
    """How a template writes one call: `before` NAME `between` ARGUMENTS `after`."""

    before: str
    between: str
    after: str


def call_form(template: ChatTemplate, tools: Sequence[dict[str, Any]]) -> CallForm | None:
    """Return how a template writes the only call of an answer; None when it writes none, or not as JSON."""
    user: dict[str, Any] = {"role": "user", "content": "a"}
    call = {"id": "tunesmith", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: 1}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        begun = render(template, (user,), tools, add_generation_prompt=True)
        called = render(template, (user, calling), tools)
        said = render(template, (user, {"role": "assistant", "content": _NAME}), tools)
    except TemplateProblem:
        return None
    turn_end = said[said.rfind(_NAME) + len(_NAME) :]
    if not called.startswith(begun) or not called.endswith(turn_end):
        return None
    turn = called[len(begun) : len(called) - len(turn_end)]
    before, found, rest = turn.partition(_NAME)
    begin = rest.rfind("{", 0, max(0, rest.find(_KEY)))
    if not found or begin < 0:
        return None
    try:
        arguments, length = json.JSONDecoder().raw_decode(rest[begin:])
    except ValueError:
        return None
    return CallForm(before, rest[:begin], rest[begin + length :]) if arguments == {_KEY: 1} else None


class Guide:
    """Holds one answer to a form: some given tokens, one of several texts, a JSON object, in this order.

    Args:
        given: ids that the answer begins with.
        options: texts, one of which follows; none = nothing follows.
        pieces: the text that each id adds.
    """

    def __init__(self, given: Sequence[int], options: Sequence[str], pieces: Sequence[str]) -> None:
        self._given, self._pieces = list(given), pieces
        self._options, self._num_chosen = list(options), 0
        self._object = GrowingJson()

    @property
    def is_done(self) -> bool:
        return self._object.is_complete

    def take(self, best_first: Iterable[int]) -> int | None:
        """Return the next token: the first of an order that fits; None when none does."""
        if self._given:
            return self._given.pop(0)
        for token_id in best_first:
            piece = self._pieces[token_id] if token_id < len(self._pieces) else ""
            if piece and self._fits(piece):
                return token_id
        return None

    def _fits(self, piece: str) -> bool:
        """Take a piece if it fits; return whether it does."""
        if self._options:
            left = [option for option in self._options if option.startswith(piece, self._num_chosen)]
            if left:
                self._options, self._num_chosen = left, self._num_chosen + len(piece)
                if len(left) == 1 and self._num_chosen == len(left[0]):
                    self._options = []
            return bool(left)
        grown = self._object.copy()
        if not all(map(grown.take, piece)):
            return False
        self._object = grown
        return True


class GrowingJson:
    """A JSON object that is read letter by letter."""

    def __init__(self) -> None:
        self._open = ""  # brackets that are open, innermost last
        # value | first (a value or the end of a list) | key | first_key | colon | next | string | name | number | word
        self._expects = "value"
        self._token = ""  # the number or word being read, or what is left of an escape
        self._num_blank = 0

    @property
    def is_complete(self) -> bool:
        return self._expects == "nothing"

    def copy(self) -> GrowingJson:
        """Return one that grows on its own."""
        made = GrowingJson()
        made.__dict__.update(self.__dict__)
        return made

    def take(self, letter: str) -> bool:
        """Take the next letter if it may come next; return whether it may."""
        if self._expects in ("string", "name"):
            return self._in_string(letter)
        if self._expects == "number":
            if letter in "0123456789+-.eE":
                self._token += letter
                return len(self._token) <= _LONGEST_NUMBER and bool(_NUMBER_BEGINNING.fullmatch(self._token))
            if not _NUMBER.fullmatch(self._token):
                return False
            self._expects, self._token = "next", ""
        if self._expects == "word":
            if not self._token.startswith(letter):
                return False
            self._token = self._token[1:]
            self._expects = "word" if self._token else "next"
            return True
        if letter in " \n\t":
            self._num_blank += 1
            return bool(self._open) and self._num_blank <= _LONGEST_GAP
        self._num_blank = 0
        return self._between(letter)

    def _between(self, letter: str) -> bool:
        expects = self._expects
        if letter in "]}" and self._open and expects in ("next", "first", "first_key"):
            matches = self._open[-1] == ("[" if letter == "]" else "{")
            self._open = self._open[:-1]
            self._expects = "next" if self._open else "nothing"
            return matches
        if expects == "next" and letter == ",":
            self._expects = "key" if self._open[-1] == "{" else "value"
        elif expects in ("key", "first_key") and letter == '"':
            self._expects = "name"
        elif expects == "colon" and letter == ":":
            self._expects = "value"
        elif expects in ("value", "first"):
            return self._begin_value(letter)
        else:
            return False
        return True

    def _begin_value(self, letter: str) -> bool:
        if letter == "{" or (letter == "[" and self._open):
            self._open += letter
            self._expects = "first_key" if letter == "{" else "first"
            return True
        if not self._open:
            return False  # the whole is an object
        words = {"t": "rue", "f": "alse", "n": "ull"}
        if letter == '"':
            self._expects = "string"
        elif letter in words:
            self._expects, self._token = "word", words[letter]
        elif letter in "-0123456789":
            self._expects, self._token = "number", letter
        else:
            return False
        return True

    def _in_string(self, letter: str) -> bool:
        if self._token:  # behind a backslash
            if self._token == "\\":
                self._token = "uuuu" if letter == "u" else ""
                return letter in '"\\/bfnrtu'
            self._token = self._token[1:]
            return letter in "0123456789abcdefABCDEF"
        if letter == "\\":
            self._token = letter
        elif letter == '"':
            self._expects = "colon" if self._expects == "name" else "next"
        return letter >= " "
