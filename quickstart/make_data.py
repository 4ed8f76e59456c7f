"""Make the quickstart's function-calling data: `data/train.jsonl` and `data/heldout.jsonl`.

    python quickstart/make_data.py            writes both files (under a second, standard library only)
    python quickstart/make_data.py --check    exits 1 unless the committed files are what this script makes

Guaranteed, and asserted before anything is written: no argument value of a held-out row occurs in a training row, and
a third of the held-out rows need a tool whose name and parameter names occur in no training row.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

from catalog import UNSEEN, Tool, combined_tool
from invented import HELD_OUT, TRAINING, decimal, integer, word

DATA = Path(__file__).parent / "data"
SEED = 2024
NUM_TRAINING_ROWS = 1160
NUM_HELD_OUT_ROWS = 210
PLAIN_TEXT_FRACTION = 0.1
NO_TOOL_ANSWER = "None of my tools can do that."

_OPENINGS = (
    "Please {}",
    "Can you {}",
    "Could you {}",
    "I want to {}",
    "I need to {}",
    "I would like to {}",
    "Help me {}",
    "Now {}",
    "Go ahead and {}",
)
_TEXT_SLOTS = (
    "{p} {v}",
    "with {p} {v}",
    "for {p} {v}",
    "the {p} is {v}",
    "{p}: {v}",
    "use {v} as the {p}",
    "with {v} as {p}",
)
_NUMBER_SLOTS = (
    "{v} {p}",
    "with {v} {p}",
    "for {v} {p}",
    "{p} {v}",
    "the {p} is {v}",
    "{p}: {v}",
    "use {v} as the {p}",
)
_JOINTS = (", ", " and ", ", and ")

Row = dict[str, Any]


def draw_value(random: Random, kind: str, world: str) -> str | int | float:
    """Return an argument value of the JSON type `kind` that belongs to `world`."""
    if kind == "integer":
        return integer(random, world, max_digits=3)
    return word(random, world, max_letters=7).capitalize() if kind == "string" else decimal(random, world)


def ask(random: Random, tool: Tool, arguments: dict[str, Any]) -> str:
    """Return a request for `tool` in a person's words, mentioning every argument once, in any order."""
    kinds = dict(tool.parameters)
    slots = []
    for parameter in random.sample(list(arguments), len(arguments)):
        phrases = _TEXT_SLOTS if kinds[parameter] == "string" else _NUMBER_SLOTS
        slots.append(random.choice(phrases).format(p=parameter, v=arguments[parameter]))
    opening = random.choice(_OPENINGS).format(tool.request)
    return (
        opening + random.choice((", ", ": ", " ")) + random.choice(_JOINTS).join(slots) + random.choice((".", "", "?"))
    )


def shuffled(random: Random, tools: list[Tool]) -> list[Tool]:
    """Return the tools in random order."""
    return random.sample(tools, len(tools))


def make_row(random: Random, tool: Tool, others: list[Tool], world: str) -> Row:
    """Return one row: a request for `tool`, two or three tools on offer, and the right answer.

    In `PLAIN_TEXT_FRACTION` of the rows `tool` is not on offer, and the right answer is a sentence.
    """
    arguments = {parameter: draw_value(random, kind, world) for parameter, kind in tool.parameters}
    strangers = [other for other in others if other.name != tool.name]
    if random.random() < PLAIN_TEXT_FRACTION:
        offered = random.sample(strangers, random.choice((2, 3)))
        answer: Row = {"role": "assistant", "content": NO_TOOL_ANSWER}
    else:
        offered = shuffled(random, [tool, *random.sample(strangers, random.choice((1, 2)))])
        call = {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages = [{"role": "user", "content": ask(random, tool, arguments)}, answer]
    return {"messages": messages, "tools": [other.declaration() for other in offered]}


def make_rows() -> tuple[list[Row], list[Row]]:
    """Return the training rows and the held-out rows; the same ones on every machine."""
    random = Random(SEED)
    training = [
        make_row(random, combined_tool(random), [combined_tool(random) for _ in range(3)], TRAINING)
        for _ in range(NUM_TRAINING_ROWS)
    ]
    held_out = []
    for index in range(NUM_HELD_OUT_ROWS):
        tool = combined_tool(random) if index % 3 else UNSEEN[index // 3 % len(UNSEEN)]
        others = [*random.sample(UNSEEN, 2), combined_tool(random), combined_tool(random)]
        held_out.append(make_row(random, tool, others, HELD_OUT))
    return training, held_out


def words_of(text: str) -> set[str]:
    """Return every word and number in `text`, in lower case; `book_train` counts as a whole and in parts."""
    text = text.lower()
    return set(re.findall(r"[a-z]+(?:_[a-z]+)*|\d+\.\d+|\d+", text)) | set(re.findall(r"[a-z]+", text))


def values_of(rows: list[Row]) -> set[str]:
    """Return every argument value in `rows` as written in lower case, a name of two words as each of its words."""
    calls = [call["function"] for row in rows for message in row["messages"] for call in message.get("tool_calls", [])]
    return {part for call in calls for value in call["arguments"].values() for part in str(value).lower().split()}


def unseen_identifiers() -> set[str]:
    """Return the names and parameter names that must occur in held-out rows only."""
    return {tool.name for tool in UNSEEN} | {parameter for tool in UNSEEN for parameter, _ in tool.parameters}


def assert_separate(training: list[Row], held_out: list[Row]) -> None:
    """Assert what the module docstring guarantees."""
    seen_words = words_of(json.dumps(training))
    assert not values_of(held_out) & seen_words, "a held-out value occurs in a training row"
    assert not unseen_identifiers() & seen_words, "a held-out tool or parameter occurs in a training row"
    unseen_names = {tool.name for tool in UNSEEN}
    called = [call["function"]["name"] for row in held_out for call in row["messages"][-1].get("tool_calls", [])]
    assert 0.3 <= sum(tool in unseen_names for tool in called) / len(called) <= 0.4


def main() -> int:
    """Write the files, or compare them with what would be written; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the committed files differ")
    check = parser.parse_args().check
    training, held_out = make_rows()
    assert_separate(training, held_out)
    stale = []
    for file_name, rows in (("train.jsonl", training), ("heldout.jsonl", held_out)):
        path, text = DATA / file_name, "".join(json.dumps(row) + "\n" for row in rows)
        if not check:
            DATA.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
    for path in stale:
        print(f"{path} is not what make_data.py makes", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
