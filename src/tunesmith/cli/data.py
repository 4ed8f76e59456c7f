"""`data show` and `data convert`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tunesmith.cli import arguments

if TYPE_CHECKING:
    import argparse

FORMATS = ("auto", "messages", "sharegpt", "prompt_completion", "instruction", "preference", "chatgpt_export")


def add_arguments_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print rows as tokens: trained, context, cut")
    show.add_argument("recipe", help="the recipe file")
    show.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key; repeatable")
    show.add_argument("-n", "--rows", type=arguments.above_zero, default=3, help="how many rows (default: 3)")
    show.add_argument("--split", choices=("train", "validation"), default="train", help="which rows (default: train)")
    convert = actions.add_parser("convert", help="turn any known row format into messages JSONL")
    convert.add_argument("files", nargs="+", metavar="FILE", help="files, directories or globs")
    convert.add_argument("--to", required=True, metavar="OUT.jsonl", help="the file to write")
    convert.add_argument("--format", choices=FORMATS, default="auto", help="row format (default: auto)")


def run_data(args: argparse.Namespace) -> int:
    return _show(args) if args.action == "show" else _convert(args)


def _show(args: argparse.Namespace) -> int:
    import os

    from rich.console import Console

    from tunesmith.data.show import show
    from tunesmith.recipe.load import load

    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for text in show(load(args.recipe, args.set).recipe, args.rows, args.split, coloured=coloured):
        console.print(text)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from pathlib import Path

    from tunesmith.data.convert import convert

    counts = convert([Path(file) for file in args.files], Path(args.to), args.format)
    written = counts["converted"] + counts["unchanged"]
    print(f"{counts['read']:,} rows read, {written:,} written to {args.to} ({counts['unchanged']:,} unchanged)")
    if counts["quarantined"]:
        print(f"{counts['quarantined']:,} could not be used: {args.to}.quarantine.jsonl has lines and reasons")
    return 0
