"""Numbers on the command line, and what is said of those that make no sense."""

from __future__ import annotations

import argparse
import math


def port(text: str) -> int:
    """Read a TCP port; 0 stands for a free one."""
    return _whole(text, "a port: 0 to 65535", 0, 65535)


def above_zero(text: str) -> int:
    """Read a whole number from 1 on."""
    return _whole(text, "a whole number above 0", 1, None)


def finite(text: str) -> float:
    """Read a number that is not infinite and not nan."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def _whole(text: str, wanted: str, minimum: int, maximum: int | None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if number < minimum or (maximum is not None and number > maximum):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return number
