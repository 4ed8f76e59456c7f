"""`bfcl score` and `bfcl categories`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from tunesmith.evaluate.bfcl.responses import Scored

PROTOCOLS = ("prompt", "fc-openai-tools", "fc-native-template")

_SCORE = """Score answers that exist already, without a model.

One line in    {"id": "simple_python_0", "response": "[calculate_triangle_area(base=10, height=5)]"}
One line out   {"id": "simple_python_0", "valid": true, "error_type": "", "error": ""}

Verdicts and names of errors are the official checker's. What a response is, by protocol:

  prompt              the model's text; a call as in Python: [f(a=1, b="x"), g()]
                      (Java's or JavaScript's syntax in their categories)
  fc-openai-tools     tool calls of /v1/chat/completions, or [{"name": "{\\"a\\": 1}"}]; dots of names are underscores
  fc-native-template  the model's text, calls as its own chat template writes them: <tool_call>…</tool_call>, …

Multi-turn categories: a list of turns, each a list of such replies (lists of call strings will do), as in official
result files; the calls are carried out in simulations, never evaluated.

Answers may be few: accuracy is over those that are there, and what is missing is told.

A directory is scored file by file, with the leaderboard's summary numbers over all of them: files named as in official
result directories (BFCL_v4_CATEGORY_result.json) or CATEGORY.jsonl; --category then picks some of them."""


def add_arguments_bfcl(parser: argparse.ArgumentParser) -> None:
    import argparse

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    score = actions.add_parser(
        "score",
        help="verdicts on a file of answers, without a model",
        description=_SCORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.add_argument(
        "--category",
        nargs="+",
        default=[],
        metavar="C",
        help="the answered items: `tunesmith bfcl categories`; of a directory also several, and collections",
    )
    score.add_argument(
        "--responses", required=True, metavar="F.jsonl", help="answers: one {id, response} a line; or a directory"
    )
    score.add_argument(
        "--out",
        required=True,
        metavar="V.jsonl",
        help="verdicts: one {id, valid, error_type, error} a line; or a directory",
    )
    score.add_argument(
        "--protocol", choices=PROTOCOLS, default="prompt", help="how they were asked for (default: prompt)"
    )
    _add_data(score)
    score.add_argument("--json", action="store_true", help="print the summary as JSON")
    listing = actions.add_parser("categories", help="list categories, collections and item counts")
    listing.add_argument("--json", action="store_true", help="print them as JSON")


def _add_data(parser: argparse.ArgumentParser) -> None:
    places = "$TUNESMITH_BFCL_DATA, an installed bfcl-eval, the Hub"
    what = f"directory of BFCL_v4_*.json, or a Hub data set (default: {places})"
    parser.add_argument("--data", metavar="DIR", help=what)


def run_bfcl(args: argparse.Namespace) -> int:
    return _score(args) if args.action == "score" else _categories(args)


def _score(args: argparse.Namespace) -> int:
    from pathlib import Path

    from tunesmith.errors import UsageError
    from tunesmith.evaluate.bfcl.categories import category
    from tunesmith.evaluate.bfcl.location import locate
    from tunesmith.evaluate.bfcl.responses import score

    responses, out = Path(args.responses), Path(args.out)
    if responses.is_dir():
        return _score_folder(args, responses, out)
    if len(args.category) != 1:
        raise UsageError("a file of answers is of one category", do="name it with --category, or give a directory")
    known = category(args.category[0])
    if responses.resolve() == out.resolve():
        raise UsageError("the verdicts would replace the answers", where=args.out, do="give another name with --out")
    scored = score(known, locate(args.data), responses, out, args.protocol)
    if args.json:
        _print_json(scored.as_json())
    else:
        _tell(scored)
        print(f"verdicts: {args.out}")
    return 0


def _score_folder(args: argparse.Namespace, answers: Path, out: Path) -> int:
    from tunesmith.evaluate.bfcl.folder import score_folder
    from tunesmith.evaluate.bfcl.location import locate
    from tunesmith.track.console import warn

    scored = score_folder(answers, locate(args.data), out, args.protocol, args.category)
    for path in scored.left_out:
        warn(f"{path}: not scored, for answers alone do not decide it")
    if args.json:
        _print_json(scored.as_json())
        return 0
    for of_category in scored.categories:
        _tell(of_category)
    for name, accuracy in scored.summary.items():
        print(f"{name}: {100 * accuracy.value:.2f} % ({accuracy.num_items:,} items)")
    print(f"verdicts: {args.out}")
    return 0


def _tell(scored: Scored) -> None:
    missing = f", {scored.num_missing:,} not answered" if scored.num_missing else ""
    print(
        f"{scored.category}: {100 * scored.accuracy:.2f} % ({scored.correct_count:,} of {scored.total_count:,} right"
        f"{missing}) · {scored.protocol} · {scored.data_version}"
    )
    for name, number in scored.error_types.items():
        print(f"  {number:>6,}  {name}")
    for name in ("accuracy_max_delta", "accuracy_std", "accuracy_variance"):
        if name in scored.extra:
            print(f"  {scored.extra[name]:>6}  {name} over {len(scored.extra['accuracy_by_form'])} forms of the prompt")


def _categories(args: argparse.Namespace) -> int:
    from tunesmith.evaluate.bfcl.categories import CATEGORIES, COLLECTIONS

    if args.json:
        listed = [
            {"name": c.name, "old_name": c.old_name, "group": c.group, "num_items": c.num_items, "language": c.language}
            for c in CATEGORIES.values()
        ]
        _print_json({"categories": listed, "collections": COLLECTIONS})
        return 0
    print(f"{'category':<26}{'items':>6}  group")
    for known in CATEGORIES.values():
        before = f" (before version 4: {known.old_name})" if known.old_name else ""
        print(f"{known.name:<26}{known.num_items:>6,}  {known.group}{before}")
    print("\ncollections")
    for name, members in COLLECTIONS.items():
        print(f"  {name:<14}{sum(CATEGORIES[m].num_items for m in members):>6,} items in {len(members)} categories")
    return 0


def _print_json(document: dict[str, Any]) -> None:
    import json

    json.dump(document, sys.stdout, indent=2)
    print()
