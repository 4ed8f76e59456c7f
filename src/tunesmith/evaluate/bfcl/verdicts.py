"""What is said about one answer, and how values are shown in it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """Whether an answer is right; if not, the official name of the mistake and the mistake in words."""

    valid: bool
    error_type: str = ""
    error: str = ""


VALID = Verdict(True)

# The official checker ends with an exception on such an answer, and the whole evaluation with it. Its name is ours.
NOT_COMPARABLE = "tunesmith:not_comparable"

_MOST_CHARACTERS = 200


def told(value: Any) -> str:
    """Return a value as Python would write it, shortened. No value is larger than the answer it is from."""
    if isinstance(value, int) and value.bit_length() > 1_000:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        value = f"{value[:100]}…{value[-50:]}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python writes, or too deep a nest
        return f"a {type(value).__name__}"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:120]}…{text[-50:]}"
