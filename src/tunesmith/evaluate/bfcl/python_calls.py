"""Read calls in Python's syntax, as `ast.parse` sees them, into `{function name: {argument: value}}`. Nothing is run.

Two ways lead to the same result. Here, one regular expression cuts the text into pieces that each end with a bracket
or another mark, and a few functions read the pieces: names and literals, lists and dictionaries of them. An argument
that is more than that (`2*3.5`, `f(1)`) goes to `ast.parse` alone. A text that no reading could make a list of calls is
refused at the first mark that says so. Whatever this module is not sure of goes to `python_tree` as a whole.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from operator import length_hint
from typing import Any

from tunesmith.evaluate.bfcl.python_tree import MOST_CHARACTERS, Call, Undecodable, read_argument, read_tree


def read_calls(text: str) -> list[Call]:
    """Return the calls of `[f(a=1), g(b="x")]` or `f(a=1)`.

    Positional arguments are dropped, a repeated argument's last value counts, and an unquoted word is a string.

    Raises:
        Undecodable: the text is something else, or too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise Undecodable(f"{len(text):,} characters are more than any answer has")
    try:
        return _calls(text)
    except Undecodable:
        raise
    except (_Unsure, ValueError):  # an integer of more digits than Python reads, which is for its parser to refuse
        return read_tree(text)


_MOST_BRACKETS = 150  # Python refuses 200 inside each other


class _Unsure(Exception):
    """A text that this module leaves to Python's own parser."""


_Token = tuple[str, str, str, str, str]
_Tokens = Iterator[_Token]

_GAP = r"[ \t\n]*+"
_NO_TEXT = "\\n\\r\\x00\ud800-\udfff"  # line ends would end the string; NUL and halves of pairs are no source text


def _string(quote: str) -> str:
    plain = rf"[^{quote}\\{_NO_TEXT}]"
    return rf"{quote}{plain}*+(?:\\[^{_NO_TEXT}]{plain}*+)*+{quote}"


_STRING = "|".join(map(_string, "\"'"))
# A token: `word=` if an argument begins, a value (a string without escapes, by kind of quotes and without them, or a
# word, a number or another string), and the character behind it. Python's names may have letters beyond ASCII, which
# it normalises: such a letter ends the token and is a mark nobody expects.
_TOKEN = re.compile(
    rf"{_GAP}(?:([A-Za-z_]\w*+) *+=(?!=) *+)?+"
    rf"(?:\"([^\"\\{_NO_TEXT}]++)\"|'([^'\\{_NO_TEXT}]++)'|([\w.-]++|{_STRING}|))"
    rf"{_GAP}(.?)",
    re.ASCII | re.DOTALL,
)
_END: _Token = ("", "", "", "", "")
_KEYWORDS = frozenset(keyword.kwlist)
_CONSTANTS = {"True": True, "False": False, "None": None}
_NO_NAMES = _KEYWORDS | {""}
_is_number = re.compile(r"-?(?:(?:0|[1-9]\d*+)(?:\.\d*+)?+|\.\d++)(?:[eE]-?\d++)?+", re.ASCII).fullmatch
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))")
_LONGER_ESCAPES = frozenset("01234567xuUN")
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _calls(text: str) -> list[Call]:
    """Return the calls of a list, or refuse a text that is none.

    Raises:
        Undecodable: the text is no list of calls, whatever Python makes of it.
        _Unsure: only Python can tell.
        ValueError: an integer of more digits than Python reads.
    """
    if text.count("[") + text.count("{") + text.count("(") > _MOST_BRACKETS:
        raise _Unsure
    try:
        return _listed(text)
    except Undecodable:
        if text.endswith("]") and "#" not in text:
            raise
        raise _Unsure from None  # it may end with a bracket, or with one before a comment: `[f](x=1)` is a call


def _listed(text: str) -> list[Call]:
    calls: list[Call] = []
    pieces = _TOKEN.findall(text)
    start, tokens = 0, iter(pieces)
    if next(tokens) != ("", "", "", "", "["):
        raise _Unsure
    while True:
        name = _name(next(tokens))
        if not name:
            break
        arguments: dict[Any, Any] = {}
        while num_left := _arguments(tokens, arguments):
            source, start, is_last = _odd_argument(text, _position(text, start, len(pieces) - num_left))
            num_positional, values = read_argument(source)
            if not values and (not num_positional or arguments or "*" in source or " for " in source):
                raise _Unsure
            arguments |= values
            pieces = _TOKEN.findall(text, start)
            tokens = iter(pieces)
            if is_last:
                break
        if not _NO_NAMES.isdisjoint(arguments):
            raise _Unsure
        calls.append({name: arguments})
        if not _is_another(next(tokens)):
            break
    if next(tokens, _END) == _END:
        return calls
    raise Undecodable("more than a list of calls")


def _name(token: _Token) -> str:
    """Return the name of the call that begins with a token, or nothing when the list ends there."""
    word, double, single, name, mark = token
    if mark == "(" and not word and name:
        if "." not in name:
            if name.isidentifier() and name not in _KEYWORDS:
                return name
        elif all(part.isidentifier() and part not in _KEYWORDS for part in name.split(".")):
            return name
        raise _Unsure
    if mark == "]" and not (word or double or single or name):
        return ""
    if name[-1:] == ".":
        raise _Unsure
    _check_that_it_ends(mark)
    raise Undecodable("something that is no call")


def _is_another(token: _Token) -> bool:
    """Return whether a comma stands behind a call; False when the list ends."""
    word, double, single, other, mark = token
    if not (word or double or single or other):
        if mark == ",":
            return True
        if mark == "]":
            return False
        _check_that_it_ends(mark)
    elif other[:1] == ".":
        raise _Unsure
    raise Undecodable("something behind a call")


_MAY_GO_ON = frozenset("([{.'\"\\#\r\f")


def _check_that_it_ends(mark: str) -> None:
    """Leave to Python what may go on as the name of a call, as a string with a prefix, or on the next line."""
    if mark in _MAY_GO_ON or not mark.isascii():
        raise _Unsure


def _arguments(tokens: _Tokens, arguments: dict[Any, Any]) -> int:
    """Read arguments up to the closing bracket.

    Returns:
        0, or how many tokens are left from the first argument on that is not plain, that one included.
    """
    num_left = 0
    try:
        for word, double, single, other, mark in tokens:
            value: Any
            if double:
                value = double
            elif single:
                value = single
            elif other:
                value = int(other) if other.isdigit() and other[0] != "0" else _value(other)
            elif mark in _COMPOUND:
                num_left = length_hint(tokens) + 1
                value = _COMPOUND[mark](tokens)
                mark = _mark_behind(tokens)
            elif mark == ")" and not word:
                return 0
            else:
                break
            if mark == ",":
                arguments[word] = value
            elif mark == ")":
                arguments[word] = value
                return 0
            else:
                break
            num_left = 0
    except _Unsure:
        pass
    return num_left or length_hint(tokens) + 1


def _elements(tokens: _Tokens, closing: str = "]") -> list[Any]:
    values: list[Any] = []
    for word, double, single, other, mark in tokens:
        if word:
            break
        if double:
            values.append(double)
        elif single:
            values.append(single)
        elif other:
            values.append(int(other) if other.isdigit() and other[0] != "0" else _value(other))
        elif mark in _COMPOUND:
            values.append(_COMPOUND[mark](tokens))
            mark = _mark_behind(tokens)
        elif mark == closing:
            return values
        else:
            break
        if mark == closing:
            return values
        if mark != ",":
            break
    raise _Unsure


def _tuple(tokens: _Tokens) -> tuple[Any, ...]:
    elements = _elements(tokens, ")")
    if len(elements) == 1:  # one without a comma is no tuple
        raise _Unsure
    return tuple(elements)


def _pairs(tokens: _Tokens) -> dict[Any, Any]:
    pairs: dict[Any, Any] = {}
    for token in tokens:
        if token == ("", "", "", "", "}"):
            return pairs
        word, double, single, other, mark = token
        if word or mark != ":":
            break
        key = double or single or _value(other)
        word, double, single, other, mark = next(tokens)
        if word:
            break
        if double or single or other:
            pairs[key] = double or single or _value(other)
        elif mark in _COMPOUND:
            pairs[key] = _COMPOUND[mark](tokens)
            mark = _mark_behind(tokens)
        else:
            break
        if mark == "}":
            return pairs
        if mark != ",":
            break
    raise _Unsure


_COMPOUND: dict[str, Callable[[_Tokens], Any]] = {"[": _elements, "{": _pairs, "(": _tuple}


def _mark_behind(tokens: _Tokens) -> str:
    """Return the character behind a closed bracket."""
    word, double, single, other, mark = next(tokens)
    if word or double or single or other:
        raise _Unsure
    return mark


def _value(text: str) -> Any:
    if text.isidentifier():
        if text not in _KEYWORDS:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
    elif text[:1] in ("'", '"'):
        return _ESCAPE.sub(_unescaped, text[1:-1])
    elif _is_number(text):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    raise _Unsure


def _unescaped(found: re.Match[str]) -> str:
    digits, character = found[1] or found[2], found[3]
    if digits:
        return chr(int(digits, 16))
    if character in _LONGER_ESCAPES:
        raise _Unsure
    return _ESCAPED.get(character, found[0])  # one that Python does not know stays


def _position(text: str, start: int, number: int) -> int:
    """Return where the token of a number stands, the first being at `start`."""
    return next(islice(_TOKEN.finditer(text, start), number, None)).start()


_PLAIN = rf"[^\"'()\[\]{{}},#\\\r\x00]++|{_STRING}"


def _balanced(depth: int) -> str:
    return rf"[\[({{](?:,|{_PLAIN}{'|' + _balanced(depth - 1) if depth else ''})*+[\])}}]"


@cache
def _argument() -> re.Pattern[str]:
    """Compile the expression for one argument and the character behind it, which takes some milliseconds."""
    return re.compile(rf"((?:{_PLAIN}|{_balanced(3)})*+)(.?)", re.DOTALL)


# Strings that do not end at the next quote of their kind, and the one expression with commas of its own.
_UNSURE_ARGUMENT = re.compile(r"'''|\"\"\"|[fF][rR]?['\"]|lambda")


def _odd_argument(text: str, start: int) -> tuple[str, int, bool]:
    """Return the source of the argument that begins at a place, where its mark ends, and whether it is the last."""
    found = _argument().match(text, start)
    assert found is not None
    source, mark = found.groups()
    if _UNSURE_ARGUMENT.search(text, start, found.end()):
        raise _Unsure
    if mark == "," or mark == ")":
        return source, found.end(), mark == ")"
    if mark in ("]", "}", "") or (mark in ("'", '"') and "\\" not in text):
        raise Undecodable("a bracket or a quote without its other half")
    raise _Unsure
