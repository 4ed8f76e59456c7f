"""Call strings are carried out without being evaluated: what works, what does not, and what hostile text comes to."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.evaluate.bfcl.multi_turn.budget import Budget
from tunesmith.evaluate.bfcl.multi_turn.calls import Calls
from tunesmith.evaluate.bfcl.multi_turn.checking import check
from tunesmith.evaluate.bfcl.multi_turn.world import Scene

ROOT = Path(__file__).resolve().parents[3]


class Echo:
    """Answers with what it is called with."""

    def say(self, *values: Any, **named: Any) -> Any:
        return values[0] if len(values) == 1 and not named else {"values": list(values), **named}

    def fail(self) -> None:
        raise ValueError("no")


def calls(budget: Budget | None = None) -> Calls:
    echo = Echo()
    return Calls({"say": echo.say, "fail": echo.fail}, {"say": "me", "fail": "me"}, budget or Budget())


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("say('a')", "a"),
        ("say(None)", "None"),
        ("say([1, -2.5, (True,), {'a': {1}}])", "[1, -2.5, (True,), {'a': {1}}]"),
        ("say({'a': [1], 'b': None})", '{"a": [1], "b": null}'),
        ("say({1: {2}})", "{1: {2}}"),  # no JSON: as Python shows it
        ("say({'é': 1})", '{"\\u00e9": 1}'),
        ("say(1 + 2 * 3 ** 2 // 2 - 7 % 4)", "7"),
        ("say(say([5, 6])[1])", "6"),
        ("say(say(a=1)['a'])", "1"),
        ("  say(x=1, y='b')", '{"values": [], "x": 1, "y": "b"}'),
        ("'text'", "text"),
        ("fail()", "Error during execution: no"),
        ("nosuch(1)", "Error during execution: name 'nosuch' is not defined"),
        ("nosuch.say(1)", "Error during execution: name 'nosuch' is not defined"),
        ("say(nosuch)", "Error during execution: name 'nosuch' is not defined"),
        ("say(x=1, x=2)", "Error during execution: keyword argument repeated: x"),
        ("say(", "Error during execution: '(' was never closed (<string>, line 1)"),
        ("say([1][2])", "Error during execution: list index out of range"),
        # Text that looks like a call: the space goes, and a method gets its owner's name. So it is in the official.
        ("say('see note (1) and say (2)')", "see note(1) and me.say(2)"),
    ],
)
def test_calls(text: str, result: str) -> None:
    assert calls().run(text) == result


HOSTILE = (
    "__import__('os').system('touch {canary}')",
    "open('{canary}', 'w')",
    "exec(\"open('{canary}', 'w')\")",
    "eval(\"open('{canary}', 'w')\")",
    "say(__import__('pathlib').Path('{canary}').touch())",
    "say.__globals__['os'].system('touch {canary}')",
    "me.say.__func__.__globals__",
    "me.say('x').__class__.__mro__[1].__subclasses__()",
    "say(().__class__.__base__.__subclasses__())",
    "[say(x) for x in range(10**9)]",
    "(lambda: open('{canary}', 'w'))()",
    "say(f\"{{open('{canary}', 'w')}}\")",
    "say(**{{'x': open('{canary}', 'w')}})",
    "say(*[open('{canary}', 'w')])",
    "(x := open('{canary}', 'w'))",
    "say() if open('{canary}', 'w') else say()",
    "getattr(say, '__self__')",
    "breakpoint()",
    "exit()",
    "__init__()",
    "_value()",
    "say('a' * 10**9)",
    "say([0] * 10**9)",
    "say(10 ** 10 ** 10)",
    "say(9 ** 9 ** 9)",
    "say(2 ** 100000)",
    "say(1 << 10**9)",
    "say('%999999999d' % 1)",
    "say(" + "[" * 10_000 + "]" * 10_000 + ")",
    "say(" * 150 + ")" * 150,
    "say(" + "-" * 50_000 + "1)",
    "say(1" + " + 1" * 30_000 + ")",
    "say(" + "1 if 1 else " * 5_000 + "1)",
    "say" + ".a" * 30_000 + "()",
    "say" + "()" * 30_000,
    "say('" + "a" * 50_000_000 + "')",
    "a" * 1_000_000 + " " * 1_000_000,
    "say(x=1" + ", x=1" * 19_000 + ")",
    "\x00",
    "say('\ud800')",
    "say(" + "9" * 5_000 + ")",
)


def with_canary(text: str, path: str) -> str:
    return text.replace("{{", "{").replace("}}", "}").replace("{canary}", path)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_is_a_failed_call(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("model text was evaluated")

    canary = tmp_path / "canary"
    text = with_canary(HOSTILE[number], str(canary))
    for name in ("eval", "exec", "open", "breakpoint"):
        monkeypatch.setattr(builtins, name, forbidden)
    monkeypatch.setattr(os, "system", forbidden)
    result = calls().run(text)
    monkeypatch.undo()
    assert result.startswith("Error during execution: ") or result == "\ud800"
    assert len(result) < 1000 and not canary.exists()


# Each would take minutes or gigabytes if it were carried out as written.
COSTLY = (
    ("MathAPI", ["power(9, 999999999)", "power(10**9, 10**9)", "round_number(5, -10**9)"]),
    ("MathAPI", ["logarithm(2, 10, 10**9)", "logarithm('1e999999999', 10, 10)", "square_root(2, 10**9)"]),
    ("MathAPI", ["multiply(power(2, 9999)['result'], power(2, 9999)['result'])"] * 3),
    ("GorillaFileSystem", ["mkdir('a')", "cp('a', 'a')", "find()", "du()"]),
    (
        "GorillaFileSystem",  # directories that share their entries: twice as many paths a level
        ["mkdir('a')"]
        + [call for n in range(40) for call in (f"cp('a', 'b{n}')", f"mkdir('c{n}')")]
        + [call for _ in range(40) for call in ("mkdir('n')", "cp('a', 'n')", "mv('a', 'x')", "mv('x', 'n')")]
        + ["find()", "du()"],
    ),
    ("GorillaFileSystem", ["echo('" + "x" * 99_000 + "')"] * 5_000),
    ("GorillaFileSystem", ["ls()"] * 200_000),
)


@pytest.mark.parametrize(("program", "texts"), COSTLY)
def test_costly_calls_are_cut_short(program: str, texts: list[str]) -> None:
    world = Scene({"id": "x_0", "involved_classes": [program], "initial_config": {}}, None).world("model")
    # Carried out as written, this test would not end.
    results = world.run(texts)
    assert len(results) == len(texts) and sum(map(len, results)) < 40_000_000


def test_paths_that_double_are_cut_short() -> None:
    make = ["mkdir('d0')"]
    for level in range(30):
        make += [f"cp('d{level}', 'e{level}')", f"mkdir('d{level + 1}')"]
        make += [f"mv('{name}{level}', 'd{level + 1}')" for name in "de"]
    world = Scene({"id": "x_0", "involved_classes": ["GorillaFileSystem"], "initial_config": {}}, None).world("m")
    assert not any("rror" in result for result in world.run(make))
    assert world.run(["find()", "du()"])[0].startswith("Error during execution: too much")


def test_a_hostile_answer_is_wrong_and_leaves_no_trace(tmp_path: Path) -> None:
    """A process of 600 MB and 30 CPU seconds scores all of it; the canary stays away."""
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
from tests.unit.evaluate.test_evaluate_bfcl_multi_turn_calls import HOSTILE, with_canary
from tunesmith.evaluate.bfcl.multi_turn.checking import check
item = {{"id": "multi_turn_base_0", "involved_classes": ["GorillaFileSystem"], "initial_config": {{}}}}
canary = {str(tmp_path / "canary")!r}
texts = [with_canary(text, canary) for text in HOSTILE]
for text in texts:
    assert check(item, [["mkdir(dir_name='a')"]], [[[text]]]).error_type == "multi_turn:instance_state_mismatch", text
print("scored", len(texts))
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"scored {len(HOSTILE)}\n" and list(tmp_path.iterdir()) == []


def test_a_call_that_is_not_there_does_not_hide_the_right_ones() -> None:
    item = {"id": "multi_turn_base_0", "involved_classes": ["GorillaFileSystem"], "initial_config": {}}
    assert check(item, [["mkdir(dir_name='a')"]], [[["exit()", "mkdir('a')"]]]).valid
