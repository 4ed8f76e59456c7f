"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_METRICS = {
    "accuracy": "Exactly right",
    "bfcl_accuracy": "Right by BFCL’s rules",
    "call_accuracy": "Call exactly right",
    "name_accuracy": "Right function",
    "argument_accuracy": "Arguments right",
    "made_a_call": "Made a call",
    "abstention_accuracy": "Rightly made no call",
    "exact_match": "Exact match",
    "jaccard": "Jaccard overlap",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "win_rate": "Preferred by the judge",
}
_TASKS = {
    "text": "Text answers",
    "function_calls": "Function calls",
    "bfcl": "BFCL",
    "lm_eval": "lm-evaluation-harness",
    "judge": "Judge",
}
_METHODS = {"full": "All weights", "lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "qdora": "QDoRA"}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
MINUS = "−"


def metric_name(name: str) -> str:
    """Return a metric's name for people; unknown ones keep their own, underscores as spaces."""
    return _METRICS.get(name, name.replace("_", " "))


def task_name(name: str) -> str:
    """Return a task's name for people: of `bfcl.simple_python` the family's, and the part by its own name."""
    family, _, part = name.partition(".")
    told = _TASKS.get(family, family.replace("_", " "))
    return f"{told} · {part}" if part else told


def method_name(name: str) -> str:
    return _METHODS.get(name, name)


def sentence(name: str) -> str:
    """Return a recorded field's name for people: `num_prompts` → `Prompts`."""
    words = name.removeprefix("num_").replace("_", " ")
    return words[:1].upper() + words[1:]


def number(value: Any, digits: int = 4) -> str:
    """Return a number with so many significant digits, thousands apart by thin spaces; a dash for none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        mantissa, _, exponent = f"{value:.{max(0, digits - 1)}e}".partition("e")
        shown = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{shown}e{int(exponent)}".replace("-", MINUS)
    decimals = 0 if isinstance(value, int) else max(0, digits - 1 - size)
    text = f"{value:,.{decimals}f}".replace(",", "\u202f").replace("-", MINUS)
    return text.rstrip("0").rstrip(".") if "." in text else text


def score(value: Any, maximum: float, *, is_share: bool) -> str:
    """Return a metric's value: shares in per cent, others with three digits."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    if is_share:
        return f"{100 * value:.1f}\u202f%"
    return f"{value:.1f}" if maximum >= 10 else f"{value:.3f}"


def share(value: Any) -> str:
    """Return a fraction of one in per cent."""
    return score(value, 1.0, is_share=True)


def difference(value: Any, maximum: float, *, is_share: bool) -> str:
    """Return a signed difference: shares in percentage points."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    shown = f"{100 * value:+.1f}" if is_share else f"{value:+.1f}" if maximum >= 10 else f"{value:+.3f}"
    return shown.replace("-", MINUS) if float(shown) else shown[1:]


def size(num_bytes: Any) -> str:
    """Return a size in binary units."""
    if not isinstance(num_bytes, int | float):
        return "–"
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def count(value: Any) -> str:
    """Return a large count in short: `1.24 B`, `7.6 M`, `12 300`."""
    if not isinstance(value, int | float):
        return "–"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{number(value / limit, 3)} {unit}"
    return number(value)


def milliseconds(value: Any) -> str:
    """Return a time in milliseconds, in seconds from ten seconds on."""
    if not isinstance(value, int | float):
        return "–"
    return f"{value / 1000:.1f} s" if value >= 10_000 else f"{number(float(value), 3)} ms"


def shown(value: Any) -> str:
    """Return any recorded value as text on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, 6)
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items()) or "–"
    return printable(str(value))


def printable(text: str) -> str:
    """Return text without what HTML and UTF-8 cannot hold: control characters and halves of surrogate pairs."""
    return _CONTROL.sub("\ufffd", text).encode("utf-8", "replace").decode("utf-8")


def how_asked(record: Mapping[str, Any]) -> str:
    """Return what a number of lm-evaluation-harness rests on; nothing for numbers of ours, which rest on the recipe."""
    if not record.get("harness"):
        return ""
    shots, limit = record.get("num_fewshot"), record.get("limit")
    told = [f"{record['harness']}, task version {record.get('task_version')}", f"{shots}-shot"]
    told += [f"chat template {record.get('chat_template')}", str(record.get("backend"))]
    told += [f"filter {record['filter']}"] if record.get("filter") not in (None, "none") else []
    told += [f"only the first {limit} items of each task"] if limit else []
    told += [f"programs run with: {record['sandbox']}"] if record.get("sandbox") else []
    return shown(", ".join(told))
