"""Make the quickstart's function-calling data: `data/train.jsonl` and `data/heldout.jsonl`.

    python quickstart/make_data.py            writes both files (under a second, standard library only)
    python quickstart/make_data.py --check    exits 1 unless the committed files are what this script makes

Guaranteed, and asserted before anything is written: no argument value of a held-out row occurs in a training row, and
a third of the held-out rows need a tool whose name occurs in no training row.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

from catalog import Tool, combined_tool, is_kept_for_held_out, names_kept_for_held_out
from invented import HELD_OUT, TRAINING, decimal, integer, word

DATA = Path(__file__).parent / "data"
SEED = 2024
NUM_TRAINING_ROWS = 3200
NUM_HELD_OUT_ROWS = 210

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
)
_NUMBER_SLOTS = (
    "{v} {p}",
    "with {v} {p}",
    "for {v} {p}",
    "{p} {v}",
    "the {p} is {v}",
    "{p}: {v}",
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


def make_row(random: Random, tool: Tool, *others: Tool, world: str) -> Row:
    """Return one row: a request for `tool`, two or three tools on offer, and the right call."""
    arguments = {parameter: draw_value(random, kind, world) for parameter, kind in tool.parameters}
    strangers = [other for other in others if other.name != tool.name]
    offered = shuffled(random, [tool, *random.sample(strangers, random.choice((1, 2)))])
    call = {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
    answer: Row = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages = [{"role": "user", "content": ask(random, tool, arguments)}, answer]
    return {"messages": messages, "tools": [other.declaration() for other in offered]}


def make_rows() -> tuple[list[Row], list[Row]]:
    """Return the training rows and the held-out rows; the same ones on every machine."""
    random = Random(SEED)
    training = _training_rows(random, NUM_TRAINING_ROWS // 2)
    held_out = [
        make_row(random, *(combined_tool(random, unseen=index % 3 == 0) for _ in range(4)), world=HELD_OUT)
        for index in range(NUM_HELD_OUT_ROWS)
    ]
    training += _training_rows(
        Random(SEED + 1), NUM_TRAINING_ROWS // 2
    )  # added later: held-out rows stay what they were
    return training, held_out


def _training_rows(random: Random, num_rows: int) -> list[Row]:
    return [
        make_row(random, *(combined_tool(random, unseen=False) for _ in range(4)), world=TRAINING)
        for _ in range(num_rows)
    ]


def words_of(text: str) -> set[str]:
    """Return every word and number in `text`, in lower case; `book_train` counts as a whole and in parts."""
    text = text.lower()
    return set(re.findall(r"[a-z]+(?:_[a-z]+)*|\d+\.\d+|\d+", text)) | set(re.findall(r"[a-z]+", text))


def values_of(rows: list[Row]) -> set[str]:
    """Return every argument value in `rows` as written in lower case, a name of two words as each of its words."""
    calls = [call["function"] for row in rows for message in row["messages"] for call in message.get("tool_calls", [])]
    return {part for call in calls for value in call["arguments"].values() for part in str(value).lower().split()}


def assert_separate(training: list[Row], held_out: list[Row]) -> None:
    """Assert what the module docstring guarantees."""
    seen_words = words_of(json.dumps(training))
    assert not values_of(held_out) & seen_words, "a held-out value occurs in a training row"
    assert not names_kept_for_held_out() & seen_words, "a tool kept for held-out rows occurs in a training row"
    called = [row["messages"][-1]["tool_calls"][0]["function"]["name"] for row in held_out]
    assert 0.3 <= sum(map(is_kept_for_held_out, called)) / len(called) <= 0.4


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
