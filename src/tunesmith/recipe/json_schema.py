"""The recipe's classes as a JSON Schema and as a page of documentation, both from `schema.py` alone."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tunesmith.recipe import schema
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.typed import Bound, Shorthand, dataclass_of, expected, hints
from tunesmith.recipe.walk import plain

_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


@cache
def field_docs() -> dict[tuple[str, str], str]:
    """Return the string under each field of `schema.py`, by (class, field)."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for item, following in zip(node.body, [*node.body[1:], None], strict=True):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and documented:
                assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                found[node.name, item.target.id] = " ".join(str(following.value.value).split())
    return found


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe file."""
    definitions: dict[str, Any] = {}
    root = _object(Recipe, definitions)
    root["properties"] = {
        "extends": {"type": "string", "description": "Another recipe, relative to this file; this one goes on top."}
    } | root["properties"]
    # A recipe that extends another may leave out what the other one has.
    root["anyOf"] = [{"required": ["extends"]}, {"required": root.pop("required")}]
    return (
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tunesmith recipe"}
        | root
        | {"$defs": definitions}
    )


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field in dataclasses.fields(cls):
        entry = _value(hints(cls)[field.name], definitions)
        text = field_docs().get((cls.__name__, field.name))
        if text:
            entry = {"description": text} | entry
        if field.default is not dataclasses.MISSING:
            entry["default"] = plain(field.default)
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = entry
    document: dict[str, Any] = {"type": "object", "description": _first_line(cls), "properties": properties}
    return document | {"additionalProperties": False} | ({"required": required} if required else {})


def _value(annotation: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extras = get_args(annotation)
        return _annotated(_value(inner, definitions), extras, inner)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        if annotation.__name__ not in definitions:
            definitions[annotation.__name__] = {}
            definitions[annotation.__name__] = _object(annotation, definitions)
        return {"$ref": f"#/$defs/{annotation.__name__}"}
    if origin is Literal:
        return {"enum": list(get_args(annotation))}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_value(option, definitions) for option in get_args(annotation)]}
    if origin is tuple:
        return {"type": "array", "items": _value(get_args(annotation)[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(get_args(annotation)[1], definitions)}
    if annotation is type(None):
        return {"type": "null"}
    return {"type": _TYPES[annotation]}


def _annotated(entry: dict[str, Any], extras: list[Any], inner: Any) -> dict[str, Any]:
    names = {"minimum": "minimum", "above": "exclusiveMinimum", "maximum": "maximum", "below": "exclusiveMaximum"}
    for extra in extras:
        if isinstance(extra, Bound):
            limits = {key: getattr(extra, ours) for ours, key in names.items() if getattr(extra, ours) is not None}
            entry |= limits | ({"pattern": f"^{extra.pattern}$"} if extra.pattern else {})
        elif isinstance(extra, Shorthand) and extra.key == "*":
            cls = dataclass_of(inner)
            assert cls is not None
            entry = {"anyOf": [entry, {"type": "array", "items": {"enum": list(hints(cls))}}]}
        elif isinstance(extra, Shorthand) and get_origin(inner) is tuple:
            items = {"anyOf": [entry["items"], {"type": "string"}]}
            entry = {"anyOf": [{"type": "array", "items": items}, {"type": "string"}]}
        elif isinstance(extra, Shorthand):
            entry = {"anyOf": [entry, {"type": "string"}]}
    return entry


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n")[0]


def recipe_page() -> str:
    """Return `docs/recipe.md`: every key with its type, default and meaning, in pipeline order."""
    lines = [
        "# The recipe",
        "",
        "One YAML file, read top to bottom. This page is made from `src/tunesmith/recipe/schema.py` by `make docs`.",
        "",
        "- `extends: other.yaml` puts this recipe on top of another: mappings are merged, everything else is replaced.",
        "- `--set train.lora.r=32` on the command line goes on top of both. The value is read as YAML.",
        "- `${env:NAME}` in any text stands for an environment variable. The reference, never the value, is written to",
        "  snapshots, hashes, logs and reports.",
        "- Paths are relative to the directory the command is run in; `extends` is relative to the recipe.",
        "- `auto` means: decide and tell me (`tunesmith plan` shows each decision with its reason).",
        '- A section whose default is "not asked for" is not run when it is missing or `null`.',
        "- Unknown keys, wrong types and impossible combinations are errors, all reported at once.",
        "",
    ]
    lines += _section(Recipe, "", "The top level")
    return "\n".join(lines).rstrip() + "\n"


def _section(cls: type, prefix: str, title: str) -> list[str]:
    level = "##" if prefix.count(".") <= 1 else "###"
    lines = [
        f"{level} {title}",
        "",
        inspect.getdoc(cls) or "",
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    for field in dataclasses.fields(cls):
        annotation = hints(cls)[field.name]
        below = dataclass_of(annotation)
        default = _default(field)
        text = field_docs().get((cls.__name__, field.name)) or (_first_line(below) if below else "")
        words = "section" if below else expected(annotation) + _limits(annotation)
        words = "list of sources" if below is schema.Source else words
        lines.append(f"| `{prefix}{field.name}` | {words} | {default} | {text} |".replace("  ", " "))
        if below is not None and not (below is schema.Source and field.name == "validation"):
            inner += _section(below, f"{prefix}{field.name}.", f"`{prefix}{field.name}`")
    return [*lines, "", *inner]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is not dataclasses.MISSING else "**required**"
    value = plain(field.default)
    if value is None:
        return "not asked for"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value not in ([], "") else "none"


def _limits(annotation: Any) -> str:
    bounds: list[Bound] = [e for e in getattr(annotation, "__metadata__", ()) if isinstance(e, Bound)]
    for option in get_args(annotation):
        bounds += [e for e in getattr(option, "__metadata__", ()) if isinstance(e, Bound)]
    if not bounds:
        return ""
    bound = bounds[0]
    words = [
        f"{sign} {limit:g}"
        for sign, limit in (("≥", bound.minimum), (">", bound.above), ("≤", bound.maximum), ("<", bound.below))
        if limit is not None
    ]
    return f" {', '.join(words)}" if words else ""
