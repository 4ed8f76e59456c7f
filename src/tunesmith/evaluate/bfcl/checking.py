"""The verdict on decoded calls, identical to the official checker's in `valid` and `error_type`.

The official rules are repeated with their quirks: matching of parallel calls is greedy, a tuple is a list only where
the schema says `tuple`, the type of list elements is not looked at when `""` is an alternative, a number is compared
with `==`. Source: `bfcl_eval/eval_checker/ast_eval/ast_checker.py`, gorilla at 6ea5797.

Ground truth is `{function: {parameter: [alternative, …]}}`; the alternative `""` says that it may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        if "parallel" in category:
            return _parallel(functions, truth, calls, rules)
        if "multiple" in category:
            if len(calls) != len(truth):
                return _wrong_count("multiple_function_checker", truth, calls)
            return _one(_described(functions, truth[0]), truth[0], calls[0], rules)
        if len(calls) != 1:
            return _wrong_count("simple_function_checker", truth, calls)
        return _one(functions[0], truth[0], calls[0], rules)
    except (NotConvertible, TypeError, AttributeError, LookupError, ValueError, OverflowError) as error:
        # Where the official checker's own operations fail on a value, ours fail the same way.
        return Verdict(False, NOT_COMPARABLE, f"{type(error).__name__}: {error}"[:300])


def _wrong_count(checker: str, truth: Sequence[Truth], calls: Sequence[Call]) -> Verdict:
    return Verdict(False, f"{checker}:wrong_count", f"{len(calls)} calls, expected {len(truth)}")


def _described(functions: Sequence[Function], truth: Truth) -> Function:
    name = next(iter(truth))
    for function in functions:
        if function["name"] == name:
            return function
    raise LookupError(f"the item describes no function {name!r}")


def _parallel(functions: Sequence[Function], truth: Sequence[Truth], calls: Sequence[Call], rules: Rules) -> Verdict:
    """Give every expected call, in their order, the first call left over that is right for it."""
    if len(calls) != len(truth):
        return _wrong_count("parallel_function_checker_no_order", truth, calls)
    left = list(range(len(calls)))
    for number, expected in enumerate(truth):
        function = _described(functions, expected)
        reasons = []
        for index in left:
            verdict = _one(function, expected, calls[index], rules)
            if verdict.valid:
                left.remove(index)
                break
            reasons.append(f"call {index}: {verdict.error_type}, {verdict.error}")
        else:
            listed = "; ".join(reasons)[:1_000]
            what = f"no call matches expected call {number} of {told(function['name'])} ({listed})"
            return Verdict(False, "parallel_function_checker_no_order:cannot_find_match", what)
    return VALID


def _one(function: Function, truth: Truth, call: Call, rules: Rules) -> Verdict:
    """Compare one call; the first mistake counts."""
    alternatives = next(iter(truth.values()))
    name = function["name"]
    if rules.underscores:
        name = name.replace(".", "_")
    given = call.get(name)
    if given is None and name not in call:
        return Verdict(
            False, "simple_function_checker:wrong_func_name", f"{told(next(iter(call), None))}, not {name!r}"
        )
    assert given is not None, "a list of calls holds arguments"
    parameters = function["parameters"]
    for parameter in parameters["required"]:
        if parameter not in given:
            return Verdict(False, "simple_function_checker:missing_required", f"parameter {parameter!r} is missing")
    described = parameters["properties"]
    at_a_glance = _AT_A_GLANCE[rules.language]
    for parameter, value in given.items():
        choices = alternatives.get(parameter)
        # The commonest case first: a scalar, or a list of scalars, of the type asked for that equals an alternative is
        # right by every rule.
        if choices and parameter in described:
            schema = described[parameter]
            kind: Any = at_a_glance.get(schema["type"])
            if kind is type(value) and value in choices and (kind is not list or _is_plain(value, schema, choices)):
                continue
        if parameter not in described or parameter not in alternatives:
            what = f"parameter {told(parameter)} is not expected"
            return Verdict(False, "simple_function_checker:unexpected_param", what)
        verdict = _parameter(parameter, described[parameter], value, alternatives[parameter], rules.language)
        if not verdict.valid:
            return verdict
    if len(given) == len(alternatives):
        return VALID
    for parameter, choices in alternatives.items():
        if parameter not in given and "" not in choices:
            return Verdict(False, "simple_function_checker:missing_optional", f"parameter {parameter!r} is missing")
    return VALID


def _is_plain(value: Any, schema: Function, choices: Sequence[Any]) -> bool:
    """Return whether a list and its alternatives are such that their being equal decides."""
    element = _SCALARS.get(schema["items"]["type"])
    return all(type(item) is element for item in value) and all(type(choice) in (list, str) for choice in choices)


def _parameter(name: str, described: Function, value: Any, choices: list[Any], language: Language) -> Verdict:
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
            what = f"parameter {name!r} is {told(value)}; {language} source text is expected"
            return Verdict(False, error_type, what)
        value = convert(value, kind, element_kind)
    elif kind == "float" and type(value) is int:
        value = float(value)
    if kind == "tuple" and type(value) is tuple:
        value = list(value)
    error_type, is_variable = _type_error(value, choices, expected, element)
    if error_type:
        inside = f" of {element.__name__}" if element and error_type == "type_error:nested" else ""
        what = f"parameter {name!r} is {told(value)}, a {type(value).__name__}, not a {expected.__name__}{inside}"
        return Verdict(False, error_type, what)
    error_type = ""
    if is_variable:
        error_type = "" if value in choices else "value_error:others"
    elif expected is dict:
        error_type = _dict_error(value, choices)
    elif expected is list and element is dict:
        error_type = _dicts_error(value, choices)
    elif expected is str:
        error_type = "" if _standard(value) in map(_standard_alternative, choices) else "value_error:string"
    elif expected is list:
        error_type = _list_error(value, choices)
    elif value not in choices:
        error_type = "value_error:others"
    if error_type:
        return Verdict(False, error_type, f"parameter {name!r} is {told(value)}; expected one of {choices!r}"[:1_000])
    return VALID


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
