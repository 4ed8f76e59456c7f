"""`data show` and `data convert`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

FORMATS = ("auto", "messages", "sharegpt", "prompt_completion", "instruction", "preference", "chatgpt_export")


def add_arguments_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print rows as tokens: trained, context, cut")
    show.add_argument("recipe", help="the recipe file")
    show.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key; repeatable")
    show.add_argument("-n", "--rows", type=int, default=3, help="how many rows (default: 3)")
    show.add_argument("--split", choices=("train", "validation"), default="train", help="which rows (default: train)")
    show.add_argument("--json", action="store_true", help="print tokens and flags as JSON lines")
    convert = actions.add_parser("convert", help="turn any known row format into messages JSONL")
    convert.add_argument("files", nargs="+", metavar="FILE", help="files, directories or globs")
    convert.add_argument("--to", required=True, metavar="OUT.jsonl", help="the file to write")
    convert.add_argument("--format", choices=FORMATS, default="auto", help="row format (default: auto)")


def run_data(args: argparse.Namespace) -> int:
    return _show(args) if args.action == "show" else _convert(args)


def _show(args: argparse.Namespace) -> int:
    import os

    from tunesmith.data.show import show
    from tunesmith.recipe.load import load

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and not args.json
    for text in show(load(args.recipe, args.set).recipe, args.rows, args.split, colour=colour, as_json=args.json):
        print(text)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from pathlib import Path

    from tunesmith.data.convert import convert

    counts = convert([Path(file) for file in args.files], Path(args.to), args.format)
    print(f"{counts['written']:,} rows written to {args.to}, {counts['bad']:,} could not be read")
    return 0
