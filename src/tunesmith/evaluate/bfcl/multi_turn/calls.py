"""Carry out call strings such as `mv(source='a.txt', destination='old')` without ever evaluating one.

The official checker hands these strings to `eval`. Here they are parsed into Python's syntax tree, and the tree is
walked: constants, lists, tuples, dictionaries, arithmetic on numbers, an index, and calls of methods in a table. A name
that is not in the table is answered with what Python says about an unknown name. Nothing else exists: no attribute, no
built-in function, no comprehension, no lambda.

Source of the rules: `execute_multi_turn_func_call` in `multi_turn_utils.py`, gorilla at 6ea5797.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.budget import Budget, WorkLimit

# An answer of 4096 tokens, the most the official harness asks for, has fewer characters.
_MAX_CHARACTERS = 100_000
_MAX_DEPTH = 60
_MAX_INTEGER_BITS = 16_384

_METHOD_BEFORE_PARENTHESIS = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}

Method = Callable[..., Any]


class NotAllowed(Exception):
    """Syntax that no call needs."""


class Calls:
    """Carries out calls of the methods it is given.

    Args:
        methods: by name.
        owners: what stands before a method's name in the text that is carried out, by the method's name. It shows in
            only one place: where a text argument says something like `sort (by date)`, the official checker takes that
            for a call, drops the space, and writes the name of an object of its own before it. Simulations have
            objects of different names, so what they are told differs. Verdicts depend on it.
        budget: what the calls may spend.
    """

    def __init__(self, methods: Mapping[str, Method], owners: Mapping[str, str], budget: Budget) -> None:
        self._methods, self._owners, self._budget = methods, owners, budget

    def run(self, text: str) -> str:
        """Carry out one call and return its result as the text a model is shown; a failure is a result, too."""
        try:
            self._budget.call()
            result = self._value(self._parse(text), 0)
            shown = _as_text(result)
            self._budget.characters(len(shown))
            return shown
        except (RecursionError, MemoryError) as error:
            return f"Error during execution: {error or 'nested too deeply'}"
        except Exception as error:  # noqa: BLE001 - whatever a method has against its arguments is the model's result
            return f"Error during execution: {error}"

    def _parse(self, text: str) -> ast.expr:
        if len(text) > _MAX_CHARACTERS:
            raise WorkLimit(f"a call of {len(text)} characters")
        self._budget.characters(len(text))
        owned = _METHOD_BEFORE_PARENTHESIS.sub(self._with_owner, text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the model's text, to whoever runs this
            return ast.parse(owned.lstrip(" \t"), filename="<string>", mode="eval").body

    def _with_owner(self, match: re.Match[str]) -> str:
        name = match.group(1)
        owner = self._owners.get(name)
        return f"{owner}.{name}" if owner else name

    def _value(self, node: ast.expr, depth: int) -> Any:
        self._budget.steps()
        if depth > _MAX_DEPTH:
            raise NotAllowed("nested too deeply")
        match node:
            case ast.Constant():
                return node.value
            case ast.Call():
                return self._call(node, depth + 1)
            case ast.List():
                return self._items(node.elts, depth + 1)
            case ast.Tuple():
                return tuple(self._items(node.elts, depth + 1))
            case ast.Set():
                return set(self._items(node.elts, depth + 1))
            case ast.Dict():
                keys = [NotAllowed if key is None else self._value(key, depth + 1) for key in node.keys]
                if NotAllowed in keys:
                    raise NotAllowed("** in a dictionary is not allowed")
                return dict(zip(keys, self._items(node.values, depth + 1), strict=True))
            case ast.UnaryOp():
                return _SIGNS[type(node.op)](self._value(node.operand, depth + 1))
            case ast.BinOp():
                return _operate(node.op, self._value(node.left, depth + 1), self._value(node.right, depth + 1))
            case ast.Subscript():
                return self._value(node.value, depth + 1)[self._value(node.slice, depth + 1)]
            case ast.Name():
                raise NameError(f"name '{node.id}' is not defined")
        raise NotAllowed(f"{type(node).__name__} is not allowed")

    def _items(self, nodes: list[ast.expr], depth: int) -> list[Any]:
        return [self._value(node, depth) for node in nodes]

    def _call(self, node: ast.Call, depth: int) -> Any:
        names: set[str] = set()
        for keyword in node.keywords:
            if keyword.arg is None:
                raise NotAllowed("** is not allowed")
            if keyword.arg in names:  # Python's parser lets this pass, what comes after it does not
                raise SyntaxError(f"keyword argument repeated: {keyword.arg}")
            names.add(keyword.arg)
        method = self._method(node.func)
        arguments = self._items(node.args, depth)
        return method(*arguments, **{str(word.arg): self._value(word.value, depth) for word in node.keywords})

    def _method(self, node: ast.expr) -> Method:
        """Return the method that is called: a name in the table, with the owner this object has put before it."""
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if self._owners.get(name) == owner:
                return self._methods[name]
        while isinstance(node, ast.Attribute):
            node = node.value
        if isinstance(node, ast.Name) and node.id not in self._owners.values():
            raise NameError(f"name '{node.id}' is not defined")
        raise NotAllowed("only a function can be called")


def _operate(kind: ast.operator, left: Any, right: Any) -> Any:
    """Do arithmetic on numbers of a size that can be shown."""
    operation = _OPERATIONS.get(type(kind))
    if operation is None or not (isinstance(left, int | float) and isinstance(right, int | float)):
        raise NotAllowed(f"{type(kind).__name__} is not allowed here")
    if isinstance(left, int) and isinstance(right, int):
        num_bits = left.bit_length() * max(right, 1) if isinstance(kind, ast.Pow) else left.bit_length()
        if num_bits + right.bit_length() > _MAX_INTEGER_BITS:
            raise WorkLimit("a number of too many digits")
    return operation(left, right)


def _as_text(result: Any) -> str:
    """Return a result as the official harness shows it: a dictionary as JSON where it can be, else as Python does."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError, RecursionError):
            return str(result)
    return str(result)
