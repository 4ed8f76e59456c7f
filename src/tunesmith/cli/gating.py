"""`gate`: hold rules against a finished run, those of its recipe or any others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from tunesmith.artifacts import Verdict
    from tunesmith.store.run_dir import RunDir


def add_arguments_gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help="a run (default: latest)")
    parser.add_argument(
        "--rule", metavar="RULE", action="append", default=[], help="try this rule instead of the recipe's; repeatable"
    )
    parser.add_argument("--numbers", action="store_true", help="list every number that a rule can read, and end")
    parser.add_argument("--junit", metavar="FILE", help="write the verdict as JUnit XML, too")
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_gate(args: argparse.Namespace) -> int:
    """Decide and print; the run is left as it is. The exit code is 6 when a rule does not hold."""
    from tunesmith.errors import GateFailed
    from tunesmith.store.run_dir import find_run

    run = find_run(args.run, args.output_dir)
    if args.numbers:
        return _print_numbers(run, as_json=args.json)
    verdict = _decided(run, args.rule)
    if args.junit:
        from pathlib import Path

        from tunesmith.gate.junit import junit_xml
        from tunesmith.store.files import write_text

        write_text(Path(args.junit), junit_xml(verdict, run.path.name))
    if args.json:
        import json

        print(json.dumps({"run": str(run.path)} | verdict.to_json(), indent=2, ensure_ascii=False))
    else:
        print(_told(verdict))
    return 0 if verdict.passed else GateFailed.exit_code


def _decided(run: RunDir, rules: list[str]) -> Verdict:
    from tunesmith import stage_process
    from tunesmith.errors import UsageError
    from tunesmith.gate.numbers import numbers
    from tunesmith.gate.stage import decide, no_such_number
    from tunesmith.recipe.gate_rules import RuleError, parse_rule

    known = numbers(run)
    for text in rules:
        try:
            missing = [path for path in parse_rule(text).paths if path not in known]
        except RuleError as error:
            raise UsageError(f"--rule {text!r}: {error}") from None
        if missing:
            do = "`tunesmith gate RUN --numbers` lists them all"
            raise UsageError(f"--rule {text!r}: {no_such_number(missing[0], list(known))}", do=do)
    chosen = rules or list(stage_process.load_resolved(run).gate)
    if not chosen:
        do = "give some with --rule, such as --rule 'train.final_loss < 1'"
        raise UsageError("the recipe of this run has no gate", where=str(run.path), do=do)
    return decide(chosen, run)


def _told(verdict: Verdict) -> str:
    lines = []
    for rule in verdict.rules:
        lines += [f"{'✓' if rule['passed'] else '✗'} {rule['rule']}", f"    {rule['evidence']}"]
    holding = sum(bool(rule["passed"]) for rule in verdict.rules)
    outcome = "gate passed" if verdict.passed else "gate FAILED"
    return "\n".join([*lines, f"{outcome}: {holding} of {len(verdict.rules)} rules hold"])


def _print_numbers(run: RunDir, *, as_json: bool) -> int:
    from tunesmith.gate.numbers import numbers

    found = numbers(run)
    if as_json:
        import json

        print(json.dumps(found, indent=2))
        return 0
    width = max(map(len, found), default=0)
    for path, value in found.items():
        print(f"{path:<{width}}  {value:,.6g}")
    return 0
