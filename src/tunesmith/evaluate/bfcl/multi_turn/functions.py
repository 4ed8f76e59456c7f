"""How the programs' functions are described to a model: the official descriptions, or ours where they are not at hand.

The official ones are no part of the items. They stand in `multi_turn_func_doc/`, one file a program, beside the items
in the official package and on the Hub. Ours are made from the methods' signatures and docstrings; a number obtained
with them is not comparable with the leaderboard's, and says so.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.multi_turn.world import PROGRAMS, methods_of

Function = dict[str, Any]

FOLDER = "multi_turn_func_doc"
_FILES = {
    "GorillaFileSystem": "gorilla_file_system.json",
    "MathAPI": "math_api.json",
    "MessageAPI": "message_api.json",
    "TwitterAPI": "posting_api.json",
    "TicketAPI": "ticket_api.json",
    "TradingBot": "trading_bot.json",
    "TravelAPI": "travel_booking.json",
    "VehicleControlAPI": "vehicle_control.json",
}
# In the words of the data; `any` where a parameter takes more than one type.
_TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "float"},
    "bool": {"type": "boolean"},
    "list[str]": {"type": "array", "items": {"type": "string"}},
    "list[float]": {"type": "array", "items": {"type": "float"}},
    "dict[str, Any]": {"type": "dict"},
}


def has_official(directory: Path) -> bool:
    """Return whether the official descriptions are beside the items."""
    return (directory / FOLDER).is_dir()


def describe(directory: Path) -> dict[str, list[Function]]:
    """Return the functions of every program: the official descriptions where they are, ours elsewhere.

    Raises:
        DataError: the official ones are there and cannot be read, or do not describe the program's functions.
    """
    if not has_official(directory):
        return {name: list(_own(program)) for name, program in PROGRAMS.items()}
    return {name: _official(directory / FOLDER / file, name) for name, file in _FILES.items()}


def _official(path: Path, program: str) -> list[Function]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        functions = [json.loads(line) for line in lines]
        described = {function["name"] for function in functions}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"descriptions of functions cannot be read: {error}", where=str(path)) from None
    unknown = described ^ set(methods_of(PROGRAMS[program]))
    if unknown:
        what = f"these are not the functions of {program} in version 4 of the data: {', '.join(sorted(unknown))}"
        raise DataError(what, where=str(path), do=f"get {FOLDER}/ and the items from the same version")
    return functions


def _own(program: type[Any]) -> Iterator[Function]:
    about = inspect.getdoc(program) or ""
    for name, method in methods_of(program).items():
        text, _, arguments = (inspect.getdoc(method) or "").partition("\n\nArgs:\n")
        told = dict(re.findall(r"^    (\w+): (.+)$", arguments, re.MULTILINE))
        parameters = list(inspect.signature(method).parameters.values())[1:]
        properties = {parameter.name: _property(parameter, told.get(parameter.name, "")) for parameter in parameters}
        required = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
        yield {
            "name": name,
            "description": f"{about} {' '.join(text.split())}",
            "parameters": {"type": "dict", "properties": properties, "required": required},
        }


def _property(parameter: inspect.Parameter, text: str) -> dict[str, Any]:
    kind = str(parameter.annotation).removesuffix(" | None")
    described = _TYPES.get(kind, {"type": "any"}) | {"description": text}
    if parameter.default in (inspect.Parameter.empty, None) or isinstance(parameter.default, list):
        return described
    return described | {"default": parameter.default}
