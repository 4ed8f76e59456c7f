"""`resume-test`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments_resume_test(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key; repeatable")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps to train for (default: 12)")
    parser.add_argument("--kills", type=int, default=2, help="how often it is killed (default: 2)")
    parser.add_argument("--keep", action="store_true", help="keep both trainings, to look at them")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_resume_test(args: argparse.Namespace) -> int:
    import dataclasses
    import json
    import shutil
    import tempfile
    from pathlib import Path

    from tunesmith.errors import TrainError, UsageError
    from tunesmith.recipe.load import load
    from tunesmith.resume_test import prove
    from tunesmith.track.console import say

    if args.steps < 2 or args.kills < 1:
        raise UsageError("a resume test needs at least two steps and one kill", do="e.g. --steps 12 --kills 2")
    loaded = load(args.recipe, args.set)
    root = Path(loaded.recipe.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="resume-test-", dir=root))
    try:
        proof = prove(
            Path(args.recipe),
            args.set,
            directory,
            num_steps=args.steps,
            num_kills=args.kills,
            say=lambda t: say(f"  {t}"),
        )
    finally:
        if args.keep:
            say(f"  both trainings are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if args.json:
        print(json.dumps({"ok": proof.exact} | dataclasses.asdict(proof), indent=2))
    else:
        whole, killed = proof.seconds
        print(f"steps         {proof.num_steps}, {whole:.1f} s undisturbed, {killed:.1f} s with kills")
        print(f"killed after  step {', '.join(map(str, proof.killed_at_steps))}")
        print(f"resumed from  step {', '.join(map(str, proof.resumed_from_steps)) or '0 (no checkpoint yet)'}")
        print(f"compared      {proof.num_steps} losses; {', '.join(proof.files_compared)}")
    if not proof.exact:
        do = "run it again with --keep and report it; train.deterministic: true may help on a GPU"
        raise TrainError(f"resuming is not exact: {proof.first_difference}", where=args.recipe, do=do)
    if not args.json:
        print("resuming is exact: every loss and every byte of the weights is equal")
    return 0
