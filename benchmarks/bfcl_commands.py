"""Time whole commands: `tunesmith bfcl score` beside the official evaluation, on the same answers, start-up included.

    python benchmarks/bfcl_commands.py --data DIR --official /path/to/env/bin/python [--rounds 5]

`DIR` is `bfcl_eval/data`; `--official` is the Python of an environment that `bfcl_official_evaluate.py` describes. One
answer to every item, half of them right and half with something wrong: the largest category by one command each, then
all ten by one command each. Both must count the same answers right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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
    return paths


def seconds(command: list[str], room: Path) -> tuple[float, str]:
    """Run a command and return its seconds and what it printed."""
    started = time.perf_counter()
    environment = {**os.environ, "BFCL_PROJECT_ROOT": str(room)}
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
    scores = {name: next(room.glob(f"score/plain/**/BFCL_v4_{name}_score.json")) for name in names}
    return took, {n: json.loads(path.read_text().splitlines()[0])["correct_count"] for n, path in scores.items()}


def main() -> int:
    """Time both and print medians; 1 when they count differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--official", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    names = [category.name for category in CALLS]
    differences = 0
    with tempfile.TemporaryDirectory() as place:
        room = Path(place)
        paths = write(items(args.data), room)
        timed: dict[str, tuple[list[float], list[float]]] = {"live_multiple": ([], []), "all ten": ([], [])}
        for _ in range(args.rounds):
            for name, official in (("live_multiple", ["live_multiple"]), ("all ten", names)):
                took, right = theirs(official, args.official, room)
                one = [name] if len(official) == 1 else []
                own_took, own = ours(paths[name] if one else room / "answers", args.data, room, *one)
                differences += sum(own[category] != right[category] for category in official)
                timed[name][0].append(own_took)
                timed[name][1].append(took)
    print(f"categories counted differently: {differences}; right answers: {right}")
    for name, (mine, official) in timed.items():
        a, b = statistics.median(mine), statistics.median(official)
        print(f"{name}: ours {a:.2f} s, official {b:.2f} s, ratio {b / a:.1f}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
