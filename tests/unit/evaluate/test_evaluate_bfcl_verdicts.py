"""Frozen verdicts, written by hand from the official rules and confirmed by the official checker."""

from __future__ import annotations

import pytest

from tunesmith.evaluate.bfcl.categories import category
from tunesmith.evaluate.bfcl.dataset import Entry
from tunesmith.evaluate.bfcl.scoring import judge

_FUNCTION = {
    "name": "geo.find",
    "description": "",
    "parameters": {
        "type": "dict",
        "properties": {
            "s": {"type": "string"},
            "n": {"type": "integer"},
            "x": {"type": "float"},
            "b": {"type": "boolean"},
            "l": {"type": "array", "items": {"type": "integer"}},
            "w": {"type": "array", "items": {"type": "string"}},
            "t": {"type": "tuple", "items": {"type": "float"}},
            "d": {"type": "dict"},
            "r": {"type": "array", "items": {"type": "dict"}},
        },
        "required": [],
    },
}


def _entry(*calls, required=(), functions=(_FUNCTION,)):
    described = [{**f, "parameters": {**f["parameters"], "required": list(required)}} for f in functions]
    return Entry("i_0", (), tuple(described), calls, {})


def _verdict(answer, truth, required=(), name="simple_python"):
    return judge(category(name), _entry({"geo.find": truth}, required=required), answer).error_type


@pytest.mark.parametrize(
    ("arguments", "truth", "error"),
    [
        ("s='New York, N.Y.'", {"s": ["new york ny"]}, ""),
        ("s='New York'", {"s": ["new\tyork"]}, "value_error:string"),
        ('s="it\'s"', {"s": ['IT"S']}, ""),
        ("s=unquoted", {"s": ["unquoted"]}, ""),
        ("s=5", {"s": ["5"]}, "type_error:simple"),
        ("s=''", {"s": ["a", ""]}, ""),
        ("n='5'", {"n": [5]}, "type_error:simple"),
        ("n=5.0", {"n": [5]}, "type_error:simple"),
        ("n=True", {"n": [1]}, "type_error:simple"),
        ("n=2+3", {"n": [5]}, ""),
        ("n=-5", {"n": [-5]}, ""),
        ("n=+5", {"n": [-5]}, ""),  # the official decoder negates whatever the operator
        ("n=count", {"n": ["count"]}, ""),
        ("n=Count", {"n": ["count"]}, "value_error:others"),
        ("n=None", {"n": [None]}, ""),
        ("n=None", {"n": [5]}, "type_error:simple"),
        ("x=5", {"x": [5.0]}, ""),
        ("x=0.1+0.2", {"x": [0.3]}, "value_error:others"),
        ("b='true'", {"b": [True]}, "type_error:simple"),
        ("b=true", {"b": [True]}, "type_error:simple"),
        ("l=[1, 2]", {"l": [[1, 2]]}, ""),
        ("l=[2, 1]", {"l": [[1, 2]]}, "value_error:list/tuple"),
        ("l=[1, True]", {"l": [[1, 1]]}, "type_error:nested"),
        ("l=[1.0]", {"l": [[1]]}, "type_error:nested"),
        ("l=['a']", {"l": ["", [1]]}, "value_error:list/tuple"),  # "" disables the look at elements
        ("l=(1, 2)", {"l": [[1, 2]]}, "type_error:simple"),
        ("l=[]", {"l": [[1], ""]}, ""),
        ("w=['A b', 'C.']", {"w": [["ab", "c"]]}, ""),
        ("t=(1.0, 2.0)", {"t": [[1.0, 2.0]]}, ""),
        ("t=[1.0, 2.0]", {"t": [[1.0, 2.0]]}, ""),
        ("t=(1, 2)", {"t": [[1.0, 2.0]]}, "type_error:nested"),
        ("d={'a': 1}", {"d": [{"a": [1], "b": ["", 2]}]}, ""),
        ("d={'a': True}", {"d": [{"a": [1]}]}, ""),
        ("d={'a': '1'}", {"d": [{"a": [1]}]}, "value_error:dict_value"),
        ("d={'c': 1}", {"d": [{"a": [1]}]}, "value_error:dict_key"),
        ("d={}", {"d": [{"a": [1]}]}, "value_error:dict_key"),
        (
            "d={'a': 2}",
            {"d": [{"a": [1], "b": [2]}]},
            "value_error:dict_key",
        ),  # what is missing outweighs what is wrong
        ("d={'a': 1}", {"d": [""]}, "dict_checker:unclear"),
        ("r=[{'a': 1}, {'a': 2}]", {"r": [[{"a": [1]}, {"a": [2]}]]}, ""),
        ("r=[{'a': 2}, {'a': 1}]", {"r": [[{"a": [1]}, {"a": [2]}]]}, "value_error:dict_value"),
        ("r=[{'a': 1}]", {"r": [[{"a": [1]}, {"a": [2]}]]}, "value_error:list_dict_count"),
        ("r=[1]", {"r": ["", [{"a": [1]}]]}, "tunesmith:not_comparable"),  # the official checker raises
        ("s='a', q=1", {"s": ["a"]}, "simple_function_checker:unexpected_param"),
        ("s='a', n=1", {"s": ["a"]}, "simple_function_checker:unexpected_param"),
        ("", {"s": ["a"]}, "simple_function_checker:missing_optional"),
        ("", {"s": ["a", ""]}, ""),
        ("'a'", {"s": ["a", ""]}, ""),  # positional arguments are dropped
        ("s='b', s='a'", {"s": ["a"]}, ""),
        ("**{'s': 'a'}", {"s": ["a"]}, "simple_function_checker:unexpected_param"),
        ("s=f(1)", {"s": ["f(1)"]}, ""),
        ("s=a[0]", {"s": ["a[0]"]}, ""),
        ("s=[x for x in y]", {"s": ["a"]}, "ast_decoder:decoder_failed"),
        ("s=a.b", {"s": ["a.b"]}, "ast_decoder:decoder_failed"),
        ("s='a\nb'", {"s": ["a"]}, "ast_decoder:decoder_failed"),
    ],
)
def test_one_call(arguments, truth, error):
    assert _verdict(f"[geo.find({arguments})]", truth) == error


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("geo.find(s='a')", ""),
        ("```\n[geo.find(s='a')]\n```", ""),
        ("```python\n[geo.find(s='a')]\n```", "ast_decoder:decoder_failed"),
        ("geo.find(s='a'", "ast_decoder:decoder_failed"),
        ("geo_find(s='a')", "simple_function_checker:wrong_func_name"),
        ("[geo.find(s='a'), geo.find(s='a')]", "simple_function_checker:wrong_count"),
        ("[]", "simple_function_checker:wrong_count"),
        ("", "simple_function_checker:wrong_count"),
        ("I cannot do that.", "ast_decoder:decoder_failed"),
        ("[geo.find]", "ast_decoder:decoder_failed"),
        ("[geo.find(s='a') # no, wait]", "ast_decoder:decoder_failed"),
        ("{geo.find(s='a')}", "ast_decoder:decoder_failed"),
        (None, "ast_decoder:decoder_failed"),
        (["geo.find(s='a')"], "ast_decoder:decoder_failed"),
    ],
)
def test_forms_of_a_list_of_calls(answer, error):
    assert _verdict(answer, {"s": ["a"]}) == error


def test_a_required_parameter_is_missed_before_others_are_looked_at():
    assert _verdict("geo.find(q=1)", {"s": ["a"]}, required=["s"]) == "simple_function_checker:missing_required"
    assert _verdict("geo.find()", {"s": ["a", ""]}, required=["s"]) == "simple_function_checker:missing_required"


def _parallel(answer, *truths):
    entry = _entry(*({"geo.find": truth} for truth in truths))
    return judge(category("parallel"), entry, answer).error_type


def test_parallel_calls_match_in_any_order_but_greedily():
    assert _parallel("[geo.find(n=2), geo.find(n=1)]", {"n": [1]}, {"n": [2]}) == ""
    assert _parallel("[geo.find(n=1), geo.find(n=1)]", {"n": [1]}, {"n": [2]}) == (
        "parallel_function_checker_no_order:cannot_find_match"
    )
    assert _parallel("[geo.find(n=1)]", {"n": [1]}, {"n": [2]}) == "parallel_function_checker_no_order:wrong_count"
    # A perfect matching exists; the official checker takes the first that fits and does not find it.
    assert _parallel("[geo.find(n=1), geo.find(n=2)]", {"n": [1, 2]}, {"n": [1]}) == (
        "parallel_function_checker_no_order:cannot_find_match"
    )


def test_multiple_checks_the_function_of_the_ground_truth():
    other = {**_FUNCTION, "name": "other"}
    entry = _entry({"geo.find": {"n": [1]}}, functions=(other, _FUNCTION))
    assert judge(category("multiple"), entry, "geo.find(n=1)").valid
    assert judge(category("multiple"), entry, "other(n=1)").error_type == "simple_function_checker:wrong_func_name"
    assert judge(category("live_multiple"), entry, "[]").error_type == "multiple_function_checker:wrong_count"


def test_relevance_asks_only_whether_there_is_a_call():
    irrelevance, relevance, entry = category("irrelevance"), category("live_relevance"), _entry()
    assert judge(irrelevance, entry, "There is no function for that.").valid
    assert judge(irrelevance, entry, "[]").valid
    assert judge(irrelevance, entry, "anything(at='all')").error_type == "irrelevance_error:decoder_success"
    assert judge(relevance, entry, "anything(at='all')").valid
    assert judge(relevance, entry, "None of them.").error_type == "relevance_error:decoder_failed"


def test_calls_of_the_api_have_underscores_for_dots():
    entry = _entry({"geo.find": {"n": [1]}})

    def verdict(response, protocol="fc-openai-tools"):
        return judge(category("simple_python"), entry, response, protocol).error_type

    assert verdict([{"geo_find": '{"n": 1}'}]) == ""
    assert verdict([{"id": "c", "type": "function", "function": {"name": "geo_find", "arguments": '{"n": 1}'}}]) == ""
    assert verdict([{"geo.find": '{"n": 1}'}]) == "simple_function_checker:wrong_func_name"
    assert verdict([{"geo_find": '{"n": 1'}]) == "ast_decoder:decoder_failed"
    assert verdict([{"geo_find": "[1]"}]) == "ast_decoder:decoder_wrong_output_format"
    assert verdict("geo_find(n=1)") == "ast_decoder:decoder_failed"
    assert verdict("") == "simple_function_checker:wrong_count"
    native = '<tool_call>\n{"name": "geo.find", "arguments": {"n": 1}}\n</tool_call>'
    assert verdict(native, "fc-native-template") == ""
    assert verdict("nothing", "fc-native-template") == "simple_function_checker:wrong_count"


def _typed(language, kind, items=None):
    schema = {"type": kind} | ({"items": {"type": items}} if items else {})
    function = {"name": "Alpha.beta", "parameters": {"type": "dict", "properties": {"param": schema}, "required": []}}
    return lambda source, *truth: (
        judge(
            category(f"simple_{language}"),
            Entry("i", (), (function,), ({"Alpha.beta": {"param": list(truth)}},), {}),
            source,
        ).error_type
    )


def test_java_values_are_source_text():
    pytest.importorskip("tree_sitter")
    assert _typed("java", "integer")("Alpha.beta(param=5)", 5) == ""
    assert _typed("java", "long")("Alpha.beta(param=5)", 5) == "type_error:simple"
    assert _typed("java", "long")("Alpha.beta(param=5L)", 5) == ""
    assert _typed("java", "float")("Alpha.beta(param=1.5)", 1.5) == "type_error:simple"
    assert _typed("java", "boolean")("Alpha.beta(param=true)", True) == ""
    assert _typed("java", "String")('Alpha.beta(param="x y")', "X Y") == ""
    assert _typed("java", "any")("Alpha.beta(param=thing)", "thing") == ""
    assert _typed("java", "Array", "integer")("Alpha.beta(param=new int[]{1, 2})", [1, 2]) == ""
    assert _typed("java", "ArrayList", "String")('Alpha.beta(param=new ArrayList<>(Arrays.asList("a")))', ["a"]) == ""
    assert _typed("java", "ArrayList", "String")('Alpha.beta(param=Arrays.asList("a"))', ["a"]) == "type_error:simple"
    assert _typed("java", "HashMap")("Alpha.beta(param=new HashMap<>())", {}) == ""
    assert _typed("java", "Set")("Alpha.beta(param=x)", "x") == "tunesmith:not_comparable"
    assert _typed("java", "any")("Alpha.beta(param=1, param=2)", "x") == "ast_decoder:decoder_failed"
    assert _typed("java", "any")("Alpha.beta(param=)", "x") == "ast_decoder:decoder_failed"
    assert _typed("java", "any")("int counting = 5;", "x") == "ast_decoder:decoder_wrong_output_format"
    protocol = "fc-openai-tools"
    entry = Entry("i", (), _simple_java("integer"), ({"Alpha.beta": {"param": [5]}},), {})
    assert (
        judge(category("simple_java"), entry, [{"Alpha_beta": '{"param": 5}'}], protocol).error_type
        == "type_error:java"
    )
    assert judge(category("simple_java"), entry, [{"Alpha_beta": '{"param": "5"}'}], protocol).error_type == ""


def _simple_java(kind):
    return (
        {"name": "Alpha.beta", "parameters": {"type": "dict", "properties": {"param": {"type": kind}}, "required": []}},
    )


def test_javascript_values_are_source_text():
    pytest.importorskip("tree_sitter")
    assert _typed("javascript", "String")("Alpha.beta(param='x')", "x") == ""
    assert _typed("javascript", "float")("Alpha.beta(param=1e3)", 1000.0) == "type_error:simple"
    assert _typed("javascript", "Bigint")("Alpha.beta(param=5n)", 5) == ""
    assert _typed("javascript", "Boolean")("Alpha.beta(param=true)", True) == ""
    assert _typed("javascript", "dict")("Alpha.beta(param={a: 1, 'b': 'x'})", {"a": [1], "b": ["x"]}) == ""
    assert (
        _typed("javascript", "dict")("Alpha.beta(param={'a': {'b': 1}})", {"a": [{"b": 1}]}) == "value_error:dict_value"
    )
    assert _typed("javascript", "array", "String")("Alpha.beta(param=['a', 'b'])", ["a", "b"]) == ""
    assert _typed("javascript", "array", "String")("Alpha.beta(param=['a,b'])", ["a,b"]) == "value_error:list/tuple"
    assert _typed("javascript", "array", "integer")("Alpha.beta(param=new Array(1, 2))", [1, 2]) == ""
    assert _typed("javascript", "any")("Alpha.beta(param=() => 5)", "() => 5") == ""
    assert _typed("javascript", "any")("f g", "x") == "ast_decoder:decoder_failed"
    assert _typed("javascript", "any")("x", "x") == "ast_decoder:decoder_wrong_output_format"
