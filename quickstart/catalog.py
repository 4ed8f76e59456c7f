"""The tools of the function-calling data set, and the ways a person asks for them.

Training rows use tools combined from the words below: any verb, any noun, any parameters. With so many of them a model
cannot learn the tools by heart and has to read the declarations. `UNSEEN` tools occur in held-out rows only: neither
their names nor their parameter names occur in a training row or in the text that the base model was pre-trained on.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

_VERBS = """
book find open order buy check read print rent pay clean paint plan join create send sell move repair visit share
choose compare count cover deliver design draw fill fix guess help hold list listen mark measure offer pack pick press
protect push record remove report request rescue save search select share show sort start stop store test track trade
translate transfer update wash watch weigh write
"""
_NOUNS = """
train seat table hotel pizza parcel stock news event car bill text garden ticket flight photo movie book course room
wall meeting email song house letter map box phone computer camera bike boat bus cup chair desk door window lamp coat
shoe shirt bag bottle bread cheese coffee tea cake fruit apple meal picture poem story test report card game machine
engine bridge road farm field horse cat bird fish tree flower
"""
_TEXT_PARAMETERS = """
station city person place street company topic group garage shop language product island album friend school colour
team country village office library kitchen market park beach bank church hospital hall station title name label code
subject style brand brother sister doctor driver teacher captain king queen lawyer owner member partner address
district valley mountain lake forest castle tower square corner gate zone region theme
"""
_INTEGER_PARAMETERS = """
days guests nights shares hours weeks copies pages minutes months years people seats items units steps points boxes
cards tickets letters books rooms floor level number size age count rank
"""
_DECIMAL_PARAMETERS = ("amount", "price", "score", "weight", "rate", "total", "length", "height", "speed")
_DESCRIPTIONS = ("{} a {} for a {}", "{} a {} of a {}", "{} the {} of a {}", "{} a {} with a {}", "{} a {} at a {}")
_REQUESTS = ("{} a {}", "{} the {}", "{} my {}")

_UNSEEN_LINES = """
hire_tailor | Hire a tailor for a gown | hire a tailor | gown:string
milk_goat | Milk a goat in a barn | milk a goat | barn:string cows:integer
dock_ferry | Dock a ferry at a pier | dock a ferry | pier:string
mow_lawn | Mow a lawn with a tractor | mow the lawn | tractor:string acre:number
forge_sword | Forge a sword with an armourer | forge a sword | armourer:string
probe_planet | Probe a planet with a robot | probe a planet | robot:string
guard_prison | Guard a prison with a guard | guard a prison | prison:string cell:integer
fill_granary | Fill a granary with barrels | fill a granary | granary:string barrel:integer
feed_owl | Feed an owl in a nest | feed an owl | nest:string
launch_rocket | Launch a rocket with a crew | launch a rocket | rocket:string crew:integer
lease_loft | Lease a loft from a singer | lease a loft | singer:string
steer_drone | Steer a drone over a canal | steer a drone | canal:string
"""


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


def _parse(lines: str) -> tuple[Tool, ...]:
    tools = []
    for line in lines.strip().splitlines():
        name, description, request, parameters = (field.strip() for field in line.split("|"))
        pairs = (parameter.split(":") for parameter in parameters.split())
        tools.append(Tool(name, description, request, tuple((parameter, kind) for parameter, kind in pairs)))
    return tuple(tools)


def combined_tool(random: Random) -> Tool:
    """Return a tool put together from the training words: one text parameter, and a number or a second text in half."""
    verb, noun = random.choice(_VERBS.split()), random.choice(_NOUNS.split())
    first, second = random.sample(sorted({*_TEXT_PARAMETERS.split()} - {noun}), 2)
    others = (
        (random.choice(_INTEGER_PARAMETERS.split()), "integer"),
        (random.choice(_DECIMAL_PARAMETERS), "number"),
        (second, "string"),
    )
    parameters = [(first, "string"), *random.choices(others, weights=(6, 1, 3), k=random.choice((0, 1)))]
    description = random.choice(_DESCRIPTIONS).format(verb.capitalize(), noun, first)
    return Tool(f"{verb}_{noun}", description, random.choice(_REQUESTS).format(verb, noun), tuple(parameters))


UNSEEN = _parse(_UNSEEN_LINES)
