"""Frozen dataclasses that cost next to nothing to make: the classes of a recipe, records, and what every verb imports.

The standard decorator compiles six methods for each class, 0.5 ms of start-up apiece, and a verb makes some seventy of
them. Here the methods are written once, and read the fields. `dataclasses.fields`, `replace`, `asdict` and
`is_dataclass` work as ever. Making an instance costs microseconds more: what is made once a row has the standard one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, FrozenInstanceError
from typing import Any, TypeVar, cast, dataclass_transform

_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen(cls: _Class) -> _Class:
    """Make a class a frozen dataclass, compared and hashed by its values."""
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    for name in ("__init__", "__setattr__", "__delattr__", "__eq__", "__hash__", "__repr__"):
        setattr(made, name, _Methods.__dict__[name])
    return cast(_Class, made)


class _Methods:
    """What every such class does, by its fields."""

    def __init__(self: Any, *values: Any, **named: Any) -> None:
        fields = dataclasses.fields(self)
        if len(values) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} values, not {len(values)}")
        given = dict(zip((field.name for field in fields), values, strict=False))
        twice = given.keys() & named.keys()
        unknown = named.keys() - {field.name for field in fields}
        if twice or unknown:
            raise TypeError(f"{type(self).__name__} has no room for {', '.join(sorted(twice | unknown))}")
        given |= named
        for field in fields:
            if field.name in given:
                value = given[field.name]
            elif field.default is not MISSING:
                value = field.default
            elif field.default_factory is not MISSING:
                value = field.default_factory()
            else:
                raise TypeError(f"{type(self).__name__} needs {field.name}")
            object.__setattr__(self, field.name, value)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self: Any, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self: Any, other: object) -> bool:
        return _values(self) == _values(other) if type(other) is type(self) else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(_values(self))

    def __repr__(self: Any) -> str:
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"


def _values(of: Any) -> tuple[Any, ...]:
    return tuple(getattr(of, field.name) for field in dataclasses.fields(of))
