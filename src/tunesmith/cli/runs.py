"""`runs`, `compare` and `report`: look at what has been run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from tunesmith.store.run_dir import RunDir


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_arguments_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="show one run: a directory, its name, a recipe's name, or `latest`")
    _add_common(parser)


def run_runs(args: argparse.Namespace) -> int:
    from tunesmith.store.run_dir import find_run, list_runs

    if args.run:
        return _show_one(find_run(args.run, args.output_dir), as_json=args.json)
    found = [(run, run.read_run()) for run in list_runs(args.output_dir)]
    if args.json:
        print(json.dumps([{"path": str(run.path)} | state for run, state in found], indent=2))
        return 0
    if not found:
        print(f"no runs in {args.output_dir}/runs; `tunesmith run RECIPE` makes one")
        return 0
    width = max(len(run.path.name) for run, _ in found)
    for run, state in found:
        stages = state.get("stages", {})
        done = " ".join(name for name, facts in stages.items() if facts.get("state") == "done")
        print(f"{run.path.name:<{width}}  {run.outcome():<11}  {done}")
    return 0


def _show_one(run: RunDir, *, as_json: bool) -> int:
    from tunesmith import summary
    from tunesmith.artifacts import Scores

    state = run.read_run()
    records, unreadable = run.readable_records()
    if as_json:
        told = {"problems": [{"what": e.what, "where": e.where, "do": e.do} for e in unreadable]} if unreadable else {}
        print(json.dumps(state | {"records": {k: r.to_json() for k, r in records.items()}} | told, indent=2))
        return 0
    print(f"{run.path}  {run.outcome()}")
    by_stage = {run.stage_of(kind): record for kind, record in records.items()}
    for stage, facts in state.get("stages", {}).items():
        record = by_stage.get(stage)
        if record is not None and facts.get("state") == "done":
            print(summary.line(stage, record, seconds=facts.get("seconds")))
        else:
            print(f"  {stage:<9} {facts.get('state')}  {facts.get('error') or facts.get('reason') or ''}".rstrip())
    for error in unreadable:
        print(f"  {error.render()}")
    scores = records.get("scores")
    if isinstance(scores, Scores):
        print(f"\n{summary.comparison_table(scores)}")
    return 0


def add_arguments_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="two or more runs: directories, names, recipe names, or `latest`")
    parser.add_argument("--all", action="store_true", help="show numbers that are equal, too")
    parser.add_argument("--html", metavar="FILE", help="write a page with every item that was fixed or broken")
    _add_common(parser)


def run_compare(args: argparse.Namespace) -> int:
    from tunesmith.compare.runs import compare
    from tunesmith.store.run_dir import find_run

    runs = [find_run(word, args.output_dir) for word in args.runs]
    comparison = compare(runs)
    if args.html:
        from pathlib import Path

        from tunesmith.compare.page import page
        from tunesmith.store.files import write_text

        write_text(Path(args.html), page(comparison, runs))
    if args.json:
        print(json.dumps(comparison.to_json(), indent=2))
        return 0
    if args.html:
        print(args.html)
        return 0
    _print_columns(comparison.rows(everything=args.all))
    if comparison.items:
        print("\nitem by item")
    for sentence in comparison.item_sentences():
        print(sentence)
    return 0


def _print_columns(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}"] + [
            f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        print("  ".join(cells).rstrip())


def add_arguments_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help="a run (default: latest)")
    parser.add_argument("--markdown", action="store_true", help="print the summary for a comment or a job's page")
    _add_common(parser)


def run_report(args: argparse.Namespace) -> int:
    from tunesmith import stage_process
    from tunesmith.report import stage
    from tunesmith.store.run_dir import find_run

    run = find_run(args.run, args.output_dir)
    record = stage.run(stage_process.load_resolved(run), run)
    path = run.absolute(record.path)
    if args.markdown:
        print(run.absolute(record.summary).read_text(encoding="utf-8"), end="")
        return 0
    places = {"document": str(run.absolute(record.document)), "summary": str(run.absolute(record.summary))}
    answer: dict[str, Any] = {"path": str(path), "num_bytes": record.num_bytes} | places
    print(json.dumps(answer) if args.json else path)
    return 0
