"""Functions written down for a system prompt: as JSON, as XML, or like Python documentation.

The texts are the official ones, spaces included (`_generate_function_doc_xml` and `_generate_function_doc_python` in
`bfcl_eval/model_handler/utils.py`, gorilla at 6ea5797).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Schema = Mapping[str, Any]


def described(functions: Sequence[Schema], kind: Literal["python", "xml", "json"]) -> str:
    """Return the page that describes functions."""
    if kind == "json":
        return json.dumps(list(functions), indent=4)
    if kind == "xml":
        return "\n".join(_xml_function(function) for function in functions)
    return "\n\n".join(text for function in functions for text in (_python_function(function), "\n"))


def _xml_function(function: Schema) -> str:
    schema = function["parameters"]
    required = schema.get("required")
    parameters = (_xml_parameter(name, p, required, 2) for name, p in schema.get("properties", {}).items())
    return (
        f'<function name="{function["name"]}">\n  <desc>{function.get("description", "")}</desc>\n  <params>\n'
        f"{''.join(parameters)}  </params>\n</function>\n"
    )


def _xml_parameter(name: str, schema: Schema, required: Sequence[str] | None, level: int) -> str:
    indent = " " * level * 2
    kind = schema.get("type", "string")
    if "items" in schema and "type" in schema["items"]:
        kind = f"{kind}[{schema['items']['type']}]"
    elif "additionalProperties" in schema:
        kind = f"{kind}[{schema['additionalProperties'].get('type', 'string')}]"
    must = required is None or name in required  # without a list, all are required
    attributes = f'name="{name}", type="{kind}", required="{"true" if must else "false"}"'
    if "default" in schema:
        attributes += f' default="{schema["default"]!r}"'
    attributes = attributes.replace(",", "")  # those inside of values go, too
    inner = ""
    if "properties" in schema:
        parts = schema["properties"].items()
        inside = "".join(_xml_parameter(n, p, schema.get("required"), level + 2) for n, p in parts)
        inner = f"{indent}  <params>\n{inside}{indent}  </params>\n"
    return f"{indent}<param {attributes}>\n{indent}  <desc>{_description(schema)}</desc>\n{inner}{indent}</param>\n"


def _description(schema: Schema) -> str:
    choices = f" Enum values: {schema['enum']}." if "enum" in schema else ""
    return f"{schema.get('description', '')}{choices}"


def _python_function(function: Schema) -> str:
    lines = [f"# Function: {function['name']}\n", '    """\n', f"    {function.get('description', '')}\n\n"]
    properties = function.get("parameters", {}).get("properties", {})
    if properties:
        lines.append("    Args:\n")
        for name, schema in properties.items():
            lines += _python_parameter(name, schema, 0)
    return "".join([*lines, '    """\n'])


def _python_parameter(name: str, schema: Schema, depth: int) -> list[str]:
    default = f", default={schema['default']!r}" if "default" in schema else ""
    indent = " " * (8 + 4 * depth)
    lines = [f"{indent}{name} ({_python_type(schema)}{default}): {_description(schema)}\n"]
    for child, described_child in schema.get("properties", {}).items():
        lines += _python_parameter(child, described_child, depth + 1)
    return lines


def _python_type(schema: Schema) -> str:
    kind: str = schema.get("type", "string")
    if kind in ("array", "list", "tuple") and "items" in schema:
        return f"list[{_python_type(schema['items'])}]"
    if kind in ("object", "dict"):
        more = schema.get("additionalProperties")
        return f"dict[str, {_python_type(more)}]" if more is not None else "dict"
    return {"string": "str", "number": "float", "integer": "int", "boolean": "bool"}.get(kind, kind)
