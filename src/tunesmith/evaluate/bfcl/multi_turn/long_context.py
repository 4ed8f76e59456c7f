"""The long text that `multi_turn_long_context` mixes into what the simulated programs answer.

It is no part of the published data files: it stands in the official package as a Python file of constants. Where that
file is at hand its constants are read, as literals; nothing in it is run. Where it is not, text of our own of about the
same length takes its place. Verdicts do not depend on which: both sides of a comparison see the same text. What a model
reads does, so results say which it was.
"""

from __future__ import annotations

import ast
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import LongContext

Made = TypeVar("Made")

_FILE = "long_context.py"
# Beside the data, or where the official package keeps it, seen from its `data` directory.
_PLACES = (_FILE, f"../eval_checker/multi_turn_eval/func_source_code/{_FILE}")

# Ground truth names some of these files, so they are the same whatever else is made up.
_IMAGE_NUMBERS = (
    "344822349461074042 8219547643081662353 5421509146842474663 185391401034246046 6824007961180780019 "
    "2994974694593273051 2537728455072851196 2164918946836800275 1745133864906284051 7707563551789432679 "
    "8190489168166590809 2385660725381355820 4771211633166048374 3443718094055823214 6838087561356843690 "
    "605952633285970710 6341510244180179744 4119241148692325954 5651066601163181955 3747091333751395055 "
    "4623743619379194431 5072742684386583099 1978458056362464778 3090346927968358019 7193806748674265039 "
    "7169516574395086720 8618240224293913315 5514683852355062444 8749630317332649147 1912245706439755759 "
)
_FILES_AS_THEY_ARE = (
    *("log.txt", "report.txt", "report.csv", "DataSet1.csv", "file1.txt", "finance_report.txt"),
    *("config.py", "Q4_summary.doc", "file3.txt"),
)
_SEED = 20260323


def find(directory: Path) -> Path | None:
    """Return the official file, when it is beside the data or where the package has it."""
    return next((directory / place for place in _PLACES if (directory / place).is_file()), None)


def read(path: Path) -> LongContext:
    """Read the constants of the official file.

    Raises:
        DataError: one is missing or no literal.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: ast.literal_eval(statement.value)
            for statement in tree.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        return LongContext(
            file_tail=constants["FILE_CONTENT_EXTENSION"],
            files_as_they_are=tuple(constants["FILES_TAIL_USED"]),
            file_names=tuple(constants["POPULATE_FILE_EXTENSION"]),
            watch_list=tuple(constants["WATCH_LIST_EXTENSION"]),
            transactions=tuple(constants["TRANSACTION_HISTORY_EXTENSION"]),
            ma_5=tuple(constants["MA_5_EXTENSION"]),
            ma_20=tuple(constants["MA_20_EXTENSION"]),
            technology=tuple(constants["TECHNOLOGY_EXTENSION"]),
            automobile=tuple(constants["AUTOMOBILE_EXTENSION"]),
            order_details=constants["ORDER_DETAIL_EXTENSION"],
            car=constants["CAR_STATUS_METADATA_EXTENSION"],
            weather=constants["LONG_WEATHER_EXTENSION"],
            parking_brake=constants["PARKING_BRAKE_INSTRUCTION"],
            cities=tuple(constants["INTERMEDIARY_CITIES"]),
            credit_cards=constants["CREDIT_CARD_EXTENSION"],
            bookings=constants["BOOKING_RECORD_EXTENSION"],
        )
    except (OSError, SyntaxError, ValueError, KeyError, TypeError) as error:
        what = f"this is not the official file of constants: {type(error).__name__}: {error}"
        raise DataError(what, where=str(path), do=f"give the {_FILE} of bfcl-eval 2026.3.23, or remove it") from None


def stand_in() -> LongContext:
    """Make text of our own; the same at every call."""
    draw = random.Random(_SEED)
    cards = {str(draw.randint(10**15, 10**16 - 1)): _card(draw, number) for number in range(22)}
    days = [f"{offset:+d}_day" for offset in range(-7, 8) if offset]
    return LongContext(
        file_tail=_sentences(draw, _REPORT, 36),
        files_as_they_are=_FILES_AS_THEY_ARE,
        file_names=tuple(f"image_{number}.jpg" for number in "".join(_IMAGE_NUMBERS).split()),
        watch_list=_many(1000, lambda: _symbol(draw)),
        transactions=_many(1000, lambda: _transaction(draw)),
        ma_5=_many(2000, lambda: round(draw.uniform(200, 250), 2)),
        ma_20=_many(2000, lambda: round(draw.uniform(200, 250), 2)),
        technology=_many(1000, lambda: _symbol(draw)),
        automobile=_many(1000, lambda: _symbol(draw)),
        order_details={topic: "{symbol}: " + _sentences(draw, _REPORT, 10) for topic in _TOPICS},
        car=" ".join(f"Part {number}: {draw.choice(_CONDITIONS)};" for number in range(1, 260)),
        weather={day: {name: round(draw.uniform(0, 100), 1) for name in _WEATHER} for day in days},
        parking_brake=_sentences(draw, _BRAKE, 110),
        cities=_many(800, lambda: f"{draw.choice(_CITY_HEADS)} {draw.choice(_CITY_TAILS)}"),
        credit_cards=cards,
        bookings={f"booking_{900 + n}": _booking(draw, n, list(cards)) for n in range(16)},
    )


def _many(num: int, make: Callable[[], Made]) -> tuple[Made, ...]:
    return tuple(make() for _ in range(num))


def _symbol(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_uppercase, k=draw.randint(1, 5)))


def _transaction(draw: random.Random) -> dict[str, Any]:
    day = f"{draw.choice(('2023', '2024'))}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
    time = f"{draw.randint(0, 23):02}:{draw.randint(0, 59):02}:{draw.randint(0, 59):02}.{draw.randint(0, 999_999):06}"
    kind = draw.choice(("deposit", "withdrawal"))
    return {"type": kind, "amount": round(draw.uniform(10, 10_000), 2), "timestamp": f"{day} {time}"}


def _card(draw: random.Random, number: int) -> dict[str, Any]:
    return {
        "card_number": str(draw.randint(10**15, 10**16 - 1)),
        "expiration_date": f"{draw.randint(1, 12):02}/{draw.randint(25, 31)}",
        "cardholder_name": f"Holder {number}",
        "card_verification_number": draw.randint(100, 999),
        "balance": float(draw.randint(50, 90) * 100),
    }


def _booking(draw: random.Random, number: int, card_ids: list[str]) -> dict[str, Any]:
    departure, arrival = draw.sample(("SFO", "LAX", "JFK", "ORD", "BOS", "RMS"), 2)
    return {
        "card_id": draw.choice(card_ids),
        "travel_date": f"2024-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}",
        "travel_from": departure,
        "travel_to": arrival,
        "travel_class": draw.choice(("economy", "business", "first")),
        "travel_cost": float(draw.randint(4, 22) * 100),
        "transaction_id": f"trans_{900 + number}",
    }


def _sentences(draw: random.Random, parts: tuple[tuple[str, ...], ...], num: int) -> str:
    return " ".join(" ".join(draw.choice(choices) for choices in parts) + "." for _ in range(num))


_TOPICS = ("company", "market", "chart", "balance_sheet", "risks", "outlook", "history", "sustainability")
_CONDITIONS = ("checked", "new", "worn a little", "due for a look", "replaced last year", "as delivered")
_WEATHER = ("windSpeed", "humidity", "precipitation", "uvIndex", "visibility", "airPressure", "dewPoint")
_CITY_HEADS = ("North", "South", "Old", "New", "Upper", "Lower", "Great", "Little", "East", "West")
_CITY_TAILS = ("Harbour", "Meadow", "Crossing", "Mills", "Bridge", "Heath", "Wells", "Orchard", "Ferry", "Quarry")
_REPORT = (
    ("In the first quarter", "Over the year", "Compared with the year before", "In the main markets", "By the summer"),
    ("revenue", "the margin", "the order book", "spending on research", "the cash position", "the debt ratio"),
    ("rose by a small amount", "stayed where it was", "fell a little and recovered", "was better than planned"),
    (
        "as customers ordered more",
        "while prices were stable",
        "although costs went up",
        "with the usual seasonal swing",
    ),
)
_BRAKE = (
    ("On a slope", "On level ground", "Before leaving the car", "After a long drive", "In cold weather", "With a load"),
    ("pull the lever", "press the switch", "set the brake", "check the lamp on the dashboard"),
    ("until it holds", "and wait for the click", "with the foot on the pedal", "before the gear is chosen"),
    ("and look whether the car moves", "and only then release the pedal", "and note what the dashboard says"),
)
