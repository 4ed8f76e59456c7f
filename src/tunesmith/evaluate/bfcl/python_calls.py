"""Read calls in Python's syntax, as `ast.parse` sees them, into `{function name: {argument: value}}`. Nothing is run.

What the official decoder makes of each piece of syntax is repeated exactly (`ast_parse`, `resolve_ast_call` and
`resolve_ast_by_type` in `bfcl_eval/model_handler/utils.py`), with one difference: expressions go to `arithmetic.py`
instead of `eval`.

Two ways lead to the same result. Plain calls, names and literals without escapes, are read with a few regular
expressions; whatever is not plain goes through `ast.parse`, once its brackets and quotes are known to match.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tunesmith.evaluate.bfcl.arithmetic import constant_value

MOST_CHARACTERS = 100_000  # 4,096 tokens, the official limit of an answer, are a quarter of that
_MOST_BRACKETS_OPEN = 200  # CPython's tokenizer gives up there, too

Call = dict[str, dict[Any, Any]]


class Undecodable(ValueError):
    """A text that is not calls in the expected notation."""


def read_calls(text: str) -> list[Call]:
    """Return the calls of `[f(a=1), g(b="x")]` or `f(a=1)`.

    Positional arguments are dropped, a repeated argument's last value counts, and an unquoted word is a string.

    Raises:
        Undecodable: the text is something else, or too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise Undecodable(f"{len(text):,} characters are more than any answer has")
    calls = _plain_calls(text)
    if calls is not None:
        return calls
    text = text.strip().strip("'")
    check_brackets(text)
    try:
        return _calls_of(_parsed(text))
    except Undecodable:
        raise
    # `ast.parse` raises RecursionError and MemoryError for what is nested too deeply for it; the rest comes from
    # arithmetic, from dictionary keys that cannot be hashed and from texts that UTF-8 cannot hold.
    except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}"[:300]) from None


_MAY_WARN = re.compile(r"\\|\d\.?[A-Za-z]", re.ASCII)  # an "invalid escape sequence", an "invalid decimal literal"


def _parsed(text: str) -> ast.expr:
    """Parse an expression without Python's warnings about it: they are for whoever wrote it."""
    if _MAY_WARN.search(text) is None:
        return ast.parse(text, mode="eval").body
    with warnings.catch_warnings():  # costs a tenth of parsing
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval").body


# Strings, comments, and whatever is neither bracket nor quote. Nothing in it is tried twice.
_BETWEEN_BRACKETS = re.compile(
    r"""(?:[^\[\](){}'"\#]++|'''(?:[^\\]|\\.)*?'''|\"""(?:[^\\]|\\.)*?\"""|'(?:[^'\\\n]|\\.)*+'"""
    r"""|"(?:[^"\\\n]|\\.)*+"|\#[^\n]*+)++""",
    re.DOTALL,
)
_PAIRS = {"[": "]", "(": ")", "{": "}"}


def check_brackets(text: str) -> None:
    """Refuse a text that `ast.parse` would refuse more slowly.

    Raises:
        Undecodable: brackets or quotes do not match, or too many brackets are open at once.
    """
    awaited: list[str] = []
    for mark in _BETWEEN_BRACKETS.sub("", text):
        if mark in _PAIRS:
            awaited.append(_PAIRS[mark])
            if len(awaited) > _MOST_BRACKETS_OPEN:
                raise Undecodable(f"more than {_MOST_BRACKETS_OPEN} brackets inside each other")
        elif mark in "'\"":
            raise Undecodable("a string is not closed")
        elif not awaited or awaited.pop() != mark:
            raise Undecodable(f"an unmatched {mark!r}")
    if awaited:
        raise Undecodable(f"{awaited[-1]!r} is missing")


def _calls_of(body: ast.expr) -> list[Call]:
    if isinstance(body, ast.Call):
        return [_call(body)]
    if not isinstance(body, ast.List | ast.Tuple | ast.Set):
        raise Undecodable(f"{type(body).__name__} is no list of calls")
    calls = []
    for element in body.elts:
        if not isinstance(element, ast.Call):
            raise Undecodable(f"{type(element).__name__} is no call")
        calls.append(_call(element))
    return calls


def _call(node: ast.Call) -> Call:
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    arguments: dict[Any, Any] = {}
    for argument in node.keywords:
        value = argument.value
        # The commonest case first; what `_value` would make of it.
        if isinstance(value, ast.Constant) and value.value is not Ellipsis:
            arguments[argument.arg] = value.value
        else:
            arguments[argument.arg] = _value(value)
    return {".".join(reversed(parts)): arguments}


def _value(node: ast.expr | None) -> Any:
    reader = _READERS.get(type(node))
    if reader is None:
        raise Undecodable(f"{type(node).__name__} is no value")
    return reader(node)


def _constant(node: ast.Constant) -> Any:
    return "..." if node.value is Ellipsis else node.value


def _unary(node: ast.UnaryOp) -> Any:
    """Return the negative, whatever the operator: the official decoder does not look at it."""
    if not isinstance(node.operand, ast.Constant):
        raise Undecodable("an operator before something that is no constant")
    value: Any = node.operand.value
    return -value


def _mapping(node: ast.Dict) -> Any:
    return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}


def _nested_call(node: ast.Call) -> Any:
    return _call(node) if node.keywords else ast.unparse(node)


def _subscript(node: ast.Subscript) -> str:
    return f"{ast.unparse(node.value)}[{ast.unparse(node.slice)}]"


_READERS: dict[type, Callable[[Any], Any]] = {
    ast.Constant: _constant,
    ast.UnaryOp: _unary,
    ast.List: lambda node: [_value(element) for element in node.elts],
    ast.Tuple: lambda node: tuple([_value(element) for element in node.elts]),
    ast.Dict: _mapping,
    ast.Name: lambda node: node.id,
    ast.BinOp: constant_value,
    ast.Call: _nested_call,
    ast.Subscript: _subscript,
}


# The plain way. Strings hold no backslash, line break, NUL or half of a surrogate pair; integers have no leading zero
# and are short; names are ASCII: there `ast.parse` has nothing to normalise, and these patterns say all there is.
# Possessive quantifiers keep them from trying anything twice.
_GAP = r"[ \t\n]*+"
_STRING = "\"[^\"\\\\\\n\\r\\x00\ud800-\udfff]*+\"|'[^'\\\\\\n\\r\\x00\ud800-\udfff]*+'"
_NUMBER = r"-?(?:0|[1-9]\d{0,17}+)(?:\.\d{1,17}+)?+(?![\w.])"
_WORD = r"[A-Za-z_]\w*+"
_NAME = rf"{_WORD}(?:\.{_WORD})*+"
_SCALAR = rf"{_STRING}|{_NUMBER}|{_WORD}"


def _separated(part: str, closing: str) -> str:
    """Return an expression for parts between commas. It holds the part once: nesting multiplies what is compiled."""
    return rf"(?:{part}(?:,{_GAP}(?!{closing})|(?={closing})))"


def _listed(value: str) -> str:
    return rf"\[{_GAP}{_separated(f'(?:{value}){_GAP}', ']')}*+\]"


def _mapped(value: str) -> str:
    pair = rf"(?:{_STRING}){_GAP}:{_GAP}(?:{value}){_GAP}"
    return rf"\{{{_GAP}{_separated(pair, '}')}*+\}}"


_FLAT = _listed(_SCALAR)
_PAIRED = _mapped(rf"{_SCALAR}|{_FLAT}")
_COMPOUND = rf"{_FLAT}|{_PAIRED}|{_listed(rf'{_SCALAR}|{_FLAT}|{_PAIRED}')}"
_ARGUMENT = rf"{_WORD}[ ]*+=[ ]*+(?:{_SCALAR}|{_COMPOUND}){_GAP}"
_CALL = rf"{_NAME}\({_GAP}{_separated(_ARGUMENT, '[)]')}*+\){_GAP}"
_PLAIN = re.compile(rf"\[{_GAP}{_separated(_CALL, ']')}*+\]", re.ASCII)
# In a plain text: a function's name and nothing else, or an argument's name with a scalar or something compound.
_PART = re.compile(rf"({_NAME})(?:\(|[ ]*+=[ ]*+(?:({_SCALAR})|({_COMPOUND})))", re.ASCII)
_TOKEN_OF_COMPOUND = re.compile(rf"{_SCALAR}|[\[\]{{}}]", re.ASCII)
_KEYWORDS = frozenset(keyword.kwlist)
_CONSTANTS = {"True": True, "False": False, "None": None}
_NO_VALUES = _KEYWORDS - set(_CONSTANTS)


def _plain_calls(text: str) -> list[Call] | None:
    """Return the calls of a plain text in brackets, or None when it is not plain."""
    if _PLAIN.fullmatch(text) is None:
        return None
    calls: list[Call] = []
    arguments: dict[Any, Any] = {}
    for word, scalar, elements in _PART.findall(text):
        if word in _KEYWORDS:
            return None
        if scalar:
            if scalar[0] in "\"'":
                arguments[word] = scalar[1:-1]
            elif scalar.isdigit():
                arguments[word] = int(scalar)
            elif scalar in _NO_VALUES:
                return None
            else:
                arguments[word] = _plain_value(scalar)
        elif elements:
            found = _TOKEN_OF_COMPOUND.findall(elements)
            if not _NO_VALUES.isdisjoint(found):
                return None
            arguments[word] = _compound(iter(found))
        else:
            if "." in word and not _KEYWORDS.isdisjoint(word.split(".")):
                return None
            arguments = {}
            calls.append({word: arguments})
    return calls


def _compound(tokens: Iterator[str], closing: str = "") -> Any:
    """Return the list or mapping that begins with the next token, or inside of one, what stands up to `closing`."""
    found: list[Any] = []
    for token in tokens:
        if token == "[":
            found.append(_compound(tokens, "]"))
        elif token == "{":
            inside = _compound(tokens, "}")
            found.append(dict(zip(inside[::2], inside[1::2], strict=True)))
        elif token == closing:
            return found
        else:
            found.append(_plain_value(token))
    return found[0]


def _plain_value(text: str) -> Any:
    first = text[0]
    if first in "\"'":
        return text[1:-1]
    if first.isalpha() or first == "_":
        return _CONSTANTS.get(text, text)
    return float(text) if "." in text else int(text)
