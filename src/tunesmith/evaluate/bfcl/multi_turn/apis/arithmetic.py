"""A calculator. Results are what Python makes of the arguments, as long as no huge number has to be made for them."""

from __future__ import annotations

import contextlib
import decimal
import math
import re
from typing import Any

from tunesmith.errors import missing_extra
from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings
from tunesmith.evaluate.bfcl.multi_turn.budget import WorkLimit

# An integer of more than 4300 digits (14 300 bits) cannot be shown: Python refuses to write it out.
_MAX_BITS = 16_384
_MAX_DIGITS = 10_000

_METRES = {"km": 1000, "m": 1, "cm": 0.01, "mm": 0.001, "um": 1e-6, "nm": 1e-9}
_FACTORS = {
    ("cm", "in"): 0.393701,
    ("in", "cm"): 2.54,
    ("m", "ft"): 3.28084,
    ("ft", "m"): 0.3048,
    ("m", "yd"): 1.09361,
    ("yd", "m"): 0.9144,
    ("km", "miles"): 0.621371,
    ("miles", "km"): 1.60934,
    ("kg", "lb"): 2.20462,
    ("lb", "kg"): 0.453592,
    ("celsius", "fahrenheit"): 1.8,
    ("fahrenheit", "celsius"): 5 / 9,
}
_NOT_BOTH_NUMBERS = {"error": "Both inputs must be numbers"}
_NOT_ALL_NUMBERS = {"error": "All elements in the list must be numbers"}
_TOO_LARGE = {"error": "Conversion resulted in a value too large to represent"}
_NO_NUMBER = {"error": "Value must be a number"}

# What Python says when such a number is to be shown.
_TOO_MANY_DIGITS = "Exceeds the limit (4300 digits) for integer string conversion; "
_TOO_MANY_DIGITS += "use sys.set_int_max_str_digits() to increase the limit"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _can_be_converted(value: Any) -> bool:
    """Return whether mpmath can make a number of a value at no great cost: it accepts text, even 1e999999999."""
    if isinstance(value, str):
        return len(value) <= 1_000 and not re.search(r"[eE][+-]?\d{4}", value)
    return not isinstance(value, tuple) and not (isinstance(value, int) and value.bit_length() > _MAX_BITS)


class MathAPI:
    """This tool is a calculator."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        """Take no notice of the scenario: there is no state.

        Raises:
            EnvironmentProblem: the package mpmath is missing.
        """
        try:
            # The package is part of the observable behaviour: its results are shown as `mpf('…')`.
            import mpmath
        except ImportError:
            raise missing_extra("mpmath", "eval", needed_for="the calculator of BFCL's multi-turn items") from None
        self._make_context = mpmath.MPContext

    def logarithm(self, value: float, base: float, precision: int) -> dict[str, Any]:
        """Compute a logarithm.

        Args:
            value: The number.
            base: The base.
            precision: Significant decimal digits of the result.
        """
        if not (_can_be_converted(value) and _can_be_converted(base)):
            raise WorkLimit("a number of too many digits")
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # the package says that in its own words
            if abs(int(precision)) > _MAX_DIGITS:
                raise WorkLimit("too many digits")
        context = self._make_context()
        try:
            context.dps = precision
            return {"result": context.log(value) / context.log(base)}
        except Exception as error:  # noqa: BLE001 - whatever the package has against the numbers is the answer
            return {"error": str(error)}

    def mean(self, numbers: list[float]) -> dict[str, Any]:
        """Compute the arithmetic mean."""
        if not numbers:
            return {"error": "Cannot calculate mean of an empty list"}
        try:
            return {"result": sum(numbers) / len(numbers)}
        except TypeError:
            return _NOT_ALL_NUMBERS

    def standard_deviation(self, numbers: list[float]) -> dict[str, Any]:
        """Compute the standard deviation of a whole population."""
        if not numbers:
            return {"error": "Cannot calculate standard deviation of an empty list"}
        try:
            mean = sum(numbers) / len(numbers)
            return {"result": math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))}
        except TypeError:
            return _NOT_ALL_NUMBERS

    def si_unit_conversion(self, value: float, unit_in: str, unit_out: str) -> dict[str, Any]:
        """Convert a length between metric units: km, m, cm, mm, um, nm.

        Args:
            value: The length.
            unit_in: Its unit.
            unit_out: The unit wanted.
        """
        if not _is_number(value):
            return _NO_NUMBER
        if unit_in not in _METRES or unit_out not in _METRES:
            return {"error": f"Conversion from '{unit_in}' to '{unit_out}' is not supported"}
        try:
            # Times the inverse, not divided by: the last digit depends on it.
            return {"result": value * _METRES[unit_in] * (1 / _METRES[unit_out])}
        except OverflowError:
            return _TOO_LARGE

    def imperial_si_conversion(self, value: float, unit_in: str, unit_out: str) -> dict[str, Any]:
        """Convert between metric and imperial units: cm/in, m/ft, m/yd, km/miles, kg/lb, celsius/fahrenheit.

        Args:
            value: The quantity.
            unit_in: Its unit.
            unit_out: The unit wanted.
        """
        if not _is_number(value):
            return _NO_NUMBER
        if unit_in == unit_out:
            return {"result": value}
        factor = _FACTORS.get((f"{unit_in}", f"{unit_out}"))
        if factor is None:
            return {"error": f"Conversion from '{unit_in}' to '{unit_out}' is not supported"}
        try:
            if unit_in == "celsius":
                return {"result": value * factor + 32}
            if unit_in == "fahrenheit":
                return {"result": (value - 32) * factor}
            return {"result": value * factor}
        except OverflowError:
            return _TOO_LARGE

    def add(self, a: float, b: float) -> dict[str, Any]:
        """Add two numbers."""
        try:
            return {"result": a + b}
        except TypeError:
            return _NOT_BOTH_NUMBERS

    def subtract(self, a: float, b: float) -> dict[str, Any]:
        """Subtract the second number from the first."""
        try:
            return {"result": a - b}
        except TypeError:
            return _NOT_BOTH_NUMBERS

    def multiply(self, a: float, b: float) -> dict[str, Any]:
        """Multiply two numbers."""
        if not (_is_number(a) and _is_number(b)):
            return _NOT_BOTH_NUMBERS
        return {"result": a * b}

    def divide(self, a: float, b: float) -> dict[str, Any]:
        """Divide the first number by the second."""
        try:
            return {"error": "Cannot divide by zero"} if b == 0 else {"result": a / b}
        except TypeError:
            return _NOT_BOTH_NUMBERS

    def power(self, base: float, exponent: float) -> dict[str, Any]:
        """Raise a number to a power.

        Args:
            base: The number.
            exponent: The power.
        """
        integers = isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1
        if integers and int(base).bit_length() * exponent > 2 * _MAX_BITS:
            raise WorkLimit(_TOO_MANY_DIGITS)
        try:
            return {"result": base**exponent}
        except TypeError:
            return _NOT_BOTH_NUMBERS

    def square_root(self, number: float, precision: int) -> dict[str, Any]:
        """Compute a square root.

        Args:
            number: The number, not negative.
            precision: Significant decimal digits of the result.
        """
        try:
            if number < 0:
                return {"error": "Cannot calculate square root of a negative number"}
            if isinstance(precision, int) and precision > _MAX_DIGITS:
                raise WorkLimit("too many digits")
            context = decimal.Context()
            context.prec = precision
            return {"result": decimal.Decimal(number).sqrt(context)}
        except (TypeError, decimal.InvalidOperation):
            return {"error": "Input must be a number or computation resulted in an invalid operation"}

    def absolute_value(self, number: float) -> dict[str, Any]:
        """Return a number without its sign."""
        try:
            return {"result": abs(number)}
        except TypeError:
            return {"error": "Input must be a number"}

    def round_number(self, number: float, decimal_places: int = 0) -> dict[str, Any]:
        """Round a number.

        Args:
            number: The number.
            decimal_places: Digits to keep after the point.
        """
        if isinstance(number, int) and isinstance(decimal_places, int) and decimal_places < -number.bit_length():
            return {"result": 0}  # what `round` finds after making a ten to that power
        try:
            return {"result": round(number, decimal_places)}
        except TypeError:
            return {"error": "First input must be a number, second input must be an integer"}

    def percentage(self, part: float, whole: float) -> dict[str, Any]:
        """Compute what percentage one number is of another.

        Args:
            part: The one.
            whole: The other.
        """
        try:
            return {"error": "Whole value cannot be zero"} if whole == 0 else {"result": (part / whole) * 100}
        except TypeError:
            return _NOT_BOTH_NUMBERS

    def min_value(self, numbers: list[float]) -> dict[str, Any]:
        """Find the smallest number."""
        if not numbers:
            return {"error": "Cannot find minimum of an empty list"}
        try:
            return {"result": min(numbers)}
        except TypeError:
            return _NOT_ALL_NUMBERS

    def max_value(self, numbers: list[float]) -> dict[str, Any]:
        """Find the largest number."""
        if not numbers:
            return {"error": "Cannot find maximum of an empty list"}
        try:
            return {"result": max(numbers)}
        except TypeError:
            return _NOT_ALL_NUMBERS

    def sum_values(self, numbers: list[float]) -> dict[str, Any]:
        """Add many numbers."""
        if not numbers:
            return {"error": "Cannot calculate sum of an empty list"}
        try:
            return {"result": sum(numbers)}
        except TypeError:
            return _NOT_ALL_NUMBERS
