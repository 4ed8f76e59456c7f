"""The verdict on decoded calls, identical to the official checker's in `valid` and `error_type`.

The official rules are repeated with their quirks: matching of parallel calls is greedy, a tuple is a list only where
the schema says `tuple`, the type of list elements is not looked at when `""` is an alternative, a number is compared
with `==`. Source: `bfcl_eval/eval_checker/ast_eval/ast_checker.py`, gorilla at 6ea5797.

Ground truth is `{function: {parameter: [alternative, …]}}`; the alternative `""` says that it may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tunesmith.evaluate.bfcl.categories import Language
from tunesmith.evaluate.bfcl.typed_values import NotConvertible, java_value, javascript_value
from tunesmith.evaluate.bfcl.verdicts import NOT_COMPARABLE, VALID, Verdict, told

Function = Mapping[str, Any]
Truth = Mapping[str, Mapping[str, list[Any]]]
Call = dict[str, dict[Any, Any]]

_PYTHON: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_JAVA: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("char", "String", "any"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "boolean": bool,
    "Set": set,
}
_JAVASCRIPT: dict[str, type] = {
    "String": str,
    "integer": int,
    "float": float,
    "Bigint": int,
    "Boolean": bool,
    "dict": dict,
    "array": list,
    "any": str,
}
_WITH_ELEMENTS = {
    "python": frozenset(("array", "tuple")),
    "java": frozenset(("Array", "ArrayList")),
    "javascript": frozenset(("array",)),
}
_TYPES: dict[Language, dict[str, type]] = {"python": _PYTHON, "java": _JAVA, "javascript": _JAVASCRIPT}
_COMPARED_LOOSELY = (str, list, dict)
_LIST_OR_TEXT = frozenset((list, str))
_SCALARS = {"string": str, "any": str, "integer": int, "float": float, "boolean": bool}
_AT_A_GLANCE: dict[Language, dict[str, type]] = {"python": {**_SCALARS, "array": list}, "java": {}, "javascript": {}}
_CONVERTERS: dict[Language, tuple[str, Callable[[str, str, str | None], Any]]] = {
    "java": ("type_error:java", java_value),
    "javascript": ("type_error:js", javascript_value),
}


class Rules(NamedTuple):
    """What, besides the item, decides a verdict.

    Attributes:
        language: of the item's functions.
        underscores: dots of function names are underscores in answers, as OpenAI's API wants it.
    """

    language: Language = "python"
    underscores: bool = False


def check(
    category: str, functions: Sequence[Function], truth: Sequence[Truth], calls: Sequence[Call], rules: Rules
) -> Verdict:
    """Return the verdict on an answer's calls.

    Args:
        category: its name decides between one call, one of several functions, and several calls in any order.
        functions: as the data describes them.
        truth: one entry per expected call.
        calls: a list of calls, see `decoding.is_list_of_calls`.
        rules: language and spelling of names.
    """
    try:
        mistake = _mistake(category, functions, truth, calls, rules)
    except (NotConvertible, TypeError, AttributeError, LookupError, ValueError, OverflowError) as error:
        # Where the official checker's own operations fail on a value, ours fail the same way.
        return Verdict(False, NOT_COMPARABLE, f"{type(error).__name__}: {error}"[:300])
    return VALID if mistake is None else Verdict(False, mistake.error_type, mistake.told())


class _Mistake(NamedTuple):
    """What is wrong with a call; put into words only when it decides the verdict."""

    error_type: str
    words: str
    values: tuple[Any, ...] = ()

    def told(self) -> str:
        return self.words.format(*map(told, self.values))[:1_000]


def _mistake(
    category: str, functions: Sequence[Function], truth: Sequence[Truth], calls: Sequence[Call], rules: Rules
) -> _Mistake | None:
    if "parallel" in category:
        return _parallel(functions, truth, calls, rules)
    if "multiple" in category:
        if len(calls) != len(truth):
            return _wrong_count("multiple_function_checker", truth, calls)
        return _one(_described(functions, truth[0]), truth[0], calls[0], rules)
    if len(calls) != 1:
        return _wrong_count("simple_function_checker", truth, calls)
    return _one(functions[0], truth[0], calls[0], rules)


def _wrong_count(checker: str, truth: Sequence[Truth], calls: Sequence[Call]) -> _Mistake:
    return _Mistake(f"{checker}:wrong_count", f"{len(calls)} calls, expected {len(truth)}")


def _described(functions: Sequence[Function], truth: Truth) -> Function:
    name = next(iter(truth))
    for function in functions:
        if function["name"] == name:
            return function
    raise LookupError(f"the item describes no function {name!r}")


def _parallel(
    functions: Sequence[Function], truth: Sequence[Truth], calls: Sequence[Call], rules: Rules
) -> _Mistake | None:
    """Give every expected call, in their order, the first call left over that is right for it."""
    if len(calls) != len(truth):
        return _wrong_count("parallel_function_checker_no_order", truth, calls)
    left = list(range(len(calls)))
    for number, expected in enumerate(truth):
        function = _described(functions, expected)
        mistakes = []
        for index in left:
            mistake = _one(function, expected, calls[index], rules)
            if mistake is None:
                left.remove(index)
                break
            mistakes.append(mistake)
        else:
            return _Mistake(
                "parallel_function_checker_no_order:cannot_find_match",
                f"no call matches expected call {number} of {{}} ({_listed(zip(left, mistakes, strict=True))})",
                (function["name"],),
            )
    return None


def _listed(mistakes: Iterable[tuple[int, _Mistake]]) -> str:
    texts, length = [], 0
    for index, mistake in mistakes:
        texts.append(f"call {index}: {mistake.error_type}, {mistake.told()}")
        length += len(texts[-1])
        if length > 1_000:
            break
    return "; ".join(texts)[:1_000].replace("{", "{{").replace("}", "}}")


def _one(function: Function, truth: Truth, call: Call, rules: Rules) -> _Mistake | None:
    """Compare one call; the first mistake counts."""
    alternatives = next(iter(truth.values()))
    name = function["name"]
    if rules.underscores:
        name = name.replace(".", "_")
    given = call.get(name)
    if given is None:
        return _Mistake("simple_function_checker:wrong_func_name", "{}, not {}", (next(iter(call), None), name))
    parameters = function["parameters"]
    for parameter in parameters["required"]:
        if parameter not in given:
            return _Mistake("simple_function_checker:missing_required", "parameter {} is missing", (parameter,))
    described = parameters["properties"]
    language = rules.language
    at_a_glance = _AT_A_GLANCE[language]
    for parameter, value in given.items():
        if parameter not in described or parameter not in alternatives:
            what = "parameter {} is not expected"
            return _Mistake("simple_function_checker:unexpected_param", what, (parameter,))
        schema, choices = described[parameter], alternatives[parameter]
        # The commonest case first: a scalar, or a list of scalars, of the type asked for that equals an alternative is
        # right by every rule.
        kind: Any = at_a_glance.get(schema["type"])
        if kind is type(value) and value in choices and (kind is not list or _is_plain(value, schema, choices)):
            continue
        mistake = _parameter(parameter, schema, value, choices, language)
        if mistake is not None:
            return mistake
    if len(given) < len(alternatives):
        for parameter, choices in alternatives.items():
            if parameter not in given and "" not in choices:
                return _Mistake("simple_function_checker:missing_optional", "parameter {} is missing", (parameter,))
    return None


def _is_plain(value: Any, schema: Function, choices: Sequence[Any]) -> bool:
    """Return whether a list and its alternatives are such that their being equal decides."""
    element = _SCALARS.get(schema["items"]["type"])
    return {element}.issuperset(map(type, value)) and _LIST_OR_TEXT.issuperset(map(type, choices))


def _parameter(name: str, described: Function, value: Any, choices: list[Any], language: Language) -> _Mistake | None:
    kind = described["type"]
    types = _TYPES[language]
    expected = types[kind]
    element: type | None = None
    element_kind: str | None = None
    if kind in _WITH_ELEMENTS[language]:
        element_kind = described["items"]["type"]
        element = types[element_kind]
    if language != "python":
        error_type, convert = _CONVERTERS[language]
        if type(value) is not str:
            return _Mistake(error_type, f"parameter {{}} is {{}}; {language} source text is expected", (name, value))
        value = convert(value, kind, element_kind)
    elif kind == "float" and type(value) is int:
        value = float(value)
    if kind == "tuple" and type(value) is tuple:
        value = list(value)
    error_type, is_variable = _type_error(value, choices, expected, element)
    if error_type:
        inside = f" of {element.__name__}" if element and error_type == "type_error:nested" else ""
        what = f"parameter {{}} is {{}}, a {type(value).__name__}, not a {expected.__name__}{inside}"
        return _Mistake(error_type, what, (name, value))
    error_type = _value_error(value, choices, expected, element, is_variable)
    if error_type:
        return _Mistake(error_type, "parameter {} is {}; expected one of {}", (name, value, choices))
    return None


def _value_error(value: Any, choices: list[Any], expected: type, element: type | None, is_variable: bool) -> str:
    """Return the kind of mistake in a value whose type is right, empty when there is none."""
    if is_variable or expected not in _COMPARED_LOOSELY:
        return "" if value in choices else "value_error:others"
    if expected is str:
        return "" if _standard(value) in map(_standard_alternative, choices) else "value_error:string"
    if expected is dict:
        return _dict_error(value, choices)
    return _dicts_error(value, choices) if element is dict else _list_error(value, choices)


def _type_error(value: Any, choices: Sequence[Any], expected: type, element: type | None) -> tuple[str, bool]:
    """Return the kind of type error, empty when there is none, and whether the value is a variable's name.

    Alternatives of another type than the schema's are names of variables (or null): then the value must be one of
    them to the letter. Elements of a list are looked at one level deep; an alternative that is no list accepts any.
    """
    possible = next((type(choice) for choice in choices if choice != ""), None)
    is_variable = possible is not None and possible is not expected
    found = ""
    kind: Any = type(value)  # so that the type checker does not take `value` for an object
    if kind is expected:
        if element is None:
            return "", is_variable
        for choice in choices:
            if type(choice) is not list or all(not _type_error(item, choice, element, None)[0] for item in value):
                return "", is_variable
        found = "type_error:nested"
    if possible is not None and kind is possible:
        return found, True
    return "type_error:simple", is_variable


_IGNORED = str.maketrans("", "", " ,./-_*^")


def _standard(text: str) -> str:
    """Return a text as it is compared: some punctuation, letter case and the kind of quotes do not count."""
    return text.translate(_IGNORED).lower().replace("'", '"')


@lru_cache(maxsize=1 << 14)
def _standard_truth(text: str) -> str:
    return _standard(text)


def _standard_alternative(choice: Any) -> Any:
    """Return a string alternative as it is compared; anything else equals no string."""
    return _standard_truth(choice) if type(choice) is str else choice


def _list_error(value: Sequence[Any], choices: Sequence[Any]) -> str:
    """Compare in order; strings directly in the list are standardised, deeper ones are not."""
    given = [_standard(item) if type(item) is str else item for item in value]
    allowed = [[_standard_alternative(choice[index]) for index in range(len(choice))] for choice in choices]
    return "" if given in allowed else "value_error:list/tuple"


def _dict_error(value: Mapping[Any, Any], choices: Sequence[Any]) -> str:
    """Compare with each alternative; what is wrong with the last one is reported."""
    error_type = "dict_checker:unclear"
    for choice in choices:
        if choice == "":
            continue
        error_type = _dict_mismatch(value, choice)
        if not error_type:
            return ""
    return error_type


def _dict_mismatch(value: Mapping[Any, Any], choice: Mapping[Any, Any]) -> str:
    error_type = ""
    for key, item in value.items():
        if key not in choice:
            error_type = "value_error:dict_key"
            break
        if type(choice[key]) is list and item in choice[key]:
            continue
        allowed = [_standard_alternative(choice[key][index]) for index in range(len(choice[key]))]
        if (_standard(item) if type(item) is str else item) not in allowed:
            error_type = "value_error:dict_value"
            break
    # A key that is missing outweighs a wrong value.
    for key, allowed in choice.items():
        if key not in value and "" not in allowed:
            return "value_error:dict_key"
    return error_type


def _dicts_error(value: Sequence[Any], choices: Sequence[Any]) -> str:
    """Compare lists of dictionaries position by position; what is wrong with the last alternative is reported."""
    error_type = "list_dict_checker:unclear"
    for choice in choices:
        if len(value) != len(choice):
            error_type = "value_error:list_dict_count"
            continue
        # No element, no verdict of an element: the alternative fits.
        error_type = next(filter(None, (_dict_error(value[i], [choice[i]]) for i in range(len(value)))), "")
        if not error_type:
            return ""
    return error_type
