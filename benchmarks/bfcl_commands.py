"""Time whole commands: `tunesmith bfcl score` beside the official evaluation, on the same answers, start-up included.

    python benchmarks/bfcl_commands.py --data DIR --official /path/to/env/bin/python [--shipped /path/to/env/bin/bfcl]

`DIR` is `bfcl_eval/data`; `--official` is the Python of an environment that `bfcl_official_evaluate.py` describes. One
answer to every item, half of them right and half with something wrong: the largest category by one command each, then
all ten by one command each. All must count the same answers right. `--shipped` times the package's own command as well,
from an environment with everything it requires (`pip install bfcl-eval soundfile`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bfcl_answers import answers, right_calls, source_text
from bfcl_vs_official import CALLS, items

from tunesmith.evaluate.bfcl.decoding import decode_text
from tunesmith.evaluate.bfcl.python_calls import Undecodable
from tunesmith.evaluate.bfcl.scoring import judge
from tunesmith.evaluate.bfcl.verdicts import NOT_COMPARABLE

OFFICIAL = Path(__file__).with_name("bfcl_official_evaluate.py")


def answer(item: dict[str, Any], number: int) -> str:
    """Return a right answer to every other item and a mutated one to the rest."""
    right = source_text(right_calls(item), item, random.Random(0))
    if number % 2 == 0:
        return right
    for response, notation, tagged in answers(item, 50, random.Random(item["id"])):
        if notation == item["known"].language and not tagged and _is_survived(item, response):
            return str(response)
    return right


def _is_survived(item: dict[str, Any], response: str) -> bool:
    """Return whether the official evaluation goes on after an answer, and can write its record as JSON."""
    try:
        response.encode()
        json.dumps(decode_text(response, item["known"].language))
    except Undecodable:
        pass
    except (TypeError, ValueError):
        return False
    return judge(item["known"], item["entry"], response).error_type != NOT_COMPARABLE


REGISTERED = "gpt-4o-2024-11-20"  # a model of the package's table that is asked in words; nothing is sent to it


def write(found: list[dict[str, Any]], room: Path) -> dict[str, Path]:
    """Write one file of answers per category, in the official layout and in ours; return ours."""
    group = room / "result/plain/answers"
    group.mkdir(parents=True)
    (room / "answers").mkdir()
    paths = {}
    for category in CALLS:
        asked = [item for item in found if item["category"] == category.name]
        said = [(item["id"], answer(item, number)) for number, item in enumerate(asked)]
        rows = {
            "result": group / f"BFCL_v4_{category.name}_result.json",
            "response": room / f"answers/{category.name}.jsonl",
        }
        for key, path in rows.items():
            path.write_text("".join(json.dumps({"id": name, key: text}) + "\n" for name, text in said))
        paths[category.name] = rows["response"]
        shipped = room / "shipped/result" / REGISTERED / ("live" if category.name.startswith("live") else "non_live")
        shipped.mkdir(parents=True, exist_ok=True)
        shutil.copy(rows["result"], shipped)
    return paths


def seconds(command: list[str], room: Path) -> tuple[float, str]:
    """Run a command and return its seconds and what it printed."""
    started = time.perf_counter()
    environment = {**os.environ, "BFCL_PROJECT_ROOT": str(room), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return time.perf_counter() - started, done.stdout


def ours(responses: Path, data: Path, room: Path, *names: str) -> tuple[float, dict[str, int]]:
    """Score a file, or a directory of them; return seconds and right answers by category."""
    command = [sys.executable, "-m", "tunesmith", "bfcl", "score", "--responses", str(responses), "--data", str(data)]
    out = room / ("verdicts.jsonl" if names else "verdicts")
    took, said = seconds([*command, "--out", str(out), "--json", *(["--category", *names] if names else [])], room)
    found = json.loads(said)
    return took, {one["category"]: one["correct_count"] for one in found.get("categories", [found])}


def theirs(names: list[str], python: str, room: Path) -> tuple[float, dict[str, int]]:
    """Score categories with the official evaluation; return seconds and right answers by category."""
    took, _ = seconds([python, str(OFFICIAL), *names], room)
    return took, counts("plain", names, room)


def shipped(names: list[str], program: str, room: Path) -> tuple[float, dict[str, int]]:
    """Score categories with the package's command; return seconds and right answers by category."""
    command = [program, "evaluate", "--model", REGISTERED, "--test-category", ",".join(names)]
    took, _ = seconds(command, room / "shipped")
    return took, counts(REGISTERED, names, room / "shipped")


def counts(model: str, names: list[str], room: Path) -> dict[str, int]:
    """Return the right answers that score files tell."""
    scores = {name: next(room.glob(f"score/{model}/**/BFCL_v4_{name}_score.json")) for name in names}
    return {n: json.loads(path.read_text().splitlines()[0])["correct_count"] for n, path in scores.items()}


def main() -> int:
    """Time both and print medians; 1 when they count differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--official", required=True)
    parser.add_argument("--shipped", help="the program `bfcl` of a whole installation")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    names = [category.name for category in CALLS]
    differences = 0
    with tempfile.TemporaryDirectory() as place:
        room = Path(place)
        paths = write(items(args.data), room)
        timed: dict[tuple[str, str], list[float]] = {}
        for _ in range(args.rounds):
            for name, wanted in (("live_multiple", ["live_multiple"]), ("all ten", names)):
                one = [name] if len(wanted) == 1 else []
                took, own = ours(paths[name] if one else room / "answers", args.data, room, *one)
                timed.setdefault((name, "ours"), []).append(took)
                others = {"official": theirs(wanted, args.official, room)}
                if args.shipped:
                    others["shipped"] = shipped(wanted, args.shipped, room)
                for other, (took, right) in others.items():
                    differences += sum(own[category] != right[category] for category in wanted)
                    timed.setdefault((name, other), []).append(took)
    print(f"categories counted differently: {differences}; right answers: {own}")
    for (name, other), took_each in timed.items():
        took, mine = (statistics.median(values) for values in (took_each, timed[name, "ours"]))
        print(f"{name}: {other} {took:.2f} s, {took / mine:.1f} times ours")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
