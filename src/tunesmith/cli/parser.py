"""Arguments that do not fit become an error like every other: one message, what to do, with --json a document."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NoReturn

from tunesmith.errors import UsageError, nearest


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of ending the process."""

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Return the arguments of a verb.

        Raises:
            UsageError: they do not fit.
        """
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            raise UsageError(f"{self.prog} does not know {unknown[0]!r}", do=self._guess(unknown[0]))
        return args

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        what = message.removeprefix("argument ")
        raise UsageError(f"{self.prog}: {what}", do=self._help())

    def _guess(self, unknown: str) -> str:
        name = unknown.partition("=")[0]
        options = list(_options(self))
        if name.startswith("-") and (near := nearest(name, options)):
            return f"did you mean {near}?"
        if name.startswith("--") and "--set" in options and (key := _key_of_recipe(name[2:])):
            return f"keys of the recipe are set with --set {key}=VALUE"
        return self._help()

    def _help(self) -> str:
        return f"`{self.prog} --help` explains, with examples"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a parser and of the actions below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)


def _key_of_recipe(option: str) -> str | None:
    """Return the key path that an option was meant for: `learning-rate` and `train.learning_rate` alike."""
    from tunesmith.recipe.typed import all_key_paths

    written = option.replace("-", "_")
    paths = all_key_paths()
    ending = [path for path in paths if path == written or path.endswith(f".{written}")]
    return min(ending, key=len) if ending else nearest(written, paths)
