"""Classes made by `frozen` behave as frozen dataclasses do."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from tunesmith.frozen import frozen


@frozen
class Ours:
    a: int
    b: tuple[str, ...] = ("x",)
    c: list[int] = dataclasses.field(default_factory=list, repr=False)


@dataclasses.dataclass(frozen=True)
class Standard:
    a: int
    b: tuple[str, ...] = ("x",)
    c: list[int] = dataclasses.field(default_factory=list, repr=False)


@pytest.mark.parametrize("arguments", [((1,), {}), ((1, ("y",)), {"c": [2]}), ((), {"a": 3, "b": ()})])
def test_values_and_text_are_those_of_a_frozen_dataclass(arguments):
    positional, named = arguments
    ours, standard = Ours(*positional, **named), Standard(*positional, **named)
    assert dataclasses.asdict(ours) == dataclasses.asdict(standard)
    assert repr(ours) == repr(standard).replace("Standard", "Ours")
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(standard)]


@pytest.mark.parametrize("arguments", [((), {}), ((1, ("y",), [], 4), {}), ((1,), {"a": 2}), ((1,), {"unheard_of": 2})])
def test_what_a_frozen_dataclass_does_not_take_is_refused(arguments):
    positional, named = arguments
    for cls in (Standard, Ours):
        with pytest.raises(TypeError):
            cls(*positional, **named)


def test_equal_by_values_and_class():
    assert Ours(1) == Ours(1) != Ours(2)
    assert Ours(1) != Standard(1)
    assert hash(dataclasses.replace(Ours(1), c=())) == hash(dataclasses.replace(Ours(1), c=()))
    with pytest.raises(TypeError):
        hash(Ours(1))  # holds a list


def test_nothing_changes_after_it_is_made():
    ours = Ours(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ours.a = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del ours.a
    assert dataclasses.replace(ours, a=2) == Ours(2)
    assert Ours(1).c is not ours.c


def test_copies_are_equal():
    ours = Ours(1, c=[2])
    assert copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours)) == ours
