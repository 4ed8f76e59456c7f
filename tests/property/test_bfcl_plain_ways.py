"""The quick ways of reading plain calls lead where the thorough ones lead."""

from __future__ import annotations

import ast
import contextlib
import itertools
import warnings
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.bfcl import plain_source, python_calls, tree_calls

_WORDS = st.sampled_from(
    [
        "f",
        "a.b",
        "x",
        "y1",
        "_z",
        "class",
        "None",
        "True",
        "true",
        "is",
        "lambda",
        "match",
        "print",
        "A.b.c",
        "_",
        "é",
        "var",
    ]
)
_VALUES = st.sampled_from(
    [
        "1", "-1", "0", "-0", "01", "1.5", "1.", ".5", "1e3", "1_0", "0x1", "1j", "'a'", '"a"', "'a\"b'", "''",
        "'''a'''", "b'a'", "'a' 'b'", "r'a'", "'\\n'", "'é'", "x", "None", "True", "x.y", "f()", "[1, 'a']", "[]",
        "[ 1,2 ]", "[1,]", "[[1]]", "{}", "{'a': 1}", "[{'a': [1, x]}, {}]",
        "{'a': {'b': 1}}", "{1: 2}", "{'a' : x, 'a': 'b'}",
        "[[], [1, 'a'], {'k': []}]", "[[[1]]]", "{**{}}", "{'a', 'b'}", "(1,)", "1 if x else 2", "not x", "x=1",
        "'\x00'", "'\ud800'", "'\u2028'", "'\x0c'", "9999999999999999999999999", "true", "null", "5L",
    ]
)  # fmt: skip
_GAPS = st.sampled_from(["", " ", "\n", "\t", "\\\n", " #c\n"])


@st.composite
def _texts(draw: st.DrawFn) -> str:
    calls = []
    for _ in range(draw(st.integers(1, 2))):
        pairs = draw(st.lists(st.tuples(_WORDS, _GAPS, _VALUES, _GAPS), max_size=3))
        arguments = ",".join(f"{gap}{word}{' ' * (len(gap) % 2)}={value}{after}" for word, gap, value, after in pairs)
        calls.append(f"{draw(_WORDS)}({arguments})")
    return f"[{', '.join(calls)}]"


def _thoroughly(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return python_calls._calls_of(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError):
        return None


@settings(max_examples=1500, deadline=None)
@given(_texts())
@example("[f(x='a', x='b')]")
@example("[]")
@example("[ ]")
@example("[ , ]")
@example("[f(x=1), f(y=[1, 2.5, 'a', None])]")
def test_plain_python(text: str) -> None:
    plain = python_calls._plain_calls(text)
    if plain is not None:
        assert repr(plain) == repr(_thoroughly(text))


def test_plain_python_is_not_nothing() -> None:
    text = "[a.b(x=1, y='two words', z=[1, -2.5, \"x\"], w=True, v=None, u=word), f()]"
    assert python_calls._plain_calls(text) == [
        {"a.b": {"x": 1, "y": "two words", "z": [1, -2.5, "x"], "w": True, "v": None, "u": "word"}},
        {"f": {}},
    ]


_SOURCE_VALUES = st.sampled_from(
    [
        '"a"', '"a b, c=d"', "5", "-5", "0", "1.5", "true", "false", "null", "x", "var", "record", "'a'", "'ab'",
        "this", "async", '"a\\"b"', "5L", "x.y", "new A()", "007", '"(["', "undefined", "_", "of", "let", "yield",
        "await", "'a,b'", "1.5.2", "5n", "1.5f", "5d", "x(1, y)", "a.b('c')", 'a.b("c",  "d")',
        "new int[]{1, 2}", 'new String[] {"a, b","c"}', "new A[]{}", 'new ArrayList<>(Arrays.asList("a","b"))',
        'new HashMap<String, Integer>() {{ put("a", 1); put("b", c); }}', "new ArrayList<>()", "new a.B<C>(1,x, y(2))",
        "[]", "['a', 1]", "[[1, 2], [x]]", "{}", "{a: 1, 'b': [1, 2]}", "{a: {b: {c: 1}}}", "new Array(1, 2)",
        "new Array([1], {a: 1})", "[1,]", "[,]", "{a}", "'a\\'b'", "'a\\x41'", "new int[]{ 1 }", "new int[2]", "(x)",
    ]
)  # fmt: skip


@pytest.mark.parametrize("language", ["java", "javascript"])
@settings(max_examples=700, deadline=None)
@given(
    name=st.sampled_from(
        ["f", "Foo.bar", "a.b.c", "GeometryPresentation.createPresentation", "class.x", "record", "async", "Of.of"]
    ),
    pairs=st.lists(
        st.tuples(st.sampled_from(["a", "some_parameter", "var", "b2", "type"]), _SOURCE_VALUES), max_size=4
    ),
    gap=st.sampled_from([", ", ",", ",  ", ",\n"]),
)
def test_plain_source(language: Any, name: str, pairs: list[tuple[str, str]], gap: str) -> None:
    pytest.importorskip("tree_sitter")
    text = f"{name}({gap.join(f'{word}={value}' for word, value in pairs)})"
    _is_plain_and_right(text, language)


_LONG = "barbarbarbarbarbarbarbarbarbarbarbarbarbar"
_PLACES_OF_A_WORD = {
    "java": [
        f"Foo.{_LONG}(@=5, b=6)", f"@.{_LONG}(a=5, b=6)", f"@(a{_LONG}=5, b=6)", f"a.@.c(a{_LONG}=5, b=6)",
        f"Foo.{_LONG}(a=@, b=x.@)", f"Foo.{_LONG}(a=@.x, b=@)", f"Foo.{_LONG}(a=new @[]{{1, @}}, b=6)",
        f"Foo.{_LONG}(a=new A[] {{@, 1}})", f"Foo.{_LONG}(a=new X<@>(@, 1), b=6)",
        f"Foo.{_LONG}(a=new @<X>(c, 1) {{{{ @(1); }}}})", f"Foo.{_LONG}(a=new X<B, @>(c, @(1, @)), b=@(1))",
        f"Foo.{_LONG}(a=new @.X(c,1) {{{{ a(@); }}}}, b=6)",
    ],
    "javascript": [
        "foo(@=5, b=6)", "@.bar(a=5)", "@(a=5)", "foo.@(a=5)", "a.@.b(a=5)", "foo(a=@)", "foo(a=@.x, b=5)",
        "foo(a=x.@)", "foo(a=[@, 1])", "foo(a=[1, @])", "foo(a={@: 1})", "foo(a={b: @})", "foo(a={a: [@]})",
        "foo(a=new @(1))", "foo(a=new X(@))", "foo(a=@(1), b=2)", "foo(a=b(@), b=2)", "foo(a=x.@(@), b=@)",
    ],
}  # fmt: skip


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_a_reserved_word_anywhere(language: Any) -> None:
    pytest.importorskip("tree_sitter")
    words = set().union(*plain_source._RESERVED.values()) | {"any", "get", "to", "type", "string", "x"}
    plain = 0
    for place in _PLACES_OF_A_WORD[language]:
        for word in sorted(words):
            plain += _is_plain_and_right(place.replace("@", word), language)
    assert plain > 2 * len(_PLACES_OF_A_WORD[language])


def _is_plain_and_right(text: str, language: Any) -> bool:
    try:
        plain: Any = tree_calls._plain_call(text, language)
    except python_calls.Undecodable:
        plain = "undecodable"
    if plain is None:
        return False
    read = {"java": tree_calls.read_java_call, "javascript": tree_calls.read_javascript_call}[language]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_calls, "plain_call", lambda text, language: None)
        try:
            assert plain == read(text), text
        except python_calls.Undecodable:
            assert plain == "undecodable", text
    return True


@pytest.mark.parametrize("language", ["java", "javascript"])
@pytest.mark.parametrize("repeated", ['x="y, z"', "x=1", "x = new A(1)"])
def test_an_argument_given_twice_is_an_error_either_way(language: Any, repeated: str) -> None:
    pytest.importorskip("tree_sitter")
    text = f'some.thing.call(first="one argument", x="two", {repeated})'
    with pytest.raises(python_calls.Undecodable):
        tree_calls._plain_call(text, language)
    assert _is_plain_and_right(text, language)


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_no_text_is_no_call_to_the_parsers_either(language: Any) -> None:
    pytest.importorskip("tree_sitter")
    read = {"java": tree_calls.read_java_call, "javascript": tree_calls.read_javascript_call}[language]
    assert not tree_calls._root("", language).has_error and tree_calls._root("", language).child_count == 0
    assert read("") == read("/* nothing */")


# What makes `ast.parse` warn, and what could stand on both sides of it.
_PIECES = (
    "1",
    "0x1F",
    "0b1",
    "1.",
    ".5",
    "1e5",
    "1j",
    "1_0",
    "'\\d'",
    "b'\\d'",
    "and",
    "or",
    "in",
    "if",
    "is",
    "x",
    "(",
    " ",
)


def test_a_warning_of_python_is_seen_coming() -> None:
    num_warned = 0
    for pieces in itertools.product(_PIECES, repeat=3):
        text = "".join(pieces)
        with warnings.catch_warnings(record=True) as warned, contextlib.suppress(SyntaxError):
            warnings.simplefilter("always")
            ast.parse(text, mode="eval")
        num_warned += bool(warned)
        assert not warned or python_calls._MAY_WARN.search(text), text
    assert num_warned > 100
