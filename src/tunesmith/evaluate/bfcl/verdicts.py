"""What is said about one answer, and how values are shown in it."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right; if not, the official name of the mistake and the mistake in words."""

    valid: bool
    error_type: str = ""
    error: str = ""


VALID = Verdict(True)

# The official checker ends with an exception on such an answer, and the whole evaluation with it. Its name is ours.
NOT_COMPARABLE = "tunesmith:not_comparable"

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 120
_shortener.maxlevel = 4
_shortener.maxlist = _shortener.maxtuple = _shortener.maxdict = _shortener.maxset = 8


def told(value: Any) -> str:
    """Return a value as Python would write it, shortened; its cost does not depend on how large it is."""
    if value is None or isinstance(value, float | bool) or (isinstance(value, str) and len(value) < 100):
        return repr(value)
    if isinstance(value, int) and value.bit_length() > 1_000:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, str) and len(value) > 200:
        value = f"{value[:100]}…{value[-50:]}"
    try:
        return _shortener.repr(value)
    except ValueError:  # an integer somewhere inside with more digits than Python writes
        return f"a {type(value).__name__}"
