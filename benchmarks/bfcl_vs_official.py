"""Compare our BFCL verdicts with the official checker's, on right answers and on mutated ones, and time both.

    python benchmarks/bfcl_vs_official.py --data DIR --official /path/to/env/bin/python [--answers 200000]

`DIR` is `bfcl_eval/data` (or any directory in that layout); `--official` is the Python of an environment that
`bfcl_official_worker.py` describes. Exits 1 when one verdict differs in `valid` or `error_type`.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bfcl_answers import answers, right_calls, source_text

from tunesmith.evaluate import all_cores
from tunesmith.evaluate.bfcl import categories, dataset
from tunesmith.evaluate.bfcl.checking import Rules
from tunesmith.evaluate.bfcl.decoding import decode_openai_calls, decode_text
from tunesmith.evaluate.bfcl.format_sensitivity import FORMS
from tunesmith.evaluate.bfcl.prompts import hinted, openai_tools, system_prompt
from tunesmith.evaluate.bfcl.python_calls import Undecodable
from tunesmith.evaluate.bfcl.scoring import judge, judge_calls
from tunesmith.evaluate.bfcl.verdicts import NOT_COMPARABLE
from tunesmith.hardware import num_cpus

WORKER = Path(__file__).with_name("bfcl_official_worker.py")
CALLS = [c for c in categories.CATEGORIES.values() if c.scorer == "calls"]
KNOWN_FAILURES = {
    "parallel_multiple_12",
    "parallel_multiple_26",
    "live_simple_106-63-0",
    "live_simple_112-68-0",
    "live_multiple_507-149-4",
    "live_multiple_862-181-3",
    "live_multiple_964-207-0",
    "live_multiple_1038-265-0",
}
Case = tuple[dict[str, Any], Any, str, bool]  # item, response, notation, tagged
_BATCH = 4_000


class Official:
    """The official checker in its own process."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def verdicts(self, cases: list[Case]) -> tuple[list[tuple[bool, str]], float]:
        """Return verdicts and the seconds the worker's loop took."""
        assert self._process.stdin and self._process.stdout
        sent = [
            [item["category"], item["function"], item["ground_truth"], response, notation, tagged]
            for item, response, notation, tagged in cases
        ]
        self._process.stdin.write(json.dumps({"answers": sent}) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        return [(valid, error) for valid, error in reply["verdicts"]], reply["seconds"]

    def prompts(self, asked: list[tuple[str, Any, str]]) -> list[tuple[str, list[Any]]]:
        """Return the official system prompt and tools for (category, functions, name of a form)."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"prompts": asked}) + "\n")
        self._process.stdin.flush()
        return [(text, tools) for text, tools in json.loads(self._process.stdout.readline())["prompts"]]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def ours(case: Case) -> tuple[bool, str]:
    """Return our verdict in the worker's terms."""
    item, response, notation, tagged = case
    category, entry = item["known"], item["entry"]
    if notation == category.language and not tagged:
        verdict = judge(category, entry, response)
    else:
        try:
            calls = (
                decode_openai_calls(response)
                if notation == "openai"
                else decode_text(response, notation, tagged=tagged)
            )
        except Undecodable:
            return False, "ast_decoder:decoder_failed"
        verdict = judge_calls(category.name, entry, calls, Rules(category.language, notation == "openai"))
    return verdict.valid, "raised" if verdict.error_type == NOT_COMPARABLE else verdict.error_type


def items(data: Path) -> list[dict[str, Any]]:
    """Return every item of the categories with calls, in the form the worker and the mutations want."""
    found = []
    for category in CALLS:
        for entry in dataset.load(category, data).entries:
            truth = {"function": list(entry.functions), "ground_truth": list(entry.ground_truth)}
            found.append({"id": entry.id, "category": category.name, "known": category, "entry": entry, **truth})
    return found


def right_answers(found: list[dict[str, Any]]) -> Iterator[Case]:
    """Yield every item's ground truth as an answer in Python's syntax (as decoded calls, for Java and JavaScript)."""
    for item in found:
        if item["known"].language == "python":
            yield item, source_text(right_calls(item), item, random.Random(0)), "python", False


def mutated_answers(found: list[dict[str, Any]], count: int, seed: int) -> Iterator[Case]:
    """Yield at least `count` answers; Java and JavaScript items get six times as many as others."""
    shares = [1 if item["known"].language == "python" else 6 for item in found]
    per_share = -(-count // sum(shares))
    for item, share in zip(found, shares, strict=True):
        rng = random.Random(f"{seed}:{item['id']}")
        for response, notation, tagged in answers(item, share * per_share, rng):
            yield item, response, notation, tagged


def compare(official: Official, cases: Iterator[Case]) -> dict[str, Any]:
    """Judge every answer both ways."""
    agreed: collections.Counter[str] = collections.Counter()
    errors: collections.Counter[str] = collections.Counter()
    differences = []
    own_seconds = official_seconds = 0.0
    while batch := list(itertools.islice(cases, _BATCH)):
        theirs, seconds = official.verdicts(batch)
        official_seconds += seconds
        started = time.perf_counter()
        mine = [ours(case) for case in batch]
        own_seconds += time.perf_counter() - started
        for case, one, other in zip(batch, mine, theirs, strict=True):
            errors[other[1] or "valid"] += 1
            if one == other:
                agreed[case[0]["category"]] += 1
            else:
                differences.append({"id": case[0]["id"], "answer": case[1:], "ours": one, "official": other})
    return {
        "agreed": agreed,
        "errors": errors,
        "differences": differences,
        "own_seconds": own_seconds,
        "official_seconds": official_seconds,
    }


def speeds(official: Official, cases: list[Case], rounds: int) -> dict[str, float]:
    """Return items per second over the same answers, medians of alternating rounds.

    `ours` is one process, as `official` is; `all cores` is how `tunesmith bfcl score` goes over answers.
    """
    seconds: dict[str, list[float]] = {"ours": [], "all cores": [], "official": []}
    for _ in range(rounds):
        parts = [official.verdicts(cases[at : at + _BATCH])[1] for at in range(0, len(cases), _BATCH)]
        seconds["official"].append(sum(parts))
        started = time.perf_counter()
        alone = [ours(case) for case in cases]
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        together = all_cores.results(ours, cases)
        seconds["all cores"].append(time.perf_counter() - started)
        assert together == alone
    return {name: len(cases) / statistics.median(taken) for name, taken in seconds.items()}


def different_prompts(official: Official, found: list[dict[str, Any]]) -> list[str]:
    """Return ids of items that we would ask in other words, each in three of the 26 forms by turns."""
    different = []
    for number, item in enumerate(found):
        forms = [FORMS[(number + step) % len(FORMS)] for step in (0, 9, 17)]
        asked = [(item["category"], item["function"], form.name) for form in forms]
        functions = hinted(item["function"], item["known"].language)
        tools = list(openai_tools(functions))
        for form, (text, official_tools) in zip(forms, official.prompts(asked), strict=True):
            if text != system_prompt(functions, form) or official_tools != tools:
                different.append(f"{item['id']} {form.name}")
    return different


def timed_cases(found: list[dict[str, Any]]) -> Iterator[tuple[str, list[Case]]]:
    """Yield what is timed: right answers to every item, as a good model gives them, and mutated ones.

    One model's answers are judged before copies of a process would pay; ten models' are as many as there are to share.
    """
    natural = [
        (item, source_text(right_calls(item), item, random.Random(0)), item["known"].language, False) for item in found
    ]
    yield "right answers, all categories", natural
    yield "right answers of ten models", natural * 10
    mutated = list(mutated_answers(found, 15_000, 7))
    yield "mutated answers, all categories", mutated
    for language in ("python", "java", "javascript"):
        yield f"mutated answers, {language}", [case for case in mutated if case[2] == language and not case[3]]


def main() -> int:
    """Run the comparison and print it; 1 when a verdict differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--official", required=True)
    parser.add_argument("--answers", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--show", type=int, default=20, help="differences to print")
    args = parser.parse_args()

    found = items(args.data)
    official = Official(args.official)
    prompts = different_prompts(official, found)
    print(f"prompts and tools: {3 * len(found):,}; different from the official ones: {len(prompts)} {prompts[:5]}")
    right = compare(official, right_answers(found))
    failed = {case[0]["id"] for case in right_answers(found) if not ours(case)[0]}
    print(f"ground truth against itself: {len(failed)} fail, the known eight: {failed == KNOWN_FAILURES}")
    mutated = compare(official, mutated_answers(found, args.answers, args.seed))
    total = sum(mutated["agreed"].values()) + len(mutated["differences"])
    print(f"mutated answers: {total:,}; different verdicts: {len(mutated['differences'])}")
    for category in CALLS:
        print(f"  {category.name:<24} {mutated['agreed'][category.name]:>8,} equal")
    for error, number in mutated["errors"].most_common():
        print(f"  {error:<60} {number:>8,}")
    for difference in (right["differences"] + mutated["differences"])[: args.show]:
        print(json.dumps(difference, ensure_ascii=True))
    for name, cases in timed_cases(found) if args.rounds else ():
        speed = speeds(official, cases, args.rounds)
        print(f"{name} ({len(cases):,}): official {speed['official']:,.0f} items/s in its one process")
        for label, how in (("ours", "one process"), ("all cores", f"{num_cpus()} CPUs, as `bfcl score`")):
            ratio = speed[label] / speed["official"]
            print(f"    ours, {how}: {speed[label]:,.0f} items/s, {ratio:.1f} times")
    official.close()
    return 1 if prompts or right["differences"] or mutated["differences"] or failed != KNOWN_FAILURES else 0


if __name__ == "__main__":
    sys.exit(main())
