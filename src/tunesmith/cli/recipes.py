"""`init`, `check`, `plan` and `schema`: a recipe before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_arguments_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", default="recipe.yaml", help="the file to write (default: recipe.yaml)")
    parser.add_argument("--name", help="name of the recipe (default: the file's name)")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="Hub id or directory of the base model")
    parser.add_argument("--data", default="data/train.jsonl", help="file, glob, directory or Hub data set")
    parser.add_argument("--objective", choices=("sft", "dpo"), default="sft", help="what is optimised (default: sft)")


def run_init(args: argparse.Namespace) -> int:
    import re
    import shlex
    from pathlib import Path

    from tunesmith.cli.first_recipe import first_recipe, name_from
    from tunesmith.errors import UsageError
    from tunesmith.recipe.schema import NAME_PATTERN
    from tunesmith.store.files import write_text

    path = Path(args.recipe)
    if path.exists():
        raise UsageError(f"{path} exists already", do="name another file")
    name = args.name or name_from(path.stem)
    if not re.fullmatch(NAME_PATTERN, name):
        do = f"letters, digits, dots, hyphens and underscores, 64 at most: --name {name_from(name)}"
        raise UsageError(f"{name!r} cannot be the name of a recipe", do=do)
    write_text(path, first_recipe(name, args.model, args.data, args.objective))
    quoted = shlex.quote(str(path))
    print(f"wrote {path}\nnext: tunesmith check {quoted}; tunesmith plan {quoted}; tunesmith run {quoted}")
    return 0


def add_arguments_check(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)


def run_check(args: argparse.Namespace) -> int:
    from tunesmith.gate.names import refuse_unknown
    from tunesmith.recipe.load import load

    loaded = load(args.recipe, args.set)
    refuse_unknown(loaded)
    if args.json:
        import json

        print(json.dumps({"ok": True, "name": loaded.recipe.name, "problems": []}))
    else:
        print(f"{args.recipe}: no mistakes found")
    return 0


def add_arguments_plan(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)


def run_plan(args: argparse.Namespace) -> int:
    import gc

    gc.disable()  # a tenth of a process this short would go into looking for garbage that its end removes
    from tunesmith.gate.names import refuse_unknown
    from tunesmith.planning import plan
    from tunesmith.recipe.load import load

    loaded = load(args.recipe, args.set)
    refuse_unknown(loaded)
    with loaded.located():
        made = plan(loaded.recipe)
    if args.json:
        import json

        print(json.dumps(made.to_json(), indent=2))
    else:
        print(made.text())
    return 0


def add_arguments_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print docs/recipe.md instead")


def run_schema(args: argparse.Namespace) -> int:
    import json

    from tunesmith.recipe.json_schema import json_schema, recipe_page

    print(recipe_page() if args.markdown else json.dumps(json_schema(), indent=2), end="" if args.markdown else "\n")
    return 0
