"""`evaluate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from tunesmith.evaluation import Subject


def add_arguments_evaluate(parser: argparse.ArgumentParser) -> None:
    tasks = (
        "a recipe, a YAML file with an `evaluate` section, or a run (its recipe; its own models where none is named)"
    )
    parser.add_argument("tasks", help=tasks)
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible endpoint, with or without /v1")
    parser.add_argument(
        "--model", help="the name at the endpoint (may be left out where there is one); else a run or model directory"
    )
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the endpoint's key")
    parser.add_argument("--beside", metavar="MODEL", help="compare with this one, on the same items: like --model")
    parser.add_argument("--beside-endpoint", metavar="URL", help="where that one is (default: --endpoint)")
    parser.add_argument("--beside-api-key-env", metavar="NAME", help="environment variable with the key there")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key; repeatable")
    parser.add_argument(
        "--new", action="store_true", help="ask everything again although the same was evaluated before"
    )
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate, and exit with 5 when items were left unanswered that the same command would ask again."""
    from tunesmith import summary
    from tunesmith.artifacts import Report, Scores
    from tunesmith.errors import EvaluateError
    from tunesmith.evaluation import evaluate

    tuned, base = _subjects(args)
    run_dir = evaluate(args.tasks, args.set, tuned, base, args.output_dir, new=args.new)
    scores = run_dir.load(Scores)
    problem: EvaluateError | None = None
    if scores.num_unanswered:
        what = f"{scores.num_unanswered:,} answers are missing because an endpoint failed; everything else is kept"
        problem = EvaluateError(what, where=str(run_dir.path), do="give the same command again: it asks only those")
    if args.json:
        import json

        document = {"ok": problem is None, "run": str(run_dir.path), "scores": scores.to_json()}
        print(json.dumps(document, indent=2))
    else:
        print(f"\ntuned: {tuned.name}{f'   base: {base.name}' if base else ''}\n{summary.comparison_table(scores)}\n")
        print(f"report: {run_dir.absolute(run_dir.load(Report).path)}")
    if problem is not None:
        print(f"error: {problem.render()}", file=sys.stderr)
        return problem.exit_code
    return 0


def _subjects(args: argparse.Namespace) -> tuple[Subject, Subject | None]:
    """Return what is evaluated, and what it is compared with.

    Raises:
        UsageError: no model is named, or a key without an endpoint.
    """
    from pathlib import Path

    from tunesmith.errors import UsageError
    from tunesmith.evaluation import Subject

    def key(variable: str | None, endpoint: str | None, flag: str) -> str:
        if variable and not endpoint:
            raise UsageError(f"{flag} names a key, and there is no endpoint to send it to", do="add --endpoint URL")
        return f"${{env:{variable}}}" if variable else ""

    if not args.endpoint and not args.model:
        if Path(args.tasks).is_file():
            raise UsageError("no model is named", do="add --endpoint URL, or --model with a run or a model directory")
        return Subject(args.tasks), Subject(f"{args.tasks}:base")
    tuned = Subject(args.model or "", args.endpoint or "", key(args.api_key_env, args.endpoint, "--api-key-env"))
    if not args.beside and not args.beside_endpoint:
        return tuned, None
    there = args.beside_endpoint or args.endpoint or ""
    variable = args.beside_api_key_env or (args.api_key_env if there == args.endpoint else None)
    return tuned, Subject(args.beside or "", there, key(variable, there, "--beside-api-key-env"))
