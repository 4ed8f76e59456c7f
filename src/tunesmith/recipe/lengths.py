"""Lengths as a recipe writes them: `512`, `256-1024` (uniform) or `512~128` (normal: mean and standard deviation)."""

from __future__ import annotations

import random
import re

from tunesmith.frozen import frozen

_FORM = re.compile(r"\s*(\d+)\s*(?:([-~])\s*(\d+))?\s*")


@frozen
class Lengths:
    """A distribution of whole numbers of at least one."""

    mean: float
    deviation: float = 0.0
    low: int = 1
    high: int | None = None

    @property
    def longest(self) -> int:
        """The longest one; of a normal distribution, what one in 30,000 exceeds."""
        return self.high if self.high is not None else round(self.mean + 4 * self.deviation)

    def draw(self, generator: random.Random) -> int:
        """Return one length."""
        if self.deviation:
            return max(self.low, round(generator.gauss(self.mean, self.deviation)))
        return generator.randint(self.low, self.high) if self.high is not None else round(self.mean)


def parse_lengths(written: int | str) -> Lengths:
    """Read one of the three forms.

    Raises:
        ValueError: it is none of them.
    """
    form = _FORM.fullmatch(str(written))
    if form is None:
        raise ValueError(f"{written!r} is no length: write `512`, `256-1024` (uniform) or `512~128` (mean~deviation)")
    first, sign, second = int(form[1]), form[2], int(form[3] or 0)
    if first < 1:
        raise ValueError("a length is at least 1")
    if sign == "-":
        if second < first:
            raise ValueError(f"{written!r} ends before it begins: write the smaller length first")
        return Lengths((first + second) / 2, low=first, high=second)
    return Lengths(float(first), deviation=float(second))
