"""Calls in Python's syntax out of the tree that `ast.parse` makes, into `{function name: {argument: value}}`.

What the official decoder makes of each piece of syntax is repeated exactly (`ast_parse`, `resolve_ast_call` and
`resolve_ast_by_type` in `bfcl_eval/model_handler/utils.py`), with one difference: expressions go to `arithmetic.py`
instead of `eval`. Nothing is run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from tunesmith.evaluate.bfcl.arithmetic import constant_value

MOST_CHARACTERS = 100_000  # 4,096 tokens, the official limit of an answer, are a quarter of that
_MOST_BRACKETS_OPEN = 200  # CPython's tokenizer gives up there, too

Call = dict[str, dict[Any, Any]]
_Read = TypeVar("_Read")


class Undecodable(ValueError):
    """A text that is not calls in the expected notation."""


def read_tree(text: str) -> list[Call]:
    """Return the calls of `[f(a=1), g(b="x")]` or `f(a=1)`.

    Raises:
        Undecodable: the text is something else.
    """
    text = text.strip().strip("'")
    check_brackets(text)
    return _read(text, _calls_of)


def read_argument(source: str) -> tuple[int, dict[Any, Any]]:
    """Return the values of what stands for one argument of a call, and how many positional ones (0 or 1) it is.

    Args:
        source: `x=1`, `1`, `*y`, `**z`; anything that holds no comma outside brackets and strings.

    Raises:
        Undecodable: it is no argument.
    """
    return _read(f"f({source})", _argument)


def _read(text: str, reader: Callable[[ast.expr], _Read]) -> _Read:
    try:
        return reader(_parsed(text).body)
    except Undecodable:
        raise
    # `ast.parse` raises RecursionError and MemoryError for what is nested too deeply for it; the rest comes from
    # arithmetic, from dictionary keys that cannot be hashed and from texts that UTF-8 cannot hold.
    except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}"[:300]) from None


_MAY_WARN = re.compile(r"\\|\d[^\W\d]")  # such as "invalid escape sequence" or "invalid decimal literal"


def _parsed(text: str) -> ast.Expression:
    """Parse without a warning to the user: what it would say is a matter between the model and Python."""
    if not _MAY_WARN.search(text):  # the usual case; ignoring warnings takes as long as parsing one argument
        return ast.parse(text, mode="eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval")


_TOKEN = re.compile(
    r"""(?P<string>'''(?:[^\\]|\\.)*?'''|\"""(?:[^\\]|\\.)*?\"""|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
    r"""|(?P<quote>['"])|(?P<comment>\#[^\n]*)|(?P<open>[\[({])|(?P<close>[\])}])""",
    re.DOTALL,
)
_PAIRS = {"[": "]", "(": ")", "{": "}"}


def check_brackets(text: str) -> None:
    """Refuse a text that `ast.parse` would refuse more slowly.

    Raises:
        Undecodable: brackets or quotes do not match, or too many brackets are open at once.
    """
    awaited: list[str] = []
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "quote":
            raise Undecodable("a string is not closed")
        if kind == "open":
            awaited.append(_PAIRS[token.group()])
            if len(awaited) > _MOST_BRACKETS_OPEN:
                raise Undecodable(f"more than {_MOST_BRACKETS_OPEN} brackets inside each other")
        elif kind == "close" and (not awaited or awaited.pop() != token.group()):
            raise Undecodable(f"an unmatched {token.group()!r}")
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


def _argument(body: ast.expr) -> tuple[int, dict[Any, Any]]:
    assert isinstance(body, ast.Call), "what is between f( and ) is its argument"
    return len(body.args), _values(body)


def _call(node: ast.Call) -> Call:
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    return {".".join(reversed(parts)): _values(node)}


def _values(node: ast.Call) -> dict[Any, Any]:
    return {argument.arg: _value(argument.value) for argument in node.keywords}


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
