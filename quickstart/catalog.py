"""The tools of the function-calling data set, and the ways a person asks for them.

A tool is put together from the words below: any verb, any noun, one or two parameters. With so many of them a model
cannot learn the tools by heart and has to read the declarations. A quarter of the (verb, noun) pairs, chosen by a
checksum of the tool's name, is kept for held-out rows.
"""

from dataclasses import dataclass
from random import Random
from typing import Any
from zlib import crc32

_VERBS = "find open order check print rent clean paint plan join move repair compare count draw help"
_NOUNS = "train table hotel event flight photo movie course room email computer camera bike bus picture game"
_TEXTS = "person place street company topic group shop language team country village office market park code owner"
VERBS, NOUNS, TEXT_PARAMETERS = _VERBS.split(), _NOUNS.split(), _TEXTS.split()
INTEGER_PARAMETERS = ("people", "number", "age", "count", "days", "hours")
DECIMAL_PARAMETERS = ("price", "weight", "speed")
_DESCRIPTIONS = ("{} a {} for a {}", "{} a {} of a {}", "{} the {} of a {}", "{} a {} with a {}", "{} a {} at a {}")
_REQUESTS = ("{} a {}", "{} the {}", "{} my {}")


@dataclass(frozen=True)
class Tool:
    """One tool: what is declared to the model, and the words a person uses when asking for it."""

    name: str
    description: str
    request: str
    parameters: tuple[tuple[str, str], ...]

    def declaration(self) -> dict[str, Any]:
        """Return the tool as a JSON-ready function declaration; every parameter is required."""
        properties = {parameter: {"type": kind} for parameter, kind in self.parameters}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": schema},
        }


def is_kept_for_held_out(name: str) -> bool:
    """Return whether a tool's name must never occur in a training row."""
    return crc32(name.encode()) % 4 == 0


def names_kept_for_held_out() -> set[str]:
    """Return the names of all tools that only held-out rows use."""
    return {f"{verb}_{noun}" for verb in VERBS for noun in NOUNS if is_kept_for_held_out(f"{verb}_{noun}")}


def combined_tool(random: Random, *, unseen: bool) -> Tool:
    """Return a tool put together at random: one text parameter, and a number or a second text in half of them.

    Args:
        random: source of the choices.
        unseen: whether its name is one of those kept for held-out rows.
    """
    while True:
        verb, noun = random.choice(VERBS), random.choice(NOUNS)
        if is_kept_for_held_out(f"{verb}_{noun}") == unseen:
            break
    first, second = random.sample(TEXT_PARAMETERS, 2)
    others = (
        (random.choice(INTEGER_PARAMETERS), "integer"),
        (random.choice(DECIMAL_PARAMETERS), "number"),
        (second, "string"),
    )
    parameters = [(first, "string"), *random.choices(others, weights=(6, 1, 3), k=random.choice((0, 1)))]
    description = random.choice(_DESCRIPTIONS).format(verb.capitalize(), noun, first)
    return Tool(f"{verb}_{noun}", description, random.choice(_REQUESTS).format(verb, noun), tuple(parameters))
