"""Answers to BFCL items, right and wrong in every way we could think of: made from ground truth, by a seed.

An answer is first a list of calls, `[(name, [(parameter, value), …]), …]`, in which single things go wrong (a type, a
case, an order, …), then a text in one of the notations, in which more goes wrong. `Raw` values are source text.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr


@dataclass(frozen=True)
class Raw:
    """A piece of source text in the place of a value."""

    text: str


Calls = list[tuple[str, list[tuple[str, Any]]]]

_STRINGS = [
    "",
    " ",
    "a",
    "A",
    "5",
    "true",
    "null",
    "None",
    "x-y",
    "O'Brien",
    'say "hi"',
    "näïve",
    "日本",
    "a\tb",
    "1,5",
    "[1]",
    "{}",
]
_ODD = [
    "5",
    0,
    1,
    -1,
    1.0,
    0.5,
    True,
    False,
    None,
    [],
    {},
    "",
    [1],
    ["a"],
    {"a": 1},
    (1, 2),
    [[1]],
    [None],
    "x",
    10**20,
]
_EXPRESSIONS = [
    "1+1",
    "2*3.5",
    "2**3",
    "10/4",
    "7//2",
    "7%3",
    "1<<3",
    "-5",
    "+5",
    "~5",
    "not True",
    "-(-5)",
    "-x",
    "'a'+'b'",
    "'a'*3",
    "[1]*2",
    "[1]+[2]",
    "(1,)+(2,)",
    "5 if True else 6",
    "a.b",
    "a.b.c",
    "a[0]",
    "a['k']",
    "a[1:2]",
    "f()",
    "f(1)",
    "f(x=1)",
    "f(g(1), 2)",
    "lambda: 1",
    "lambda x: x",
    "f'{1}'",
    "f'a'",
    "b'a'",
    "r'a\\b'",
    "'a' 'b'",
    "...",
    "1j",
    "1_000",
    "0x1F",
    "0b11",
    "1e3",
    "1E-2",
    ".5",
    "5.",
    "007",
    "{1, 2}",
    "{1}",
    "{**{}}",
    "{'a': 1, **{}}",
    "[*[1]]",
    "[x for x in y]",
    "1 < 2",
    "1 and 2",
    "x or y",
    "true",
    "false",
    "null",
    "None",
    "True",
    "x",
    "class",
    "x y",
    "",
    "1 2",
    "(1)",
    "(1,)",
    "()",
    "(1, 2)",
    "1/0",
    "'a'+1",
    "'%d' % 5",
    "'%s' % 'a'",
    "await x",
    "yield",
    "x := 1",
    "'a\\nb'",
    "'a\\'b'",
    '"""a"""',
    "'\\x41'",
    "'\\q'",
    "abs(-3)+1",
    "max(1, 2)*2",
    "round(2.5)+0",
    "foo(1)+1",
    "1+x",
    "[1, [2, [3]]]",
    "{'a': {'b': [1]}}",
    "{1: 2}",
    "{(1,): 2}",
    "{[1]: 2}",
    "datetime(2024, 1, 1)",
    "np.array([1, 2])",
    "2 - 5",
    "3 * -1",
    "1.5 + 1",
    "None + 1",
    "True + 1",
    "(1+2)*3",
]
_JAVA_EXPRESSIONS = [
    "5",
    "-5",
    "5L",
    "5l",
    "5.0",
    "5f",
    "5.5F",
    "1e3",
    "1e3f",
    "true",
    "false",
    "null",
    "'c'",
    '"s"',
    '"a\\"b"',
    "x",
    "x.y",
    "x.y()",
    "x.y(1, 2)",
    "new int[]{1, 2}",
    'new String[]{"a", "b"}',
    "new int[3]",
    "new int[][]{{1}, {2}}",
    "new ArrayList<>()",
    'new ArrayList<>(Arrays.asList("a", "b"))',
    "new ArrayList<Integer>(Arrays.asList(1, 2))",
    "Arrays.asList(1, 2)",
    'new ArrayList<String>() {{ add("a"); add("b"); }}',
    'new HashMap<>() {{ put("a", 1); }}',
    "new HashMap<>()",
    'new HashMap<String, String>() {{ put("a", "b"); put("c", "d"); }}',
    "new HashMap<String, Integer>()",
    "new Foo()",
    'new Foo(1, "a", x)',
    "(int) 5",
    "a + b",
    "a ? b : c",
    "x -> x",
    "() -> 5",
    "String::new",
    "Foo.class",
    "int.class",
    "this",
    "super.x()",
    "new Foo() { void f() {} }",
    "List.of(1, 2)",
    "a[0]",
    "!x",
    "x = 5",
    "{1, 2}",
    "[1, 2]",
    "None",
    "True",
    '"ü"',
    "'ü'",
    "5 5",
    "a b",
    "",
    '"',
    "@A",
    "switch",
    "new",
    "0x1F",
    "1_000",
    "x instanceof Y",
    '"""a"""',
    "a.<T>b()",
    "(x)",
    "new Foo<Bar>()",
    "new a.b.Foo()",
    "Foo.Bar.BAZ",
    "5d",
    ".5",
    "5.",
    "byte",
    "new byte[]{(byte) 0x10}",
    "new char[]{'a', 'b'}",
]
_JAVASCRIPT_EXPRESSIONS = [
    "5",
    "-5",
    "5n",
    "5.5",
    "1e3",
    "true",
    "false",
    "null",
    "undefined",
    "'s'",
    '"s"',
    "`s`",
    "`a${b}`",
    "x",
    "x.y",
    "x.y()",
    "x()",
    "[1, 2]",
    "['a', 'b']",
    "[]",
    "[[1, 2], [3, 4]]",
    "[[1], 2]",
    "[{a: 1}, {b: 2}]",
    "new Array(1, 2)",
    "new Array([1], [2])",
    "{}",
    "{a: 1}",
    "{'a': 'b'}",
    '{"a": [1, 2]}',
    "{'a': {'b': 1}}",
    "{a: 1, b: true}",
    "{a, b}",
    "{...a}",
    "{'a': 'x, y'}",
    "() => 5",
    "x => x",
    "function() { return 1; }",
    "async () => {}",
    "class {}",
    "/re/g",
    "a ? b : c",
    "a + b",
    "!x",
    "typeof x",
    "new Foo()",
    "new Date('2024-01-01')",
    "x[0]",
    "x?.y",
    "a ?? b",
    "5 5",
    "a b",
    "",
    "'",
    "None",
    "True",
    "(x)",
    "x = 5",
    "x: 5",
    "{a: }",
    "[1,",
    "...x",
    "await x",
    "'ü'",
    "{ü: 1}",
    "Infinity",
    "NaN",
    "0x1F",
    "1_000",
    ".5",
    "5.",
    "'a\\'b'",
    "[,]",
    "[1,,2]",
    "['a,b', 'c']",
    "{a: 'b', 'c': 1.5}",
    "{'a':1,'b':2}",
    "[true, false]",
    "['1', 2]",
    "[[1, 2], [3, 4]",
    "[[1],[2]] + [3]",
]


def right_calls(entry: dict[str, Any], rng: random.Random | None = None) -> Calls:
    """Return the calls of an item's ground truth: alternatives by chance, or the first that is neither "" nor null."""
    calls: Calls = []
    for call in entry["ground_truth"]:
        (name, parameters), arguments = next(iter(call.items())), []
        for parameter, alternatives in parameters.items():
            real = [a for a in alternatives if a != "" and (rng or a is not None)]
            if rng and "" in alternatives and rng.random() < 0.5:
                continue
            if real:
                value = rng.choice(real) if rng else real[0]
                arguments.append((parameter, _settled(entry, name, parameter, value, rng)))
        calls.append((name, arguments))
    return calls


def _settled(entry: dict[str, Any], name: str, parameter: str, value: Any, rng: random.Random | None) -> Any:
    """Choose among the alternatives inside dictionaries, too."""
    if isinstance(value, dict):
        chosen = {}
        for key, alternatives in value.items():
            real = [a for a in alternatives if a != ""] if isinstance(alternatives, list) else [alternatives]
            if real and not (rng and isinstance(alternatives, list) and "" in alternatives and rng.random() < 0.5):
                chosen[key] = rng.choice(real) if rng else real[0]
        return chosen
    if isinstance(value, list):
        return [_settled(entry, name, parameter, item, rng) if isinstance(item, dict) else item for item in value]
    return value


# ---- what goes wrong with values -----------------------------------------------------------------------------------


def _other_type(value: Any, rng: random.Random) -> Any:
    choices: list[Any] = [str(value), [value], (value,), None, {"value": value}]
    if isinstance(value, bool):
        choices += [int(value), str(value).lower(), float(value)]
    elif isinstance(value, int | float):
        choices += [float(value), int(value) if abs(value) < 1e15 else 0, bool(value), f"{value}.0", complex(value)]
    elif isinstance(value, str):
        choices += [Raw(value), value.encode(), len(value)]
        if value.lstrip("-").replace(".", "", 1).isdigit():
            choices += [Raw(value)]
    elif isinstance(value, list):
        choices += [
            tuple(value),
            json.dumps(value, default=str),
            {str(i): v for i, v in enumerate(value)},
            value[0] if value else 0,
        ]
    elif isinstance(value, dict):
        choices += [list(value.items()), [value], list(value), json.dumps(value, default=str)]
    return rng.choice(choices)


def _other_case(value: Any, rng: random.Random) -> Any:
    change: Callable[[str], str] = rng.choice([str.upper, str.lower, str.swapcase, str.title])
    return _on_strings(value, change)


def _other_punctuation(value: Any, rng: random.Random) -> Any:
    def change(text: str) -> str:
        if text and rng.random() < 0.3:
            return "".join(c for c in text if c not in rng.choice([" ", ",.", "-_", "/", "'", ":", ", "]))
        at = rng.randint(0, len(text))
        return text[:at] + rng.choice(list(" ,./-_*^;:~()'\"\t!?#&\u00a0–İß")) + text[at:]

    return _on_strings(value, change)


def _on_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_on_strings(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _on_strings(item, change) for key, item in value.items()}
    return value


def _other_order(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(rng.sample(list(value), len(value)))
    if isinstance(value, dict):
        return dict(rng.sample(list(value.items()), len(value)))
    return value[::-1] if isinstance(value, str) else value


def _less_or_more(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list):
        return value[:-1] if value and rng.random() < 0.5 else [*value, rng.choice(_ODD)]
    if isinstance(value, dict):
        if value and rng.random() < 0.5:
            return dict(list(value.items())[1:])
        return {**value, rng.choice(["extra", "a", 1]): rng.choice(_ODD)}
    if isinstance(value, str):
        return value[:-1] if value and rng.random() < 0.5 else value + rng.choice(_STRINGS)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([value + 1, -value, value * 1.0000001, value + 1e-12, value / 3, 0])
    return not value


def _odd_inside(value: Any, rng: random.Random) -> Any:
    """Replace one element or one dictionary value."""
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        inner = _odd_inside(value[at], rng) if rng.random() < 0.4 else rng.choice([*_ODD, _other_type(value[at], rng)])
        return [*value[:at], inner, *value[at + 1 :]]
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        inner = (
            _odd_inside(value[key], rng) if rng.random() < 0.4 else rng.choice([*_ODD, _other_type(value[key], rng)])
        )
        return {**value, key: inner}
    return rng.choice(_ODD)


def _nested(value: Any, rng: random.Random) -> Any:
    return rng.choice([[value], [[value]], (value,), {"a": value}, [value, value], [{"a": value}], [[]], {"": value}])


def _unnested(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list | tuple) and value:
        return value[0]
    if isinstance(value, dict) and value:
        return next(iter(value.values()))
    return rng.choice(_ODD)


VALUE_MUTATIONS = (
    _other_type,
    _other_case,
    _other_punctuation,
    _other_order,
    _less_or_more,
    _odd_inside,
    _nested,
    _unnested,
    lambda value, rng: None,
    lambda value, rng: "",
    lambda value, rng: rng.choice(_ODD),
    lambda value, rng: rng.choice(_STRINGS),
)


# ---- what goes wrong with calls ------------------------------------------------------------------------------------


def _mutate_value(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    with_arguments = [index for index, (_, arguments) in enumerate(calls) if arguments]
    if not with_arguments:
        return calls
    index = rng.choice(with_arguments)
    arguments = calls[index][1]
    at = rng.randrange(len(arguments))
    parameter, value = arguments[at]
    arguments[at] = (parameter, rng.choice(VALUE_MUTATIONS)(value, rng))
    return calls


def _expression(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    with_arguments = [call for call in calls if call[1]]
    if with_arguments:
        arguments = rng.choice(with_arguments)[1]
        at = rng.randrange(len(arguments))
        arguments[at] = (arguments[at][0], Raw(rng.choice(_expressions(entry))))
    return calls


def _expressions(entry: dict[str, Any]) -> list[str]:
    languages = {"simple_java": _JAVA_EXPRESSIONS, "simple_javascript": _JAVASCRIPT_EXPRESSIONS}
    return languages.get(entry["category"], _EXPRESSIONS)


def _omit_argument(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    arguments = rng.choice(calls)[1]
    if arguments:
        arguments.pop(rng.randrange(len(arguments)))
    return calls


def _add_argument(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    name, arguments = rng.choice(calls)
    schema = next((f for f in entry["function"] if f["name"] == name), entry["function"][0])
    known = [p for p in schema["parameters"]["properties"] if p not in dict(arguments)]
    parameter = rng.choice([*known, *known, "extra", "Extra_1", "self"])
    value = rng.choice(["", None, *_ODD])
    arguments.insert(rng.randint(0, len(arguments)), (parameter, value))
    return calls


def _repeat_argument(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    arguments = rng.choice(calls)[1]
    if arguments:
        arguments.append((rng.choice(arguments)[0], rng.choice(_ODD)))
    return calls


def _reorder(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    if len(calls) > 1 and rng.random() < 0.6:
        rng.shuffle(calls)
    else:
        rng.shuffle(rng.choice(calls)[1])
    return calls


def _omit_call(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    calls.pop(rng.randrange(len(calls)))
    return calls


def _add_call(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    extra = copy.deepcopy(rng.choice(calls)) if rng.random() < 0.6 else ("other.function", [("a", 1)])
    calls.insert(rng.randint(0, len(calls)), extra)
    return calls


def _rename(calls: Calls, entry: dict[str, Any], rng: random.Random) -> Calls:
    at = rng.randrange(len(calls))
    name, arguments = calls[at]
    others = [f["name"] for f in entry["function"]]
    changed = [
        name.upper(),
        name.replace(".", "_"),
        name.split(".")[-1],
        f"a.{name}",
        f"{name}_",
        rng.choice(others),
        "f",
    ]
    if arguments and rng.random() < 0.4:
        parameter, value = arguments[0]
        arguments[0] = (rng.choice([parameter.upper(), f"{parameter}_", "x"]), value)
    else:
        calls[at] = (rng.choice(changed), arguments)
    return calls


CALL_MUTATIONS = (
    _mutate_value,
    _mutate_value,
    _mutate_value,
    _mutate_value,
    _expression,
    _expression,
    _omit_argument,
    _add_argument,
    _add_argument,
    _repeat_argument,
    _reorder,
    _omit_call,
    _add_call,
    _rename,
)


# ---- texts ---------------------------------------------------------------------------------------------------------


def _python_source(value: Any, rng: random.Random) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, list):
        return "[" + ", ".join(_python_source(item, rng) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_python_source(item, rng)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and rng.random() < 0.5:
        return json.dumps(value, ensure_ascii=rng.random() < 0.5)
    return repr(value)


def _java_source(value: Any, kind: str, element: str, rng: random.Random) -> str:
    """Return the source a careful model would write for a value of a type."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        inner = ", ".join(_java_source(item, element, "", rng) for item in value)
        if kind == "ArrayList":
            added = " ".join(f"add({_java_source(item, element, '', rng)});" for item in value)
            return rng.choice(
                [
                    f"new ArrayList<>(Arrays.asList({inner}))",
                    f"new ArrayList<{element}>() {{{{ {added} }}}}",
                    f"Arrays.asList({inner})",
                ]
            )
        return f"new {element or 'Object'}[]{{{inner}}}"
    if isinstance(value, dict):
        puts = " ".join(f'put("{key}", {_java_source(item, "", "", rng)});' for key, item in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    if isinstance(value, int) and kind == "long":
        return f"{value}L"
    if isinstance(value, float) and kind == "float":
        return f"{value}f"
    if (
        isinstance(value, str)
        and (kind in ("any", "char", "") or rng.random() < 0.1)
        and value.replace(".", "").isidentifier()
    ):
        return rng.choice([value, json.dumps(value)])
    return json.dumps(value, ensure_ascii=False, default=str)


def _javascript_source(value: Any, kind: str, element: str, rng: random.Random) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, int) and kind == "Bigint":
        return f"{value}n"
    if isinstance(value, list | tuple):
        inner = ", ".join(_javascript_source(item, element, "", rng) for item in value)
        return f"new Array({inner})" if rng.random() < 0.1 else f"[{inner}]"
    if isinstance(value, dict):
        quote = rng.choice(["", "'", '"'])
        pairs = (f"{quote}{key}{quote}: {_javascript_source(item, '', '', rng)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, str) and (kind == "any" or rng.random() < 0.1) and value.replace(".", "").isidentifier():
        return rng.choice([value, json.dumps(value)])
    if isinstance(value, str) and rng.random() < 0.5:
        return "'" + value.replace("'", "\\'") + "'"
    return json.dumps(value, ensure_ascii=False, default=str)


def source_text(calls: Calls, entry: dict[str, Any], rng: random.Random) -> str:
    """Return calls in the notation of the item's language."""
    texts = []
    for name, arguments in calls:
        properties = next((f for f in entry["function"] if f["name"] == name), entry["function"][0])["parameters"][
            "properties"
        ]
        parts = []
        for parameter, value in arguments:
            schema = properties.get(parameter, {})
            kind, element = schema.get("type", ""), schema.get("items", {}).get("type", "")
            if entry["category"] == "simple_java":
                parts.append(f"{parameter}={_java_source(value, kind, element, rng)}")
            elif entry["category"] == "simple_javascript":
                parts.append(f"{parameter}={_javascript_source(value, kind, element, rng)}")
            else:
                parts.append(f"{parameter}={_python_source(value, rng)}")
        texts.append(f"{name}({', '.join(parts)})")
    return "[" + ", ".join(texts) + "]"


_NOISE = [
    *"[](){}'\"`,=.:;#\\ \n\t*-+@!<>0a",
    "**",
    "==",
    "\x00",
    "\ud800",
    "’",
    "\r\n",
    "\x0c",
    "'''",
    "# ",
    "f'",
    " if ",
    "lambda ",
]


def _broken(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        end = min(end, at + rng.choice([1, 2, 8]))
        text = rng.choice(
            [
                text[:at] + text[end:],
                text[:at] + rng.choice(_NOISE) + text[at:],
                text[:at] + rng.choice(_NOISE) + text[end:],
                text[:at] + text[at:end] * 2 + text[end:],
                text[:at],
                text[at:],
            ]
        )
    return text


def _wrapped(text: str, rng: random.Random) -> str:
    inner = text[1:-1]
    return rng.choice(
        [
            inner,
            f"[{inner}",
            f"{inner}]",
            f"```{text}```",
            f"```python\n{text}\n```",
            f"`{text}`",
            f"'{text}'",
            f'"{text}"',
            f"\n\n{text}\n",
            f"[{text}]",
            f"({inner})",
            f"({inner},)",
            f"{{{inner}}}",
            f"{text};",
            f"{text}\n{text}",
            f"{text}{text}",
            f"Here you are: {text}",
            f"{text} # done",
            f"[{inner},]",
            f"[ {inner} ]",
            f"[\n  {inner}\n]",
            f"[*{inner}]",
            f"[{inner}, 1]",
            inner.replace("(", "(1, ", 1),
            inner.replace("(", "(*[1], ", 1),
            inner.replace("(", "(**{'a': 1}, ", 1),
            f"await {inner}",
            inner.replace("(", "()(", 1),
            inner.replace("(", "[0](", 1),
            inner.replace("=", " = "),
            inner.replace(", ", ","),
            inner.replace("=", ": "),
            inner.replace("=", "=="),
            f"x = {text}",
            f"print({inner})",
            f"<TOOLCALL>{text}</TOOLCALL>",
            "",
            "[]",
            "[{}]",
            "I cannot do that.",
            "[I cannot do that.]",
            "None",
            "[None]",
            f"[{inner}] # ]",
            inner.replace("(", " (", 1),
            inner.replace(", ", ",\n\t"),
            f"[{inner}, {inner}]",
            text.replace("'", "’"),
            text.replace("True", "true").replace("None", "null"),
        ]
    )


def _json_text(calls: Calls, rng: random.Random) -> str:
    body = [{"function": name, "parameters": dict(arguments)} for name, arguments in calls]
    text = json.dumps(body, default=lambda v: v.text if isinstance(v, Raw) else str(v))
    if rng.random() < 0.2:
        text = rng.choice(
            [text.replace("parameters", "arguments", 1), text[1:-1], f"{text} or {text}", f"[{text}]", '[1, "a"]', "{}"]
        )
    return rng.choice([text, f"```json\n{text}\n```", f"So:\n{text}", f"{text}\ndone"])


def _xml_text(calls: Calls, verbose: bool, rng: random.Random) -> str:
    kinds = {
        bool: "boolean",
        int: "integer",
        float: "float",
        list: "array",
        dict: "dict",
        tuple: "tuple",
        type(None): "null",
    }
    functions = []
    for name, arguments in calls:
        parts = []
        for parameter, value in arguments:
            kind = (
                kinds.get(type(value), "string")
                if rng.random() < 0.93
                else rng.choice([*kinds.values(), "string", "int", ""])
            )
            text = value.text if isinstance(value, Raw) else value if isinstance(value, str) else repr(value)
            if verbose:
                parts.append(f"<param name={quoteattr(parameter)} value={quoteattr(text)} type={quoteattr(kind)}/>")
            else:
                shown = text.replace("&", "&amp;").replace("<", "&lt;") if rng.random() < 0.95 else text
                parts.append(f"<param name={quoteattr(parameter)} type={quoteattr(kind)}>{shown}</param>")
        inside = "".join(parts)
        if verbose and rng.random() < 0.9:
            inside = f"<params>{inside}</params>"
        functions.append(f"<function name={quoteattr(name)}>{inside}</function>")
    text = f"<functions>{''.join(functions)}</functions>"
    return rng.choice([text, text, f"```xml\n{text}\n```", f"Well: {text} done", text.replace("</functions>", "")])


def _openai_calls(calls: Calls, rng: random.Random) -> Any:
    if rng.random() < 0.03:
        return rng.choice(["", "I cannot do that.", [], [{}], [1], None, {"a": 1}])
    made: list[Any] = []
    for name, arguments in calls:
        text = json.dumps(dict(arguments), default=lambda v: v.text if isinstance(v, Raw) else str(v))
        text = _broken(text, rng) if rng.random() < 0.05 else text
        name = name.replace(".", "_") if rng.random() < 0.9 else name
        made.append({name: dict(arguments) if rng.random() < 0.01 else text})
    return _plain(made)


def _plain(value: Any) -> Any:
    """Return what arrives at the other side as JSON."""
    return json.loads(json.dumps(value, default=str))


NOTATIONS = ("json", "verbose_xml", "concise_xml", "openai")


def answers(entry: dict[str, Any], count: int, rng: random.Random) -> Iterator[tuple[Any, str, bool]]:
    """Yield (response, notation, tagged) for an item with `category`, `function` and `ground_truth`."""
    language = {"simple_java": "java", "simple_javascript": "javascript"}.get(entry["category"], "python")
    for number in range(count):
        calls = right_calls(entry, rng)
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3]) if calls else 0):
            if calls:
                calls = rng.choice(CALL_MUTATIONS)(calls, entry, rng)
        if number % 8 == 0:
            notation = rng.choice(NOTATIONS)
            if notation == "openai":
                yield _openai_calls(calls, rng), notation, False
                continue
            text = _json_text(calls, rng) if notation == "json" else _xml_text(calls, notation == "verbose_xml", rng)
        else:
            notation = language
            text = source_text(calls, entry, rng)
            if rng.random() < 0.15:
                text = _wrapped(text, rng)
        if rng.random() < 0.15:
            text = _broken(text, rng)
        tagged = language == "python" and rng.random() < 0.03
        if tagged and rng.random() < 0.9:
            text = f"<TOOLCALL>{text}</TOOLCALL>"
        yield text, notation, tagged
