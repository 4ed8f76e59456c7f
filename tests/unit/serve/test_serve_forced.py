"""Answers that must be a call or a JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.tiny_checkpoint import byte_tokenizer
from tests.fixtures.families import write_family
from tunesmith.serve.embedded.forced import GrowingJson, Guide, call_form
from tunesmith.tokens.templates import ChatTemplate, template_for
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.tokens.tool_calls import parse_tool_calls

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
# Floats as they are written: longer ones than the limit on digits are refused on purpose.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def reads(text: str) -> tuple[bool, bool]:
    """Return whether every letter was taken, and whether the object is complete then."""
    grown = GrowingJson()
    return all(map(grown.take, text)), grown.is_complete


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.booleans(), st.sampled_from([None, 1]))
def test_every_object_is_taken_and_ends_where_it_ends(
    value: dict[str, object], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    if "\n    " in text:
        return  # nested deeper than the limit on white space
    assert reads(text) == (True, True)
    assert reads(text[:-1]) == (True, False)
    assert reads(text + "}") == (False, True)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='{}[]":,\\ \n0123456789.eE+-truefalsn', max_size=14).map(lambda text: "{" + text))
def test_what_is_taken_as_complete_is_json(text: str) -> None:
    taken, complete = reads(text)
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    assert is_object == (taken and complete) or (is_object and "  " in text)


@pytest.mark.parametrize("text", ["[1]", '"a"', "1", ' {"a": 1}', '{"a": 01}', '{"a" "b"}', '{"a": 1,}', '{"a": "\n"}'])
def test_other_things_are_refused(text: str) -> None:
    assert reads(text) != (True, True)


def test_a_call_has_the_form_of_the_template(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    form = call_form(template_for(load_tokenizer(tmp_path), "model"), (TOOL,))
    assert form is not None
    assert form.before == '<tool_call>\n{"name": "'
    assert form.between == '", "arguments": '
    assert form.after == "}\n</tool_call>"


@pytest.mark.parametrize("name", ["qwen", "llama3", "mistral", "phi", "gemma"])
def test_forms_are_read_back_as_the_call_they_are(name: str, tmp_path: Path) -> None:
    form = call_form(template_for(load_tokenizer(write_family(tmp_path, name)), name), (TOOL,))
    assert form is not None
    whole = form.before + "find" + form.between + '{"city": "Köln"}' + form.after
    assert parse_tool_calls(whole)[1] == [{"name": "find", "arguments": {"city": "Köln"}}]


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.content }}|{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}(tunesmith_key=1)"
        "{% endfor %}|{% endfor %}",
        "{% for m in messages %}{{ raise_exception('no tools') if m.tool_calls }}{% endfor %}",
    ],
    ids=["no calls", "no JSON", "refuses"],
)
def test_a_template_that_writes_no_json_calls_forces_none(text: str) -> None:
    assert call_form(ChatTemplate(text), (TOOL,)) is None


def test_a_guide_takes_the_best_token_that_fits() -> None:
    pieces = ["<", "fi", "nd", "nd_all", ": ", "{", '{"a"', ":", " 1", "}", "}}", "x", ""]
    ids = {piece: i for i, piece in enumerate(pieces)}
    guide = Guide([ids["<"], ids["<"]], ["find: ", "find_all: "], pieces)

    def take(*order: str) -> str:
        token_id = guide.take([ids[piece] for piece in order])
        assert token_id is not None
        return pieces[token_id]

    assert [guide.take(()), guide.take(())] == [ids["<"]] * 2
    assert take("x", "nd", "fi") == "fi"
    assert take("x", "nd_all", "nd") == "nd_all"
    assert take("x", "{", ": ") == ": "
    assert take("x", '{"a"', "{") == '{"a"'
    assert [take("}", ":"), take("x", " 1"), take("", "}}", "}")] == [":", " 1", "}"]
    assert guide.is_done


def test_a_vocabulary_without_the_letter_is_told() -> None:
    assert Guide([], [], ["x"]).take([0]) is None
