# ruff: noqa: E501 - one case per line
"""Broken data files: each gives one clear error, or quarantine entries with the right lines; never another exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import DataError
from tunesmith.recipe.schema import Source
from tunesmith.rows.reading import read_examples
from tunesmith.rows.sources import BadRow

CASES = Path(__file__).parents[2] / "data_cases"

# file -> number of good rows, and line -> part of the reason for each bad one
QUARANTINED: dict[str, tuple[int, dict[int, str]]] = {
    "empty.jsonl": (0, {}),
    "empty.json": (0, {}),
    "empty.csv": (0, {}),
    "blank_lines.jsonl": (0, {}),
    "header_only.csv": (0, {}),
    "broken_line.jsonl": (2, {2: "not valid JSON"}),
    "cut_off_last_line.jsonl": (1, {2: "not valid JSON: Expecting ':' delimiter at character 41"}),
    "bad_utf8.jsonl": (2, {2: "not valid UTF-8 at byte 45"}),
    "bom_and_crlf_and_a_bad_line.jsonl": (2, {2: "not valid JSON"}),
    "nul_bytes.jsonl": (2, {2: "not valid JSON"}),
    "nul_in_text.jsonl": (1, {2: "Invalid control character"}),
    "nan.jsonl": (1, {2: "NaN is not JSON"}),
    "infinity.jsonl": (1, {1: "-Infinity is not JSON"}),
    "deep_nesting.jsonl": (1, {2: "nested too deeply"}),
    "huge_number.jsonl": (1, {2: "thousands of digits"}),
    "lone_surrogate.jsonl": (1, {2: "surrogate"}),
    "array_lines.jsonl": (1, {2: "this is an array", 3: "this is a text", 4: "this is a number", 5: "this is null"}),
    "two_objects_in_a_line.jsonl": (1, {2: "more behind the value"}),
    "trailing_comma.jsonl": (1, {2: "more behind the value"}),
    "single_quotes.jsonl": (1, {2: "double quotes"}),
    "only_broken_lines.jsonl": (0, {1: "not valid JSON", 2: "not valid JSON", 3: "not valid JSON"}),
    "no_assistant.jsonl": (1, {2: "no message is an assistant's"}),
    "empty_answer.jsonl": (1, {2: "message 2 (assistant) is empty"}),
    "unknown_role.jsonl": (1, {2: "unknown role 'narrator'"}),
    "missing_role.jsonl": (1, {2: "message 1 has no role"}),
    "result_without_call.jsonl": (1, {2: "no call comes before it"}),
    "arguments_not_an_object.jsonl": (1, {2: "arguments of f are not an object"}),
    "call_without_name.jsonl": (1, {2: "no function name"}),
    "tool_without_name.jsonl": (1, {2: "tool 1 has no name"}),
    "tools_broken_json.jsonl": (1, {2: "the text of the tools is not valid JSON"}),
    "image_part.jsonl": (1, {2: "'image_url'"}),
    "content_is_a_number.jsonl": (1, {2: "content is not text"}),
    "messages_is_null.jsonl": (1, {2: "no 'messages'"}),
    "chosen_equals_rejected.jsonl": (1, {2: "are equal"}),
    "array_of_numbers.json": (0, {1: "this is a number", 2: "this is a number", 3: "this is a number"}),
    "array_with_a_bad_element.json": (2, {2: "this is a text", 3: "NaN is not JSON"}),
    "array_with_bad_utf8.json": (1, {2: "not valid UTF-8"}),
    "plain_text.json": (0, {1: "not valid JSON"}),
    "html_page.json": (0, {1: "not valid JSON"}),
    "pretty_objects_one_broken.json": (2, {13: "not valid JSON"}),
    "field_count.csv": (2, {3: "names 2 fields, the row has 1", 5: "names 2 fields, the row has 3"}),
    "bad_utf8.csv": (2, {3: "not valid UTF-8"}),
    "nul.csv": (1, {3: "NUL byte"}),
    "empty_cells.csv": (1, {3: "'prompt' is empty", 4: "'completion' is empty"}),
    "multi_line_cells_and_a_bad_row.csv": (1, {4: "names 2 fields, the row has 1"}),
    "null_cell.parquet": (2, {3: "no 'prompt'"}),
    "binary_cell.parquet": (1, {2: "not valid UTF-8"}),
    "nan_cell.parquet": (1, {2: "nan"}),
}
# file -> part of the message, and what `where` ends with
REFUSED: dict[str, tuple[str, str]] = {
    "utf16.jsonl": ("UTF-16", "utf16.jsonl"),
    "unknown_keys.jsonl": ("keys found: text", "unknown_keys.jsonl"),
    "question_answer.jsonl": ("{question: prompt, answer: completion}", "question_answer.jsonl"),
    "mixed_formats.jsonl": ("messages (1 rows), prompt_completion (1 rows)", "mixed_formats.jsonl"),
    "labels.jsonl": ("label", "labels.jsonl"),
    "cut_off_array.json": ("broken at element 3", "cut_off_array.json:3"),
    "array_missing_comma.json": ("expected a comma", "array_missing_comma.json:2"),
    "array_with_rubbish_behind.json": ("more behind the array", "array_with_rubbish_behind.json:2"),
    "two_lists.json": ("several lists of objects (first, test, extra)", "two_lists.json"),
    "open_quote.csv": ("never ends", "open_quote.csv:3"),
    "repeated_column.csv": ("repeats the column 'prompt'", "repeated_column.csv:1"),
    "blank_first_line.csv": ("first line", "blank_first_line.csv:1"),
    "half.jsonl.gz": ("gzip file is damaged", "half.jsonl.gz"),
    "not_gzip.jsonl.gz": ("gzip file is damaged", "not_gzip.jsonl.gz"),
    "damaged.jsonl.gz": ("gzip file is damaged", "damaged.jsonl.gz"),
    "not_parquet.parquet": ("Parquet file cannot be read", "not_parquet.parquet"),
    "empty.parquet": ("Parquet file cannot be read", "empty.parquet"),
    "cut_off.parquet": ("Parquet file cannot be read", "cut_off.parquet"),
    "model.safetensors": (".safetensors", "model.safetensors"),
}


def test_every_file_has_an_expectation() -> None:
    files = {path.name for path in CASES.iterdir()}
    assert files == set(QUARANTINED) | set(REFUSED)
    assert len(files) >= 50


@pytest.mark.parametrize("name", sorted(QUARANTINED))
def test_bad_rows_are_told_apart(name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    num_good, reasons = QUARANTINED[name]
    _, examples = read_examples(Source(str(CASES / name)))
    rows = list(examples)
    bad = {row.line: row for row in rows if isinstance(row, BadRow)}
    assert {line: reasons.get(line, "") in row.reason for line, row in bad.items()} == dict.fromkeys(reasons, True)
    assert len(rows) - len(bad) == num_good
    for row in bad.values():
        assert row.file == str(CASES / name) and len(row.text) <= 500 and "\n" not in row.reason


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_broken_file_is_one_clear_error(name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    message, where = REFUSED[name]
    with pytest.raises(DataError) as caught:
        list(read_examples(Source(str(CASES / name)))[1])
    assert message in caught.value.render() and caught.value.where.endswith(where)
