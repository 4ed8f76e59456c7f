"""Text that wants to do harm or to take for ever is scored wrong, quickly and harmlessly, by bounds on work.

What must not happen leaves a canary behind: a file that is gone, a module that was imported. Time is not asserted;
without bounds most of these would not end within the life of the test run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.evaluate.bfcl import typed_values
from tunesmith.evaluate.bfcl.categories import category
from tunesmith.evaluate.bfcl.dataset import Entry
from tunesmith.evaluate.bfcl.format_sensitivity import FORMS
from tunesmith.evaluate.bfcl.format_sensitivity import judge as judge_form
from tunesmith.evaluate.bfcl.scoring import judge

_PARAMETERS = {
    "type": "dict",
    "properties": {
        "s": {"type": "string"},
        "n": {"type": "integer"},
        "x": {"type": "float"},
        "w": {"type": "array", "items": {"type": "string"}},
        "d": {"type": "dict"},
    },
    "required": [],
}
_TRUTH = {"s": ["a", ""], "n": [1, ""], "x": [1.0, ""], "w": [["a"], ""], "d": [{"a": [1]}, ""]}
_ENTRY = Entry("i_0", (), ({"name": "f", "parameters": _PARAMETERS},), ({"f": _TRUTH},), {})

_DEEP, _MANY = 10_000, 30_000
_HOSTILE = {
    "remove": "f(s=__import__('os').remove({canary!r}))",
    "remove_in_arithmetic": "f(s=__import__('os').remove({canary!r})+1)",
    "remove_in_subscript": "f(s=[__import__('os').remove({canary!r})][0])",
    "remove_in_lambda": "f(s=(lambda: __import__('os').remove({canary!r}))())",
    "remove_in_f_string": "f(s=f'{{__import__(\"os\").remove({canary!r})}}')",
    "remove_in_a_format": "f(s='{{0.__class__}}' % open({canary!r}, 'w'))",
    "remove_as_default": "f(s=lambda x=__import__('os').remove({canary!r}): x)",
    "statement": "import os; os.remove({canary!r})",
    "call_in_the_name": "open({canary!r}, 'w').write(s='x')",
    "comprehension": "f(w=[open({canary!r}, 'w') for _ in range(1)]*2)",
    "import_canary": "f(n=__import__('this')+1)",
    "while": "while True: pass",
    "endless_generator": "f(n=sum(x for x in iter(int, 1))+1)",
    "power": "f(n=9**9**9)",
    "power_of_power": "f(n=9**99999999)",
    "product_of_powers": "f(n=" + "*".join(["9**4000"] * 2_000) + ")",
    "shift": "f(n=1<<10**12)",
    "long_string": "f(s='a'*10**12)",
    "many_long_strings": "f(s=" + "+".join(["'a'*90000"] * 5_000) + ")",
    "list_of_lists": "f(w=[[[['a']*999]*999]*999]*999)",
    "hashed_tuples": "f(d={((((0,)*999,)*999,)*999,)*999: 1})",
    "hashed_in_arithmetic": "f(d={(((0,)*999,)*999,): 1}+1)",
    "wide_format": "f(s='%1000000000d' % 5)",
    "starred_format": "f(s='%*d' % (10**9, 5))",
    "sum_of_lists": "f(w=sum([" + "['a'*9]," * 4_000 + "], [])+['a'])",
    "brackets": "f(w=" + "[" * _DEEP + "]" * _DEEP + ")",
    "open_brackets": "f(w=" + "[" * _DEEP,
    "braces": "f(d=" + "{1:" * _DEEP + "1" + "}" * _DEEP + ")",
    "parentheses": "f(n=" + "(" * _DEEP + "1" + ")" * _DEEP + ")",
    "calls": "f(s=" + "f(s=" * _DEEP + "1" + ")" * _DEEP + ")",
    "minus": "f(n=" + "-" * _MANY + "1)",
    "not": "f(n=" + "not " * _DEEP + "1)",
    "sum": "f(n=" + "1+" * _MANY + "1)",
    "powers": "f(n=" + "1**" * _DEEP + "1)",
    "attributes": "f" + ".f" * _MANY + "(n=1)",
    "lambdas": "f(n=" + "lambda:" * _DEEP + "1)",
    "placeholders": "f(s=f'" + "{1}" * _DEEP + "')",
    "quotes": "f(s=" + "'" * (_MANY + 1) + ")",
    "backslashes": "f(s='" + "\\" * _MANY + "')",
    "digits": "f(n=" + "9" * _MANY + ")",
    "hexadecimal_digits": "f(n=0x" + "f" * _MANY + ")",
    "huge_float": "f(x=" + "9" * 4_000 + ")",
    "nul": "f(s='a\x00b')",
    "surrogate": "f(s='a\ud800')",
    "surrogate_name": "\ud800(s='a')",
    "right_to_left": "f(s='\u202ea')",
    "many_calls": "[" + "f(s='a')," * 9_000 + "]",
    "fifty_megabytes": "f(s='" + "a" * 50_000_000 + "')",
    "fifty_megabytes_of_brackets": "[" * 50_000_000,
    "nothing_but_space": " " * 5_000_000,
}
_CANARY_IMPORT = "this"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    path.write_text("alive")
    sys.modules.pop(_CANARY_IMPORT, None)
    yield path
    assert path.read_text() == "alive"
    assert _CANARY_IMPORT not in sys.modules


def _text(name: str, canary: Path) -> str:
    text = _HOSTILE[name]
    return text.format(canary=str(canary)) if "canary!r" in text else text


@pytest.mark.parametrize("name", sorted(_HOSTILE))
def test_python_answers(name: str, canary: Path) -> None:
    verdict = judge(category("simple_python"), _ENTRY, _text(name, canary))
    assert not verdict.valid
    assert verdict.error_type and len(verdict.error) < 2_000


@pytest.mark.parametrize("name", sorted(_HOSTILE))
def test_other_notations_and_protocols(name: str, canary: Path) -> None:
    text = _text(name, canary)
    for form in {form.notation: form for form in FORMS}.values():
        assert not judge_form(f"format_sensitivity_0:{form.name}:simple_python_0", _ENTRY, text).valid
    for protocol in ("fc-openai-tools", "fc-native-template"):
        assert not judge(category("simple_python"), _ENTRY, text, protocol).valid
    assert not judge(category("simple_python"), _ENTRY, [{"f": text}], "fc-openai-tools").valid


@pytest.mark.parametrize(
    "text",
    [
        '[{"function": "f", "parameters": {}},' + "{}," * 2_000 + "x]",  # 2^2000 ways for the official expression
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 50_000,
        "<functions>" + "<a>" * 20_000 + "</a>" * 20_000 + "</functions>",
        "<functions>" * 9_000,
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><functions>&b;</functions>',
        '<functions><function name="f"><param name="d" type="dict">' + "{" * 9_000 + "</param></function></functions>",
        '<functions><function name="f"><param name="n" type="integer">'
        + "9" * 9_000
        + "</param></function></functions>",
        '<functions><function name="f"><param name="d" type="dict">__import__("this")</param></function></functions>',
        "<TOOLCALL>" * 9_000,
    ],
)
def test_texts_against_the_other_readers(text: str, canary: Path) -> None:
    for form in FORMS:
        assert not judge_form(f"format_sensitivity_0:{form.name}:simple_python_0", _ENTRY, text).valid


_LANGUAGES = {
    "java": [
        "Alpha.beta(value=" + "(" * _DEEP + "1" + ")" * _DEEP + ")",
        "Alpha.beta(value=" + "!" * 14_500 + "x)",
        "Alpha.beta(value=" + "a=" * 4_500 + "x)",
        "Alpha.beta(value=" + "a?b:" * 2_400 + "x)",
        "if(x)" * 1_990,
        "{" * 9_900,
        "Alpha.beta(value=new ArrayList<>() {{" + " " * 15_000 + "}})",
        'Alpha.beta(value=Runtime.getRuntime().exec("rm"))',
        "Alpha.beta(value=" + "x" * 50_000_000 + ")",
        "Alpha.beta(value=\ud800)",
    ],
    "javascript": [
        "alphabeta(value=" + "[" * _DEEP + "]" * _DEEP + ")",
        "alphabeta(value=[" + "[1]," * 2_000 + "[1]+x])",
        "alphabeta(value={" + "a:" * 4_900 + "1})",
        "alphabeta(value=" + "`${" * 3_000,
        "alphabeta(value=require('fs').unlinkSync('canary'))",
        "x" * 50_000_000,
    ],
}


@pytest.mark.parametrize(
    ("language", "number"), [(language, n) for language, texts in _LANGUAGES.items() for n in range(len(texts))]
)
def test_java_and_javascript_answers(language: str, number: int, canary: Path) -> None:
    pytest.importorskip("tree_sitter")
    for kind in ("String", *(("ArrayList", "HashMap") if language == "java" else ("array", "dict"))):
        schema = {"type": kind, "items": {"type": "String"}}
        name = "Alpha.beta" if language == "java" else "alphabeta"
        function = {"name": name, "parameters": {"type": "dict", "properties": {"value": schema}, "required": []}}
        entry = Entry("i_0", (), (function,), ({name: {"value": [["a"], {"a": [1]}, "a"]}},), {})
        assert not judge(category(f"simple_{language}"), entry, _LANGUAGES[language][number]).valid


@pytest.mark.parametrize(
    "prefix", ["new ArrayList<>() {{", "new HashMap<>() {{", "new int[] {", "[[1],", "{a:", "[", "new "]
)
@pytest.mark.parametrize(
    "filling",
    [
        " ",
        "new HashMap<",
        "new HashMap<>(){",
        "new ArrayList<>() {{ ",
        'put("a',
        "add(",
        "[1],",
        "a:b,",
        "a",
        "[",
        ">(){",
    ],
)
def test_converters_take_any_source(prefix: str, filling: str) -> None:
    """Over the API a value is any string: the converters' expressions meet it directly."""
    text = (prefix + filling * 10_000)[:9_990]
    kinds = [(typed_values.java_value, kind) for kind in ("ArrayList", "Array", "HashMap")]
    kinds += [(typed_values.javascript_value, kind) for kind in ("array", "dict")]
    for ending in ("", "x", "}}", "]"):
        for convert, kind in kinds:
            try:
                convert(text + ending, kind, "String")
            except typed_values.NotConvertible:
                continue


def test_the_command_scores_hostile_answers_and_leaves_the_canary_alone(tmp_path: Path, canary: Path) -> None:
    import json

    items = [{"id": f"simple_python_{n}", "question": [[]], "function": list(_ENTRY.functions)} for n in range(2)]
    truth = [{"id": item["id"], "ground_truth": [{"f": _TRUTH}]} for item in items]
    (tmp_path / "data/possible_answer").mkdir(parents=True)
    for place, lines in (("data", items), ("data/possible_answer", truth)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / place / "BFCL_v4_simple_python.json").write_text(text)
    answers = [_text("remove_in_arithmetic", canary), _text("fifty_megabytes", canary)]
    with (tmp_path / "answers.jsonl").open("w") as file:
        for item, answer in zip(items, answers, strict=True):
            file.write(json.dumps({"id": item["id"], "response": answer}) + "\n")
    arguments = ["--responses", str(tmp_path / "answers.jsonl"), "--out", str(tmp_path / "verdicts.jsonl")]
    command = [sys.executable, "-m", "tunesmith", "bfcl", "score", "--category", "simple_python", *arguments]
    done = subprocess.run(
        [*command, "--data", str(tmp_path / "data")], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert "simple_python: 0.00 % (0 of 2 right)" in done.stdout
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [v["error_type"] for v in verdicts] == ["ast_decoder:decoder_failed"] * 2
