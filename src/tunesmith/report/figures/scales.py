"""Axes: where numbers fall, and which round numbers stand beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunesmith.report.wording import number


@dataclass(frozen=True)
class Scale:
    """A linear map from numbers to pixels."""

    low: float
    high: float
    begin: float  # pixel of `low`
    end: float  # pixel of `high`

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)


@dataclass(frozen=True)
class LogScale(Scale):
    """A logarithmic map; low and high are above zero."""

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, over a short range also twice and five times them, that enclose low and high (both > 0)."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    marks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    begin = max(index for index, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    end = min((index for index, mark in enumerate(marks) if mark >= high * (1 - 1e-9)), default=len(marks) - 1)
    return marks[begin : max(end, begin + 1) + 1]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high."""
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = (low, low + 2 * spread) if low == 0 else (low - spread, high + spread)
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def label(value: float) -> str:
    """Return a tick's number, short: `12k`, `3M`, `2e−4`."""
    size = abs(value)
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return number(value / (1e3 if unit == "k" else limit), 3) + unit
    if 0 < size < 1e-3:
        exponent = math.floor(math.log10(size) + 1e-9)
        return f"{number(value / 10.0**exponent, 3)}e{exponent}".replace("-", "−")
    return number(value, 3)
