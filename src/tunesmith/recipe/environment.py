"""`${env:NAME}` references: written as such everywhere, turned into values only where they are used.

A recipe, its snapshots and its hashes hold the reference. `expand` returns the value at the moment of use and remembers
it, so that `redact` can take it out of any message or log that would show it.
"""

from __future__ import annotations

import os
import re

from tunesmith.errors import EnvironmentProblem
from tunesmith.recipe.secrets import secret_values

_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_revealed: dict[str, str] = {}  # value -> variable name


def referenced_variables(text: str) -> list[str]:
    """Return the names in a text's `${env:NAME}` references, in order."""
    return _REFERENCE.findall(text)


def expand(text: str) -> str:
    """Return the text with every reference replaced by the variable's value.

    Raises:
        EnvironmentProblem: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise EnvironmentProblem(f"the environment variable {name} is not set", do=f"export {name}=…")
        if len(os.environ[name]) >= 4:
            _revealed[os.environ[name]] = name
        return os.environ[name]

    return _REFERENCE.sub(value, text)


def redact(text: str) -> str:
    """Return the text without any value that came from a reference, nor the usual credentials."""
    known = dict(_revealed)
    known |= secret_values()
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, f"${{env:{known[secret]}}}")
    return text
