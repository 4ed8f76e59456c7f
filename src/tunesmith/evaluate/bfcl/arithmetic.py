"""Work out constant expressions that a model wrote as an argument, such as `2*3.5` or `"a" + "b"`, within bounds.

The official decoder hands such an expression to `eval`. Here operators and a few pure functions act on constants; a
name, an attribute, any other call, and whatever would grow beyond the bounds is refused.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

MOST_WEIGHT = 100_000  # of one result: its elements, characters and bytes, those of nested values included
_MOST_WORK = 1_000_000  # weights of all results of one expression together
_MOST_DEPTH = 150
_MOST_BITS = 14_000  # Python does not write longer integers in decimal, either

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "len": len,
    "max": max,
    "min": min,
    "round": round,
    "sum": sum,
}
_WIDE_FORMAT = re.compile(r"\*|\d{4}")


class Refused(ValueError):
    """An expression that is not constant, or too much to work out."""


def constant_value(node: ast.expr) -> Any:
    """Return what a constant expression amounts to.

    Raises:
        Refused: it holds a name or a call, or would grow beyond the bounds.
        ArithmeticError, TypeError, ValueError, IndexError, KeyError: what the operation itself raises.
    """
    return _Sum().value(node, 0)[0]


class _Sum:
    """One expression; `value` returns each part with its weight."""

    def __init__(self) -> None:
        self._work = 0

    def value(self, node: ast.expr, depth: int) -> tuple[Any, int]:
        if depth > _MOST_DEPTH:
            raise Refused("nested too deeply")
        match node:
            case ast.Constant(value=constant):
                return self._weighed(constant, len(constant) if isinstance(constant, str | bytes) else 1)
            case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
                return self._display(node, elements, depth)
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return self._mapping([key for key in keys if key], values, depth)
            case ast.UnaryOp(op=op, operand=operand):
                return self._weighed(_UNARY[type(op)](self.value(operand, depth + 1)[0]), 1)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(self.value(left, depth + 1), op, self.value(right, depth + 1))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return self._call(_FUNCTIONS[name], [self.value(argument, depth + 1) for argument in arguments])
            case _:
                raise Refused(f"{type(node).__name__} is not constant")

    def _weighed(self, value: Any, weight: int) -> tuple[Any, int]:
        if isinstance(value, int):
            if value.bit_length() > _MOST_BITS:
                raise Refused("a number too long")
            weight = 1 + value.bit_length() // 64
        self._work += weight
        if weight > MOST_WEIGHT or self._work > _MOST_WORK:
            raise Refused("too much to work out")
        return value, weight

    def _display(self, node: ast.expr, elements: list[ast.expr], depth: int) -> tuple[Any, int]:
        made = [self.value(element, depth + 1) for element in elements]
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return self._weighed(kind(value for value, _ in made), 1 + sum(weight for _, weight in made))

    def _mapping(self, keys: list[ast.expr], values: list[ast.expr], depth: int) -> tuple[Any, int]:
        pairs = [(self.value(k, depth + 1), self.value(v, depth + 1)) for k, v in zip(keys, values, strict=True)]
        weight = 1 + sum(key[1] + value[1] for key, value in pairs)
        return self._weighed({key[0]: value[0] for key, value in pairs}, weight)

    def _call(self, function: Callable[..., Any], arguments: list[tuple[Any, int]]) -> tuple[Any, int]:
        # None of the functions makes anything longer than its arguments together.
        total = sum(weight for _, weight in arguments)
        self._weighed(None, 1 + total * (total if function is sum and total > 1_000 else 1))
        return self._weighed(function(*(value for value, _ in arguments)), 1 + total)

    def _binary(self, left: tuple[Any, int], op: ast.operator, right: tuple[Any, int]) -> tuple[Any, int]:
        (a, weight_a), (b, weight_b) = left, right
        weight = weight_a + weight_b
        if isinstance(op, ast.Pow) and isinstance(a, int) and isinstance(b, int):
            if b > 0 and a.bit_length() * b > _MOST_BITS:
                raise Refused("a power too large")
        elif isinstance(op, ast.LShift) and isinstance(a, int) and isinstance(b, int):
            if b > _MOST_BITS:
                raise Refused("a shift too large")
        elif isinstance(op, ast.Mult) and isinstance(a, int) != isinstance(b, int):
            times, repeated = (a, weight_b) if isinstance(a, int) else (b, weight_a)
            weight = 1 + max(0, times) * repeated if isinstance(b if isinstance(a, int) else a, _SEQUENCES) else 1
            self._weighed(None, weight)
        elif isinstance(op, ast.Mod) and isinstance(a, str | bytes) and _WIDE_FORMAT.search(_text(a)):
            raise Refused("a format too wide")
        if type(op) not in _OPERATORS:
            raise Refused(f"{type(op).__name__} is no arithmetic")
        return self._weighed(_OPERATORS[type(op)](a, b), weight)


_SEQUENCES = (str, bytes, list, tuple)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
