"""One simulation of an item: its programs in the state that calls have brought them to."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.multi_turn.apis.arithmetic import MathAPI
from tunesmith.evaluate.bfcl.multi_turn.apis.file_system import GorillaFileSystem
from tunesmith.evaluate.bfcl.multi_turn.apis.messages import MessageAPI
from tunesmith.evaluate.bfcl.multi_turn.apis.posting import TwitterAPI
from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import LongContext, Surroundings
from tunesmith.evaluate.bfcl.multi_turn.apis.tickets import TicketAPI
from tunesmith.evaluate.bfcl.multi_turn.apis.trading import TradingBot
from tunesmith.evaluate.bfcl.multi_turn.apis.travel import TravelAPI
from tunesmith.evaluate.bfcl.multi_turn.apis.vehicle import VehicleControlAPI
from tunesmith.evaluate.bfcl.multi_turn.budget import Budget
from tunesmith.evaluate.bfcl.multi_turn.calls import Calls

PROGRAMS: dict[str, type[Any]] = {
    program.__name__: program
    for program in (
        GorillaFileSystem,
        MathAPI,
        MessageAPI,
        TwitterAPI,
        TicketAPI,
        TradingBot,
        TravelAPI,
        VehicleControlAPI,
    )
}


def methods_of(program: type[Any]) -> dict[str, Any]:
    """Return the functions that a model may call, by name: those written down in the class without an underscore."""
    found = vars(program).items()
    return {name: function for name, function in found if inspect.isfunction(function) and name[0] != "_"}


_METHODS = {name: methods_of(program) for name, program in PROGRAMS.items()}


class World:
    """Programs of an item that calls act on.

    Args:
        item_id: names the item.
        programs: names of the classes involved; of two methods of one name the later class's is called.
        initial: state of each class by name, as the data has it; it is copied.
        owner: tells the simulations of one item apart.
        surroundings: work left, and what the item's simulations share.

    Raises:
        DataError: there is no such class, or the state does not fit it.
    """

    def __init__(
        self,
        item_id: str,
        programs: Sequence[str],
        initial: Mapping[str, Any],
        owner: str,
        surroundings: Surroundings,
    ) -> None:
        self._programs = {}
        methods, owners = {}, {}
        for name in programs:
            program = _make(item_id, name, initial.get(name, {}), surroundings)
            self._programs[name] = program
            object_name = re.sub(r"[-./:]", "_", f"{owner}_{item_id}_{name}_instance")
            for method_name, function in _METHODS[name].items():
                methods[method_name] = function.__get__(program)
                owners[method_name] = object_name
        self._calls = Calls(methods, owners, surroundings.budget)

    def run(self, calls: Sequence[str]) -> list[str]:
        """Carry out calls in order and return their results as text."""
        return [self._calls.run(call) for call in calls]

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the public attributes of every program, which are what is compared."""
        return {
            name: {key: value for key, value in vars(program).items() if not key.startswith("_")}
            for name, program in self._programs.items()
        }

    def differences(self, other: World) -> Iterator[tuple[str, str]]:
        """Yield the program and attribute of whatever is not the same in a simulation of the same item."""
        theirs = other.state()
        for name, attributes in self.state().items():
            yield from ((name, key) for key, value in attributes.items() if value != theirs[name][key])


def _make(item_id: str, name: str, state: Any, surroundings: Surroundings) -> Any:
    if name not in PROGRAMS:
        do = f"the programs are {', '.join(PROGRAMS)}"
        raise DataError(f"there is no program {name!r} to simulate", where=item_id, do=do)
    try:
        return PROGRAMS[name](copy.deepcopy(state), surroundings)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"`initial_config` does not describe a {name}: {type(error).__name__}: {error}"
        raise DataError(what, where=item_id) from None


class Scene:
    """What an item begins with; every simulation of it is one world.

    Args:
        item: a line of the data: `id`, `involved_classes`, `initial_config`.
        long_context: for the items that come with it, what it adds.
    """

    def __init__(self, item: Mapping[str, Any], long_context: LongContext | None) -> None:
        self._id = str(item["id"])
        self._programs = [str(name) for name in item.get("involved_classes", [])]
        self._initial = item.get("initial_config", {})
        self._long_context = long_context and dataclasses.replace(
            long_context,
            # What calls change; the rest is only read, and much.
            credit_cards=copy.deepcopy(long_context.credit_cards),
            bookings=copy.deepcopy(long_context.bookings),
        )
        self._default_tags: list[Any] = []
        self._default_mentions: list[Any] = []

    def world(self, owner: str) -> World:
        """Return a new simulation, named after who acts in it."""
        surroundings = Surroundings(Budget(), self._long_context, self._default_tags, self._default_mentions)
        return World(self._id, self._programs, self._initial, owner, surroundings)
