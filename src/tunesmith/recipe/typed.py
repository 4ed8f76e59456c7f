"""Read plain mappings into frozen dataclasses, by their annotations, collecting every problem instead of the first.

A small reader of our own: the validation libraries cost three to six times the start-up of Python itself, and a recipe
has to be checked in less than that (see docs/decisions/0002-own-recipe-reader.md). Only the annotation forms that
`schema.py` uses are understood; any other fails at once in `read`.
"""

from __future__ import annotations

import dataclasses
import operator
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tunesmith.frozen import frozen

KeyPath = tuple[str | int, ...]


@frozen
class Bound:
    """Limits on a value; `pattern` must match a whole string."""

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    pattern: str | None = None

    def broken_by(self, value: Any) -> str | None:
        """Return what the value should have been, or None when it is within the limits."""
        if isinstance(value, str):
            if self.pattern is not None and not re.fullmatch(self.pattern, value):
                return f"a string of the form {self.pattern}"
            return None
        if not isinstance(value, int | float):
            return None
        for limit, holds, words in (
            (self.minimum, operator.ge, "at least"),
            (self.above, operator.gt, "greater than"),
            (self.maximum, operator.le, "at most"),
            (self.below, operator.lt, "less than"),
        ):
            if limit is not None and not holds(value, limit):
                return f"{words} {limit:g}"
        return None


@frozen
class Shorthand:
    """Text may stand for the mapping `{key: text}`; with `*`, a list of names for a mapping of switches."""

    key: str


@frozen
class Misfit:
    """One place where a document does not fit its class."""

    path: KeyPath
    what: str
    do: str
    on_key: bool = False  # the key itself is wrong, not its value


def key_path(path: KeyPath) -> str:
    """Return `data.train[0].path` for `("data", "train", 0, "path")`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


@cache
def hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass, `Annotated` kept."""
    return typing.get_type_hints(cls, include_extras=True)


def choices(annotation: Any) -> list[str]:
    """Return the literal strings an annotation allows, in order."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for option in get_args(annotation) if not isinstance(option, Bound) for choice in choices(option)]


def dataclass_of(annotation: Any) -> type | None:
    """Return the dataclass inside `X | None`, `Annotated[X, …]` or `tuple[X, ...]`, or None."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return annotation
    for option in get_args(annotation):
        found = dataclass_of(option)
        if found is not None:
            return found
    return None


def read(cls: type, document: Any, misfits: list[Misfit], path: KeyPath = ()) -> Any:
    """Return an instance of `cls` made from the document, or None when something in it did not fit.

    Every misfit is appended to `misfits`, wherever it lies; reading goes on after each.
    """
    if not isinstance(document, Mapping):
        misfits.append(Misfit(path, f"expected a mapping, found {describe(document)}", example_keys(cls)))
        return None
    annotations = hints(cls)
    before = len(misfits)
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in annotations:
            misfits.append(_unknown_key(cls, key, (*path, str(key))))
        else:
            values[key] = _read_value(annotations[key], value, misfits, (*path, key))
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in document:
            misfits.append(Misfit((*path, field.name), f"missing key `{key_path((*path, field.name))}`", "add it"))
    return cls(**values) if len(misfits) == before else None


def _unknown_key(cls: type, key: object, path: KeyPath) -> Misfit:
    from tunesmith.errors import nearest

    valid = list(hints(cls))
    guess = nearest(str(key), valid)
    here = key_path(path[:-1])
    elsewhere = [] if guess else [p for p in all_key_paths() if p.split(".")[-1] == str(key)]
    if guess:
        do = f"did you mean `{key_path((*path[:-1], guess))}`?"
    elif elsewhere:
        do = f"`{key}` belongs at `{elsewhere[0]}`"
    else:
        do = f"valid keys {f'of `{here}`' if here else 'at the top'}: {', '.join(valid)}"
    return Misfit(path, f"unknown key `{key_path(path)}`", do, on_key=True)


def all_key_paths() -> list[str]:
    """Return every key path of the recipe, lists and options left out: `train.lora.r`."""
    from tunesmith.recipe.schema import Recipe

    def walk(cls: type, prefix: str) -> Iterator[str]:
        for name, annotation in hints(cls).items():
            yield prefix + name
            inner = dataclass_of(annotation)
            if inner is not None:
                yield from walk(inner, f"{prefix}{name}.")

    return list(walk(Recipe, ""))


def _read_value(annotation: Any, value: Any, misfits: list[Misfit], path: KeyPath) -> Any:
    bounds: list[Bound] = []
    while get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        bounds += [extra for extra in extras if isinstance(extra, Bound)]
        shorthand = next((extra for extra in extras if isinstance(extra, Shorthand)), None)
        if shorthand is not None:
            value = _expand(annotation, value, shorthand.key)
    if get_origin(annotation) in (Union, types.UnionType):
        return _read_union(annotation, value, misfits, path)
    found = _read_plain(annotation, value, misfits, path)
    for bound in bounds:
        wanted = bound.broken_by(found)
        if wanted is not None:
            misfits.append(Misfit(path, f"`{key_path(path)}` must be {wanted}, found {describe(value)}", "change it"))
    return found


def _expand(annotation: Any, value: Any, key: str) -> Any:
    """Return the long form of a shorthand value."""
    if key == "*":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            cls = dataclass_of(annotation)
            assert cls is not None
            switches = {name: hint is bool for name, hint in hints(cls).items()}
            return {name: True if switches.get(name, False) else {} for name in value}
        return value
    if get_origin(annotation) is tuple:
        items = [value] if isinstance(value, str | dict) else value
        return [{key: item} if isinstance(item, str) else item for item in items] if isinstance(items, list) else items
    return {key: value} if isinstance(value, str) else value


def _read_union(annotation: Any, value: Any, misfits: list[Misfit], path: KeyPath) -> Any:
    """Return the value read by the first option that takes it; explain by all options, or by the only likely one."""
    options = [option for option in get_args(annotation) if option is not type(None)]
    if value is None:
        if len(options) < len(get_args(annotation)):
            return None
        misfits.append(
            Misfit(path, f"`{key_path(path)}` is empty", f"give {expected(annotation)}, or leave the key out")
        )
        return None
    attempts: list[list[Misfit]] = []
    for option in options:
        attempt: list[Misfit] = []
        found = _read_value(option, value, attempt, path)
        if not attempt:
            return found
        attempts.append(attempt)
    if len(options) == 1:
        misfits += attempts[0]
        return None
    in_range = [a for o, a in zip(options, attempts, strict=True) if _right_shape(o, value)]
    if in_range:
        misfits += in_range[0]
    else:
        misfits.append(wrong_type(annotation, value, path))
    return None


def _right_shape(option: Any, value: Any) -> bool:
    """Return whether the value has the option's Python type, so that the option's own complaint is the useful one."""
    while get_origin(option) is Annotated:
        option = get_args(option)[0]
    if dataclasses.is_dataclass(option):
        return isinstance(value, Mapping)
    if get_origin(option) is tuple:
        return isinstance(value, list)
    return option in (int, float) and isinstance(value, int | float) and not isinstance(value, bool)


def _read_plain(annotation: Any, value: Any, misfits: list[Misfit], path: KeyPath) -> Any:
    origin = get_origin(annotation)
    if dataclasses.is_dataclass(annotation):
        return read(typing.cast(type, annotation), {} if value is None else value, misfits, path)
    if origin is Literal and value in get_args(annotation) and not isinstance(value, bool):
        return value
    if origin is tuple and isinstance(value, list | str | int | float) and not isinstance(value, bool):
        item = get_args(annotation)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_read_value(item, element, misfits, (*path, i)) for i, element in enumerate(items))
    if origin is dict and isinstance(value, Mapping):
        of = get_args(annotation)[1]
        return {str(key): _read_value(of, element, misfits, (*path, str(key))) for key, element in value.items()}
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if annotation in (int, str, bool) and type(value) is annotation:
        return value
    misfits.append(wrong_type(annotation, value, path))
    return None


def wrong_type(annotation: Any, value: Any, path: KeyPath) -> Misfit:
    from tunesmith.errors import nearest

    allowed = choices(annotation)
    guess = nearest(value, allowed) if isinstance(value, str) and allowed else None
    if guess:
        do = f"did you mean `{guess}`? (choices: {', '.join(allowed)})"
    elif isinstance(value, str) and "${env:" in value:
        do = "environment references stand for text only; write the value here or pass it with --set"
    elif isinstance(value, bool | int | float) and annotation is str:
        do = "put it in quotes if this text is meant"
    elif isinstance(value, str) and annotation is not str and re.fullmatch(r"[-+0-9.eE_]+", value):
        do = "remove the quotes"
    else:
        do = f"give {expected(annotation)}"
    return Misfit(path, f"`{key_path(path)}` must be {expected(annotation)}, found {describe(value)}", do)


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def expected(annotation: Any) -> str:
    """Return an annotation in words: `a whole number or auto`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return expected(get_args(annotation)[0])
    if origin is Literal:
        values = [str(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if origin in (Union, types.UnionType):
        words = [expected(option) for option in get_args(annotation) if option is not type(None)]
        return " or ".join(words)
    if origin is tuple:
        return f"a list of {expected(get_args(annotation)[0]).removeprefix('a ')}"
    if origin is dict or dataclasses.is_dataclass(annotation):
        return "a mapping"
    return _NAMES[annotation]


def describe(value: Any) -> str:
    """Return a value as a message shows it: its type in words and, when short, itself."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def example_keys(cls: type) -> str:
    return f"write `key: value` lines; keys: {', '.join(list(hints(cls))[:6])}"
