"""Whatever stands in a file, every row is read as a row or told apart; where it goes depends on its content alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.mixing import content_digest, draw, is_held_out, num_repeats
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Source
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.rows.formats import BadShape, format_of, to_conversation
from tunesmith.rows.reading import read_examples
from tunesmith.rows.sources import BadRow, Row, read_rows

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "from",
        "value",
        "messages",
        "conversations",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "tools",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "instruction",
        "input",
        "output",
        "history",
        "mapping",
        "current_node",
        "parent",
        "message",
        "author",
        "parts",
        "system",
    ]
)
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "gpt", "human", "function_call", "text", "Hi", "", "{}", "[]", "[{", "f"]
)
ROWLIKE = st.recursive(
    st.none() | st.integers(0, 3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary(max_size=300),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".parquet"]),
)
def test_any_bytes_give_rows_or_one_clear_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"rows{suffix}"
        path.write_bytes(content)
        try:
            for row in read_examples(Source(str(path)))[1]:
                assert not isinstance(row, BadRow) or (row.reason and "\n" not in row.reason)
        except DataError as error:
            assert error.what


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(OBJECTS, min_size=1, max_size=5), layout=st.sampled_from(["lines", "array", "pretty", "in a row"]))
def test_objects_come_back_from_every_layout(rows: list[dict[str, Any]], layout: str) -> None:
    lists = [
        v for row in rows for v in row.values() if isinstance(v, list) and v and all(isinstance(e, dict) for e in v)
    ]
    if lists and len(rows) == 1 and layout != "array":
        return  # a single object around a list of objects is a file of its own kind
    text = {
        "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "array": json.dumps(rows),
        "pretty": json.dumps(rows, indent=2, ensure_ascii=False),
        "in a row": "\n".join(json.dumps(row, indent=1) for row in rows),
    }[layout]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / ("rows.jsonl" if layout == "lines" else "rows.json")
        path.write_text(text, encoding="utf-8")
        assert [row.value for row in read_rows(Source(str(path))) if isinstance(row, Row)] == rows


@settings(max_examples=400, deadline=None)
@given(value=st.dictionaries(KEYS, ROWLIKE, max_size=5))
def test_any_object_is_a_row_or_has_a_reason(value: dict[str, Any]) -> None:
    row_format = format_of(value)
    for name in {
        row_format,
        "messages",
        "sharegpt",
        "prompt_completion",
        "instruction",
        "preference",
        "chatgpt_export",
    }:
        if name is None:
            continue
        try:
            content = to_conversation(value, name)
        except BadShape as problem:
            assert str(problem)
        else:
            again = "preference" if isinstance(content, Preference) else "messages"
            assert to_conversation(content.to_json(), again) == content


def conversation(text: str) -> Conversation:
    return Conversation(({"role": "user", "content": text}, {"role": "assistant", "content": text}))


@given(texts=st.lists(TEXTS, unique=True, min_size=2, max_size=30), seed=st.integers(0, 3), fraction=st.floats(0, 1))
def test_a_rows_fate_does_not_depend_on_others(texts: list[str], seed: int, fraction: float) -> None:
    alone = [is_held_out(content_digest(conversation(text)), seed, fraction) for text in texts]
    shuffled = [is_held_out(content_digest(conversation(text)), seed, fraction) for text in reversed(texts)]
    assert alone == shuffled[::-1]
    larger = [is_held_out(content_digest(conversation(text)), seed, min(1.0, fraction + 0.1)) for text in texts]
    assert all(more or not less for less, more in zip(alone, larger, strict=True))
    assert len({content_digest(conversation(text)) for text in texts}) == len(texts)


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0, 1.75, 3.0])
def test_shares_are_what_was_asked_for(weight: float) -> None:
    digests = [content_digest(conversation(str(n))) for n in range(4_000)]
    shown = [num_repeats(digest, 1, weight) for digest in digests]
    assert sum(shown) / 4_000 == pytest.approx(weight, abs=0.03)
    assert max(shown) - min(shown) <= 1
    held_out = [is_held_out(digest, 1, 0.25) for digest in digests]
    assert sum(held_out) / 4_000 == pytest.approx(0.25, abs=0.03)
    # The two draws know nothing of each other, nor does one seed of another.
    both = sum(h and draw(d, 1, "weight") < 0.5 for h, d in zip(held_out, digests, strict=True))
    other = sum(h and is_held_out(d, 2, 0.25) for h, d in zip(held_out, digests, strict=True))
    assert both / 4_000 == pytest.approx(0.125, abs=0.03) and other / 4_000 == pytest.approx(0.0625, abs=0.02)
