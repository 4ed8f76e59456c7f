"""What a model is asked, per protocol. The wording is the official one, letter by letter: numbers hang on it.

Protocols:
    prompt              functions and the format of the answer stand in a system prompt; no tools are sent
    fc-openai-tools     functions go as `tools` of /v1/chat/completions, types and names converted to what it allows
    fc-native-template  functions go as `tools` unconverted (`dict`, `float`, dots in names), for the model's template

Source: `bfcl_eval/constants/default_prompts.py`, `bfcl_eval/utils.py` (hints), `bfcl_eval/model_handler/utils.py`
(prompts, tools), gorilla at 6ea5797.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.bfcl.categories import Category, Language
from tunesmith.evaluate.bfcl.dataset import Entry
from tunesmith.evaluate.bfcl.decoding import Protocol
from tunesmith.evaluate.bfcl.format_sensitivity import DEFAULT_FORM, Form
from tunesmith.evaluate.bfcl.function_pages import described
from tunesmith.evaluate.client import Request
from tunesmith.rows.conversation import Message

_HINTS: dict[Language, str] = {"python": "Python 3", "java": "Java 8 SDK", "javascript": "JavaScript"}
_NAMES: dict[Language, str] = {"java": "Java", "javascript": "JavaScript"}
_LISTS = {"java": ("ArrayList", "Array"), "javascript": ("array",)}

_FORMATS = {
    "python": "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]",
    "json": (
        '```json\n[{"function":"func_name1","parameters":{"param1":"value1","param2":"value2"...}},'
        '{"function":"func_name2","parameters":{"param":"value"}}]\n```'
    ),
    "verbose_xml": (
        '<functions><function name="func_name1"><params><param name="param1" value="value1" type="type1"/>'
        '<param name="param2" value="value2" type="type2"/>...</params></function><function name="func_name2"><params>'
        '<param name="param3" value="value3" type="type3"/></params></function></functions>'
    ),
    "concise_xml": (
        '<functions><function name="func_name1"><param name="param1" type="type1">value1</param>'
        '<param name="param2" type="type2">value2</param>...</function><function name="func_name2">'
        '<param name="param3" type="type3">value</param></function></functions>'
    ),
}
_XML_TYPES = (
    "The type fields of the parameters in your function calls must be one of: string, integer, float, boolean, array, "
    "dict, or tuple."
)
_STYLES: dict[str, dict[str, str]] = {
    "classic": {
        "persona": "You are an expert in composing functions.",
        "task": (
            "You are given a question and a set of possible functions. Based on the question, you will need to make "
            "one or more function/tool calls to achieve the purpose. If none of the functions can be used, point it "
            "out. If the given question lacks the parameters required by the function, also point it out."
        ),
        "plain": (
            "You should only return the function calls in your response.\n\nIf you decide to invoke any of the "
            "function(s), you MUST put it in the format of {output}. {types} You SHOULD NOT include any other text in "
            "the response."
        ),
        "tagged": (
            "You should only return the function calls in the <TOOLCALL> section. If you decide to invoke any of the "
            "function(s), you MUST put it in the format of <TOOLCALL>{output}</TOOLCALL>. {types} You SHOULD NOT "
            "include any other text in the response."
        ),
        "turns": (
            "At each turn, you should try your best to complete the tasks requested by the user within the current "
            "turn. Continue to output functions to call until you have fulfilled the user's request to the best of "
            "your ability. Once you have no more functions to call, the system will consider the current turn complete "
            "and proceed to the next turn or task."
        ),
        "tools": "Here is a list of functions in {kind} format that you can invoke.\n{functions}\n",
    },
    "experimental": {
        "persona": "You are an expert in generating structured function calls.",
        "task": (
            "You are given a user query and a set of available functions. Your task is to produce one or more "
            "function/tool calls to fulfill the user's request. If no suitable function exists, or required parameters "
            "are missing, clearly indicate this."
        ),
        "plain": (
            "Respond with only the function calls.\n\nYou MUST format it exactly as {output}. {types} Do NOT include "
            "any other text."
        ),
        "tagged": (
            "Return only the function calls enclosed in <TOOLCALL> tags.\n\nYou MUST format it exactly as "
            "<TOOLCALL>{output}</TOOLCALL>. {types} Do NOT include any other text."
        ),
        "turns": (
            "At every turn, aim to complete the user's tasks within that turn. Continue emitting function calls until "
            "the request is satisfied to the best of your ability. Once no more calls are needed, the system will "
            "proceed to the next turn."
        ),
        "tools": "Below is a list of callable functions in the {kind} style:\n{functions}\n",
    },
}
_LAYOUTS = {
    "plaintext": "{persona}{task}\n\n{call}\n\n{turns}\n\n{tools}",  # no space between persona and task
    "markdown": (
        "{persona}\n\n## Task\n{task}\n\n## Tool Call Format\n{call}\n\n## Multi-turn Behavior\n{turns}\n\n"
        "## Available Tools\n{tools}"
    ),
}


def request(
    category: Category, entry: Entry, protocol: Protocol, max_tokens: int, form: Form = DEFAULT_FORM
) -> Request:
    """Return the request for a single-turn item; `form` concerns `prompt` only."""
    functions = hinted(entry.functions, category.language)
    messages = list(entry.turns[0])
    if protocol == "prompt":
        return Request(tuple(prompted(messages, system_prompt(functions, form))), (), max_tokens)
    tools = openai_tools(functions) if protocol == "fc-openai-tools" else native_tools(functions)
    return Request(tuple(messages), tools, max_tokens)


def prompted(messages: Sequence[Message], prompt: str) -> list[Message]:
    """Return messages behind a system prompt; one that is there already is put after it."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{prompt}\n\n{messages[0]['content']}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def system_prompt(functions: Sequence[Mapping[str, Any]], form: Form = DEFAULT_FORM) -> str:
    """Return the system prompt that describes functions and asks for calls in a form."""
    style = _STYLES[form.style]
    types = _XML_TYPES if form.notation in ("verbose_xml", "concise_xml") else ""
    call = style["tagged" if form.tagged else "plain"].format(output=_FORMATS[form.notation], types=types)
    tools = style["tools"].format(kind=form.documents, functions=described(functions, form.documents))
    return _LAYOUTS[form.layout].format(
        persona=style["persona"], task=style["task"], call=call, turns=style["turns"], tools=tools
    )


def hinted(functions: Sequence[Mapping[str, Any]], language: Language) -> list[dict[str, Any]]:
    """Return functions with the hint on their syntax; in Java and JavaScript every parameter becomes a string."""
    made = []
    for original in functions:
        function: dict[str, Any] = copy.deepcopy(dict(original))
        function["description"] += f" Note that the provided function is in {_HINTS[language]} syntax."
        if language != "python":
            for parameter in function["parameters"]["properties"].values():
                _as_source_text(parameter, language)
        made.append(function)
    return made


def _as_source_text(parameter: dict[str, Any], language: Language) -> None:
    kind, name = parameter["type"], _NAMES[language]
    if kind == "any":
        hint = f" This parameter can be of any type of {name} object in string representation."
    else:
        hint = f" This is {name} {kind} type parameter in string representation."
    if kind in _LISTS[language]:
        element = parameter.pop("items")["type"]
        hint += f" The list elements are of type {element}; they are not in string representation."
    if language == "javascript" and kind == "dict" and "properties" in parameter:
        schema = json.dumps(parameter.pop("properties"))
        hint += f" The dictionary entries have the following schema; they are not in string representation. {schema}"
    parameter["description"] += hint
    parameter["type"] = "string"


_JSON_TYPES = {
    **dict.fromkeys(("integer", "byte", "short", "long", "Bigint"), "integer"),
    **dict.fromkeys(("number", "float", "double"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "list", "tuple", "ArrayList", "Array", "Queue", "Stack"), "array"),
    **dict.fromkeys(("dict", "object", "HashMap", "Hashtable"), "object"),
}  # anything else is a string


def openai_tools(functions: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return functions as OpenAI's API takes them: dots of names are underscores, types are JSON Schema's."""
    made = []
    for original in functions:
        function: dict[str, Any] = copy.deepcopy(dict(original))
        function["name"] = function["name"].replace(".", "_")
        function["parameters"]["type"] = "object"
        _convert_types(function["parameters"]["properties"])
        made.append({"type": "function", "function": function})
    return tuple(made)


def _convert_types(properties: dict[str, Any]) -> None:
    """Convert as deep as the official conversion goes: properties, elements, and elements of elements."""
    for parameter in properties.values():
        if parameter.get("type") == "float":
            parameter["format"] = "float"
            parameter["description"] = parameter.get("description", "") + " This is a float type value."
        parameter["type"] = _json_type(parameter.get("type", "string"))
        if parameter["type"] not in ("array", "object"):
            continue
        if "properties" in parameter:
            _convert_types(parameter["properties"])
        elif "items" in parameter:
            _convert_elements(parameter["items"])


def _convert_elements(items: dict[str, Any]) -> None:
    items["type"] = _json_type(items["type"])
    if items["type"] == "array" and "items" in items:
        items["items"]["type"] = _json_type(items["items"]["type"])
    elif items["type"] == "object" and "properties" in items:
        _convert_types(items["properties"])


def _json_type(kind: str) -> str:
    return _JSON_TYPES.get(kind, "string")


def native_tools(functions: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return functions as they are, in the envelope that servers take apart before the template sees them."""
    return tuple({"type": "function", "function": dict(function)} for function in functions)
