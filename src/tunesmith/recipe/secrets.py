"""Credentials by their shape, and by their value where the environment holds it: what must never be written or sent.

The shapes are those that the services document for their tokens; a value that merely looks random is not one of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from tunesmith.frozen import frozen

_SHAPES = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key (sk-…)": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "a password in a URL": r"://[^/\s:@]+:[^/\s:@$]+@",
}
_SHAPE = re.compile("|".join(f"(?P<s{index}>{shape})" for index, shape in enumerate(_SHAPES.values())))
_KINDS = tuple(_SHAPES)
# Variables whose values are credentials, by the words of their names.
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|SECRET_KEY|CREDENTIALS?)(?:_|$)")
_MIN_CHARACTERS = 8


@frozen
class Finding:
    """A credential in a text: what it is and on which line, never its value."""

    kind: str
    line: int


def find_secrets(text: str, environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Return what in a text looks like a credential, or is the value of one of this process's.

    Args:
        environment: variables to look for; this process's by default.
    """
    return sorted(set(_by_shape(text)) | set(_by_value(text, environment)), key=lambda finding: finding.line)


def looks_like_a_secret(text: str) -> bool:
    """Whether a text holds anything of a credential's shape."""
    return _SHAPE.search(text) is not None


def secret_values(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment's credentials as value -> variable."""
    known = os.environ if environment is None else environment
    return {value: name for name, value in known.items() if _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    looks_like_a_path = value.startswith(("/", "~", ".")) or name.endswith(("_FILE", "_PATH"))
    return len(value) >= _MIN_CHARACTERS and not looks_like_a_path and bool(_SECRET_NAME.search(name.upper()))


def _by_shape(text: str) -> Iterator[Finding]:
    for match in _SHAPE.finditer(text):
        yield Finding(_KINDS[int(str(match.lastgroup)[1:])], _line(text, match.start()))


def _by_value(text: str, environment: Mapping[str, str] | None) -> Iterator[Finding]:
    for value, name in secret_values(environment).items():
        place = text.find(value)
        if place >= 0:
            yield Finding(f"the value of {name}", _line(text, place))


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
