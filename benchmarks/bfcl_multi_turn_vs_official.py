"""Compare our verdicts on BFCL's multi-turn items, and our simulated programs, with those of the official package.

    PYTHONPATH=src PYTHON benchmarks/bfcl_multi_turn_vs_official.py --data DIR [--answers 8000] [--sequences 2000]

PYTHON is an interpreter where `bfcl-eval==2026.3.23` is installed (`pip install --no-deps` is enough, with mpmath
1.3.0); DIR holds BFCL_v4_multi_turn_*.json and possible_answer/. Three parts, each of which must agree in everything:

1. ground truth, replayed: every item must be right, and say so in both;
2. answers derived from it by mistakes a model makes: `valid` and `error_type` of each;
3. random calls of every method of every program: each result, and the state after every call.

The official checker keeps simulations, and a few default lists, for as long as its process lives. They are put back
before every item, so that a verdict does not depend on which items came before.
"""

from __future__ import annotations

import argparse
import ast
import collections
import copy
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code import long_context as official_text
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code import posting_api, travel_booking
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

from tunesmith.evaluate.bfcl.multi_turn import long_context
from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import LongContext
from tunesmith.evaluate.bfcl.multi_turn.checking import check, scene_of
from tunesmith.evaluate.bfcl.multi_turn.world import PROGRAMS, methods_of

_MAX_DEPTH = 12
CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
Item = tuple[dict[str, Any], list[list[str]]]
Turns = list[list[list[str]]]


def load(data: Path) -> list[Item]:
    """Return every item with its ground truth."""
    items: list[Item] = []
    for category in CATEGORIES:
        name = f"BFCL_v4_multi_turn_{category}.json"
        asked = [json.loads(line) for line in (data / name).read_text().splitlines()]
        wanted = [json.loads(line) for line in (data / "possible_answer" / name).read_text().splitlines()]
        items += [(item, answer["ground_truth"]) for item, answer in zip(asked, wanted, strict=True)]
    return items


class Official:
    """The official checker, made to forget."""

    def __init__(self) -> None:
        self._cards = copy.deepcopy(travel_booking.CREDIT_CARD_EXTENSION)
        self._bookings = copy.deepcopy(travel_booking.BOOKING_RECORD_EXTENSION)

    def forget(self) -> None:
        for name in [name for name in vars(multi_turn_utils) if name.endswith("_instance")]:
            delattr(multi_turn_utils, name)
        travel_booking.CREDIT_CARD_EXTENSION = copy.deepcopy(self._cards)
        travel_booking.BOOKING_RECORD_EXTENSION = copy.deepcopy(self._bookings)
        posting_api.TwitterAPI.post_tweet.__defaults__ = ([], [])

    def verdict(self, item: dict[str, Any], ground_truth: list[list[str]], turns: Turns) -> tuple[bool, str]:
        self.forget()
        if len(turns) != len(ground_truth):  # eval_runner.py looks at this before it calls the checker
            return False, "multi_turn:force_terminated"
        found = multi_turn_checker(turns, ground_truth, item, "", "model")
        return found["valid"], found.get("error_type", "")

    def run(self, item: dict[str, Any], call: str) -> tuple[str, dict[str, Any]]:
        """Carry out one more call; return its result and the state after it."""
        results, programs = multi_turn_utils.execute_multi_turn_func_call(
            [call],
            item["initial_config"],
            item["involved_classes"],
            "model",
            item["id"],
            long_context="long_context" in item["id"],
            is_evaL_run=True,
        )
        state = {
            name: {key: plain(value) for key, value in vars(program).items() if not key.startswith("_")}
            for name, program in programs.items()
        }
        return results[0], state


def plain(value: Any, depth: int = 0) -> Any:
    """Return files and directories as lists, everything else as it is; a directory may hold itself."""
    if depth > _MAX_DEPTH:
        return "..."
    if hasattr(value, "contents"):
        return [value.name, {name: plain(item, depth + 1) for name, item in value.contents.items()}]
    return [value.name, value.content] if hasattr(value, "content") else value


# --- mistakes -------------------------------------------------------------------------------------------------------

_STRANGE = ("", "zzz", 0, -1, 10**4, 3.5, True, None, [], ["zzz"], {}, "/", "..", "2024-13-45", "archive", "sort (x)")


def drop(turns: Turns, draw: random.Random) -> None:
    """Leave one call out."""
    step = _some_step(turns, draw)
    if step:
        step.pop(draw.randrange(len(step)))


def repeat(turns: Turns, draw: random.Random) -> None:
    step = _some_step(turns, draw)
    if step:
        step.insert(draw.randrange(len(step) + 1), draw.choice(step))


def swap(turns: Turns, draw: random.Random) -> None:
    step = _some_step(turns, draw)
    if step:
        draw.shuffle(step)


def empty_turn(turns: Turns, draw: random.Random) -> None:
    turns[draw.randrange(len(turns))] = draw.choice(([], [[]], [[], []]))


def too_few_turns(turns: Turns, draw: random.Random) -> None:
    turns.pop()


def earlier(turns: Turns, draw: random.Random) -> None:
    """Do in one turn what belongs into the next, or the other way round."""
    number = draw.randrange(len(turns))
    turns[number] = turns[number] + (turns[number + 1] if number + 1 < len(turns) else [])
    if draw.random() < 0.5 and number + 1 < len(turns):
        turns[number + 1] = []


def split_steps(turns: Turns, draw: random.Random) -> None:
    """Make every call a step of its own; right as before."""
    for number, steps in enumerate(turns):
        turns[number] = [[call] for step in steps for call in step]


def nonsense(turns: Turns, draw: random.Random) -> None:
    texts = ("foo(x=1)", "cd(", "cd()", "ls(b=1)", "'text'", "pwd", "cd.x()", "", "find(1, 2, 3)", "nosuch.pwd()")
    step = _some_step(turns, draw)
    if step is not None:
        step.insert(draw.randrange(len(step) + 1), draw.choice(texts))


def wrong_name(turns: Turns, draw: random.Random) -> None:
    step = _some_step(turns, draw)
    if step:
        number = draw.randrange(len(step))
        name, _, rest = step[number].partition("(")
        step[number] = f"{draw.choice((name + 's', 'cat', 'rm', 'logout', 'pwd'))}({rest}"


def wrong_argument(turns: Turns, draw: random.Random) -> None:
    """Change, drop, add or rename an argument."""
    step = _some_step(turns, draw)
    if not step:
        return
    number = draw.randrange(len(step))
    try:
        call = ast.parse(step[number], mode="eval").body
    except SyntaxError:
        return
    if not isinstance(call, ast.Call):
        return
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    kind = draw.randrange(4)
    if kind == 0 or not arguments:
        call.keywords.append(ast.keyword(draw.choice(("extra", "a", "file_name")), ast.Constant(draw.choice((1, "x")))))
    elif kind == 1 and call.keywords:
        call.keywords.pop(draw.randrange(len(call.keywords)))
    elif kind == 2 and call.keywords:
        draw.choice(call.keywords).value = ast.parse(repr(draw.choice(_STRANGE)), mode="eval").body
    else:
        _nudge(draw.choice(arguments), draw)
    step[number] = ast.unparse(call)


def _nudge(node: ast.expr, draw: random.Random) -> None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node.value = draw.choice((node.value + "x", node.value.upper(), node.value[:-1], f"./{node.value}"))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = draw.choice((node.value + 1, float(node.value), -node.value, str(node.value)))


def extra_call(turns: Turns, draw: random.Random) -> None:
    """Call a method of any program with arguments from other items."""
    step = _some_step(turns, draw)
    if step is not None:
        step.insert(draw.randrange(len(step) + 1), random_call(draw, draw.choice(list(PROGRAMS))))


MISTAKES: tuple[Callable[[Turns, random.Random], None], ...] = (
    drop,
    repeat,
    swap,
    empty_turn,
    too_few_turns,
    earlier,
    split_steps,
    nonsense,
    wrong_name,
    wrong_argument,
    extra_call,
)


def _some_step(turns: Turns, draw: random.Random) -> list[str] | None:
    steps = [step for steps in turns for step in steps]
    return draw.choice(steps) if steps else None


# --- random calls ---------------------------------------------------------------------------------------------------

_SEEN: dict[str, list[str]] = collections.defaultdict(list)  # parameter -> values as text


def learn_values(items: list[Item]) -> None:
    """Collect what ground truth gives for every parameter, and the names that scenarios hold."""
    for item, turns in items:
        for call in (call for turn in turns for call in turn):
            node = ast.parse(call, mode="eval").body
            assert isinstance(node, ast.Call)
            for keyword in node.keywords:
                _SEEN[str(keyword.arg)].append(ast.unparse(keyword.value))
        travel = item["initial_config"].get("TravelAPI", {})
        _SEEN["access_token"].append(repr(travel.get("access_token")))
        _SEEN["card_id"] += map(repr, travel.get("credit_card_list", {}))
        _SEEN["booking_id"] += map(repr, travel.get("booking_record", {}))
        names = re.findall(r'"([\w .]+)": \{"type"', json.dumps(item["initial_config"].get("GorillaFileSystem", {})))
        for parameter in ("file_name", "dir_name", "folder", "source", "destination", "file_name1", "file_name2"):
            _SEEN[parameter] += map(repr, names)


def random_call(draw: random.Random, program: str) -> str:
    """Return a call of one of a program's methods; most arguments are plausible."""
    name, function = draw.choice(list(methods_of(PROGRAMS[program]).items()))
    code = function.__code__
    parameters = code.co_varnames[1 : code.co_argcount]
    num_optional = len(function.__defaults__ or ())
    given = []
    for number, parameter in enumerate(parameters):
        is_optional = number >= len(parameters) - num_optional
        if draw.random() < (0.4 if is_optional else 0.02):
            continue
        strange = repr(draw.choice(_STRANGE))
        known = _SEEN[parameter]
        given.append(f"{parameter}={draw.choice(known) if known and draw.random() < 0.85 else strange}")
    return f"{name}({', '.join(given)})"


def compare_programs(official: Official, items: list[Item], num: int, draw: random.Random, text: LongContext) -> int:
    """Carry out random sequences in both; return how many calls agreed. Stops at the first that does not."""
    by_program: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for item, _ in items:
        for program in item["involved_classes"]:
            by_program[program].append(item)
    counts: collections.Counter[str] = collections.Counter()
    for number in range(num):
        program = list(PROGRAMS)[number % len(PROGRAMS)]
        item = draw.choice(by_program[program]) | {"involved_classes": [program]}
        if draw.random() < 0.1:
            item = item | {"initial_config": {}}
        official.forget()
        ours = scene_of(item, text).world("model_eval")
        for call in sequence(draw, program):
            theirs, their_state = official.run(item, call)
            (result,) = ours.run([call])
            our_state = {n: {k: plain(v) for k, v in state.items()} for n, state in ours.state().items()}
            their_state = {n: {k: v for k, v in s.items() if k != "long_context"} for n, s in their_state.items()}
            if _unordered(result) != _unordered(theirs) or our_state != their_state:
                print(f"{item['id']} {call}\n  official {theirs[:600]}\n  ours     {result[:600]}")
                print("  state", "differs" if our_state != their_state else "agrees")
                raise SystemExit(1)
            counts[program + "." + call.split("(")[0]] += 1
    missing = {f"{p}.{m}" for p in PROGRAMS for m in methods_of(PROGRAMS[p])} - set(counts)
    if missing:
        print("never called:", ", ".join(sorted(missing)))
    return sum(counts.values())


def sequence(draw: random.Random, program: str) -> Iterator[str]:
    """Yield up to thirty calls; log-ins come early, so that what needs one is reached."""
    first = {
        "TwitterAPI": "authenticate_twitter('john', 'john123')",
        "TradingBot": "trading_login('a', 'b')",
        "TicketAPI": "ticket_login('a', 'b')",
        "MessageAPI": "message_login('USR001')",
        "TravelAPI": "authenticate_travel('a', 'b', 'c', 'read_write', 'Ann', 'Lee')",
    }
    if program in first and draw.random() < 0.7:
        yield first[program]
    for _ in range(draw.randint(5, 30)):
        yield random_call(draw, program)


def _unordered(result: str) -> str:
    """Return a result with the two places in order where the official text is that of a set."""
    if "maximum recursion depth exceeded" in result:
        return "too deep"
    result = re.sub(r"\{('\w+'(?:, '\w+')*)\}", lambda m: str(sorted(m.group(1).split(", "))), result)
    return re.sub(r"(Invalid fields for update: )(.*)", lambda m: m.group(1) + "".join(sorted(m.group(2))), result)


# --- the three parts ------------------------------------------------------------------------------------------------


def right(ground_truth: list[list[str]]) -> Turns:
    return [[list(calls)] if calls else [] for calls in ground_truth]


def replay(official: Official, items: list[Item], text: LongContext) -> bool:
    """Score the ground truth itself in both."""
    started = time.perf_counter()
    theirs = [official.verdict(item, wanted, right(wanted))[0] for item, wanted in items]
    between = time.perf_counter()
    ours = [check(item, wanted, right(wanted), text).valid for item, wanted in items]
    ended = time.perf_counter()
    print(f"ground truth: official {sum(theirs)}/{len(items)}, ours {sum(ours)}/{len(items)}")
    print(f"  items/s: official {len(items) / (between - started):.0f}, ours {len(items) / (ended - between):.0f}")
    return all(ours) and all(theirs)


def mistaken(items: list[Item], num: int, draw: random.Random) -> Iterator[tuple[str, Item, Turns]]:
    """Yield answers with one to three mistakes, and the names of these."""
    for number in range(num):
        item = items[number % len(items)]
        turns = right(item[1])
        chosen = draw.choices(MISTAKES, k=draw.choice((1, 1, 2, 3)))
        for mistake in chosen:
            if turns:
                mistake(turns, draw)
        yield "+".join(sorted({mistake.__name__ for mistake in chosen})), item, turns


def compare_verdicts(official: Official, items: list[Item], num: int, draw: random.Random, text: LongContext) -> bool:
    """Score wrong answers in both, and with the text of our own in place of the official long context."""
    kinds: collections.Counter[str] = collections.Counter()
    num_same = num_same_without_text = crashed = 0
    seconds = [0.0, 0.0]
    for name, (item, wanted), turns in mistaken(items, num, draw):
        started = time.perf_counter()
        try:
            theirs = official.verdict(item, wanted, turns)
        except (RecursionError, AssertionError) as error:
            crashed += 1
            print(f"the official checker ends with {error!r}: {item['id']} {name}")
            continue
        between = time.perf_counter()
        found = check(item, wanted, turns, text)
        seconds[0] += between - started
        seconds[1] += time.perf_counter() - between
        kinds[theirs[1] or "valid"] += 1
        ours = (found.valid, found.error_type)
        num_same += ours == theirs
        other = check(item, wanted, turns)
        num_same_without_text += (other.valid, other.error_type) == theirs
        if ours != theirs:
            print(f"{item['id']} {name}: official {theirs}, ours {found}\n  {turns}\n  {wanted}")
    total = sum(kinds.values())
    print(f"wrong answers: {num_same}/{total} agree in `valid` and `error_type`; official crashes: {crashed}")
    print(f"  without the official long text: {num_same_without_text}/{total}")
    print(f"  items/s: official {total / seconds[0]:.0f}, ours {total / seconds[1]:.0f}")
    print("  official verdicts:", ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common()))
    return num_same == total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=8000)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    items, draw, official = load(options.data), random.Random(options.seed), Official()
    learn_values(items)
    text = long_context.read(Path(str(official_text.__file__)))
    outcomes = [replay(official, items, text)]
    outcomes.append(compare_verdicts(official, items, options.answers, draw, text))
    num_calls = compare_programs(official, items, options.sequences, draw, text)
    num_methods = sum(len(methods_of(program)) for program in PROGRAMS.values())
    print(f"programs: {num_calls} calls of {num_methods} methods agree in result and state")
    assert set(PROGRAMS) <= set(CLASS_FILE_PATH_MAPPING)
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
