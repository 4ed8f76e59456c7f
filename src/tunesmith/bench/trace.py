"""Recorded arrivals: when each request came, and how long its prompt and answer were, or what it said.

A line of JSONL, or of CSV with a head, is one request. The fields are known by these names (the case does not
matter):

    moment           timestamp, time, arrived_at, arrival_time      seconds, milliseconds or a date
    prompt length    input_length, prompt_tokens, input_tokens, request tokens, contexttokens
    answer length    output_length, output_tokens, completion_tokens, response tokens, generatedtokens
    prompt           messages, prompt
    shared beginning hash_ids (blocks of 512 tokens with the same number are the same text)

which covers the traces of Mooncake (https://github.com/kvcache-ai/Mooncake, milliseconds), BurstGPT
(https://github.com/HPMLL/BurstGPT, seconds) and Azure (https://github.com/Azure/AzurePublicDataset, dates). Numbers
are seconds, except where `hash_ids` or a name ending in `_ms` says milliseconds.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.bench.made_up import Measure, prompt_of, words_of
from tunesmith.bench.traffic import Prompt
from tunesmith.errors import DataError

_MOMENT = ("timestamp", "time", "arrived_at", "arrival_time", "timestamp_ms", "arrival_time_ms")
_PROMPT_TOKENS = ("input_length", "prompt_tokens", "input_tokens", "request tokens", "contexttokens", "context_tokens")
_OUTPUT_TOKENS = (
    "output_length",
    "output_tokens",
    "completion_tokens",
    "response tokens",
    "generatedtokens",
    "generated_tokens",
)
_BLOCK_TOKENS = 512


@dataclass(frozen=True)
class Recorded:
    """One request of a trace."""

    name: str  # file:line
    seconds: float  # since the first one
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    messages: tuple[dict[str, Any], ...] = ()
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, *, limit: int) -> list[Recorded]:
    """Return the first requests of a trace, in the order of their moments.

    Raises:
        DataError: the file cannot be read, a line is not one of a trace, or there is none.
    """
    found: list[Recorded] = []
    try:
        for line, row in _rows(path):
            if len(found) == limit:
                break
            found.append(_recorded(f"{path}:{line}", row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the trace cannot be read: {error}", where=str(path)) from None
    if not found:
        raise DataError("the trace holds no requests", where=str(path))
    found.sort(key=lambda recorded: recorded.seconds)
    first = found[0].seconds
    return [_moved(recorded, -first) for recorded in found]


def prompt_from(recorded: Recorded, measure: Measure, generator: random.Random) -> Prompt:
    """Return the recorded prompt, or one of its length; blocks that requests share become text that they share."""
    if recorded.messages:
        return Prompt(recorded.name, recorded.messages)
    assert recorded.prompt_tokens is not None
    num_words = measure.words_for(recorded.prompt_tokens)
    per_block = max(1, round(_BLOCK_TOKENS / measure.per_word))
    shared = [words_of(block, per_block) for block in recorded.blocks]
    begin = " ".join(" ".join(shared).split()[:num_words])
    return prompt_of(recorded.name, num_words, generator, begins_with=begin)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, row
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"this line is not JSON: {error}", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise DataError("this line is not a JSON object", where=f"{path}:{number}")
            yield number, row


def _recorded(where: str, row: dict[str, Any]) -> Recorded:
    fields = {str(key).strip().lower(): value for key, value in row.items() if value not in (None, "")}
    name = next((key for key in _MOMENT if key in fields), None)
    if name is None:
        do = f"name it one of {', '.join(_MOMENT)}; found {', '.join(fields) or 'nothing'}"
        raise DataError("this request has no moment", where=where, do=do)
    in_milliseconds = name.endswith("_ms") or "hash_ids" in fields
    seconds = _seconds(fields[name], where) / (1000 if in_milliseconds else 1)
    messages = _messages(fields, where)
    prompt_tokens = _count(fields, _PROMPT_TOKENS, where)
    if not messages and prompt_tokens is None:
        do = f"give `prompt` or `messages`, or a length: {', '.join(_PROMPT_TOKENS)}"
        raise DataError("this request has neither a prompt nor the length of one", where=where, do=do)
    blocks = fields.get("hash_ids")
    known = tuple(block for block in blocks if isinstance(block, int)) if isinstance(blocks, list) else ()
    return Recorded(where, seconds, prompt_tokens, _count(fields, _OUTPUT_TOKENS, where), messages, known)


def _messages(fields: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return tuple(messages)
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},)
    if messages is not None or prompt is not None:
        raise DataError("`prompt` is text, `messages` a list of objects", where=where)
    return ()


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return float(value)
    except (ValueError, TypeError):
        pass
    try:
        return datetime.fromisoformat(str(value)[:26]).timestamp()  # Azure writes seven decimals
    except ValueError:
        raise DataError(f"{value!r} is neither a number nor a date", where=where) from None


def _count(fields: dict[str, Any], names: tuple[str, ...], where: str) -> int | None:
    name = next((name for name in names if name in fields), None)
    if name is None:
        return None
    try:
        number = int(float(fields[name]))
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"`{name}` is not a number: {fields[name]!r}", where=where) from None
    return max(1, number)


def _moved(recorded: Recorded, by_seconds: float) -> Recorded:
    import dataclasses

    return dataclasses.replace(recorded, seconds=recorded.seconds + by_seconds)
