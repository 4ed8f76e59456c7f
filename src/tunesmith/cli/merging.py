"""`merge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.cli import arguments

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def add_arguments_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", metavar="MODEL", help="directory, Hub id or run:NAME (default: what the adapter names)"
    )
    parser.add_argument(
        "--adapter", metavar="DIR", action="append", required=True, help="an adapter's directory, or a run; repeatable"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="the directory to make")
    parser.add_argument(
        "--weight",
        metavar="W",
        type=arguments.finite,
        action="append",
        default=[],
        help="of each adapter, in their order",
    )
    parser.add_argument(
        "--combination",
        choices=("cat", "linear"),
        default="cat",
        help="how several adapters become one, in PEFT's words: changes add up (cat), or matrices do (linear)",
    )
    parser.add_argument(
        "--dtype", choices=("model", "float32", "bfloat16", "float16"), default="model", help="of the merged weights"
    )
    parser.add_argument("--max-shard-gib", metavar="N", type=float, default=4.0, help="largest file (default: 4)")
    parser.add_argument("--rows", metavar="FILE", help="conversations for the proof (default: a few fixed ones)")
    parser.add_argument(
        "--trained-in-nf4", action="store_true", help="the adapter saw a 4-bit base; adapters of this program say so"
    )
    parser.add_argument(
        "--fold-onto",
        choices=("measured", "original", "nf4"),
        default="measured",
        help="base of an adapter trained in 4 bits (default: what is measured to be better)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_merge(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from tunesmith import stage_process
    from tunesmith.errors import UsageError
    from tunesmith.merge.standalone import Order, run
    from tunesmith.recipe.schema import Merge

    if args.max_shard_gib <= 0:
        raise UsageError(f"--max-shard-gib {args.max_shard_gib:g} is no size", do="give a positive number")
    stage_process.raise_on_signals()
    path, merged = run(
        Order(
            base=args.base,
            adapters=tuple(args.adapter),
            target=args.out,
            weights=tuple(args.weight),
            combination=args.combination,
            rows=args.rows,
            trained_in_nf4=args.trained_in_nf4,
            settings=Merge(args.dtype, args.max_shard_gib, args.fold_onto),
            trust_remote_code=args.trust_remote_code,
        )
    )
    if args.json:
        print(json.dumps({"ok": True, "path": str(path)} | dataclasses.asdict(merged), indent=2))
    else:
        print("\n".join(_lines(path, merged.files, merged.num_bytes, merged.proof)))
    return 0


def _lines(path: Path, files: dict[str, str], num_bytes: int, proof: dict[str, Any]) -> list[str]:
    rows = [
        ("merged", f"{path}  {num_bytes / 1e6:,.1f} MB in {len(files)} files"),
        ("compared", f"{proof['compared']}: {proof['num_tokens']} tokens"),
    ]
    if "tolerance" in proof:
        rows += [
            ("same token", f"{proof['top1_agreement']:.2%}"),
            ("difference", f"at most {proof['max_difference']:.3g}; rounding explains {proof['tolerance']:.3g}"),
        ]
    if "worst_layer" in proof:
        told = f"{proof['worst_layer_in_roundings']:.2g} roundings at most; rounding takes"
        rows.append(("layers", f"{told} {proof['rounded_share_of_change']:.2%} of what the adapter does"))
    if "folded_onto" in proof:
        rows.append(("folded onto", str(proof["folded_onto"])))
    if "loss_on_nf4_base" in proof:
        nf4, original = proof["loss_on_nf4_base"], proof["loss_on_original_base"]
        rows.append(("loss", f"{nf4:.4f} on the base after NF4, {original:.4f} on the original one"))
    return [f"{name:<12} {value}" for name, value in rows]
