"""`run` and `stage`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from tunesmith.process import Early
    from tunesmith.store.run_dir import RunDir

STAGE_NAMES = ("data", "train", "merge", "evaluate", "bench", "gate", "report", "publish")


def add_arguments_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key; repeatable")
    parser.add_argument("--until", choices=STAGE_NAMES, help="stop after this stage")
    parser.add_argument("--new", action="store_true", help="start a new run although an unfinished or equal one exists")
    parser.add_argument("--json", action="store_true", help="print the run's records as JSON when it is done")


def run_run(args: argparse.Namespace) -> int:
    from tunesmith.process import Early

    with Early() as early:
        if args.until != "data":
            early.start("train")  # before anything is read: its imports decide when the first step is done
        return _run(args, early)


def _run(args: argparse.Namespace, early: Early) -> int:
    from tunesmith import pipeline, summary
    from tunesmith.artifacts import Report, Scores
    from tunesmith.errors import GateFailed
    from tunesmith.recipe.load import load
    from tunesmith.store.run_dir import find_run

    loaded = load(args.recipe, args.set)
    failed: GateFailed | None = None
    try:
        run_dir = pipeline.run(loaded, new=args.new, until=args.until, early=early)
    except GateFailed as error:
        failed = error
        run_dir = find_run(error.where, loaded.recipe.output_dir)
    if args.json:
        import json

        records = {kind: record.to_json() for kind, record in run_dir.records().items()}
        document: dict[str, Any] = {"ok": failed is None, "run": str(run_dir.path), "records": records}
        if failed is not None:
            problem = {"what": failed.what, "where": failed.where, "do": failed.do}
            document |= {"exit_code": failed.exit_code, "problems": [problem]}
        print(json.dumps(document, indent=2))
    else:
        scores, page = run_dir.find(Scores), run_dir.find(Report)
        if scores is not None:
            print(f"\n{summary.comparison_table(scores)}\n")
        if page is not None:
            print(f"report: {run_dir.absolute(page.path)}")
    if failed is not None and args.json:
        print(f"error: {failed.render()}", file=sys.stderr)  # told above, in the one document of this command
        return failed.exit_code
    if failed is not None:
        raise failed
    return 0


def add_arguments_stage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=STAGE_NAMES, help="the stage")
    parser.add_argument("run", help="a run directory, its name, a recipe's name, or `latest`")
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")
    parser.add_argument("--child", action="store_true", help="leave errors for a waiting `tunesmith run`")


def run_stage(args: argparse.Namespace) -> int:
    """Run one stage in this process, from the run's own resolved recipe."""
    from tunesmith import stage_process
    from tunesmith.process import TOLD_LATER, die_with_parent
    from tunesmith.store.run_dir import find_run

    if args.child:
        die_with_parent()  # ranks are children of a launcher that does not see to it
        if stage_process.is_orphan():
            return 1
        if args.run == TOLD_LATER:
            stage_process.import_stage(args.stage)
            args.run = stage_process.told_run()
            if args.run is None:
                return 0
        return _run_child(args.stage, find_run(args.run, args.output_dir))
    from tunesmith import pipeline, summary

    run_dir = find_run(args.run, args.output_dir)
    recipe = stage_process.load_resolved(run_dir)
    if not stage_process.is_first_rank():  # of ranks that torchrun started: rank 0 holds the lock and writes the record
        pipeline.run_in_process(args.stage, recipe, run_dir)
        return 0
    with run_dir.locked():
        record = pipeline.run_in_process(args.stage, recipe, run_dir)
        run_dir.save(record)
    print(summary.line(args.stage, record))
    return 0


def _run_child(stage: str, run_dir: RunDir) -> int:
    """Run a stage for the pipeline that waits for it, which has taken the lock and will read the record."""
    from tunesmith import stage_process
    from tunesmith.errors import TunesmithError, refused_by_the_machine

    stage_process.forget_error(stage, run_dir)  # of ranks that have started again
    try:
        record = stage_process.run_here(stage, stage_process.load_resolved(run_dir), run_dir)
    except TunesmithError as error:
        return stage_process.leave_error(stage, run_dir, error)
    except OSError as error:
        problem = refused_by_the_machine(error)
        if problem is None:
            raise
        return stage_process.leave_error(stage, run_dir, problem)
    if stage_process.is_first_rank():
        run_dir.save(record)
        stage_process.forget_error(stage, run_dir)
    return 0
