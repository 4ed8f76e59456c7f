"""Read a call in Java's or JavaScript's syntax, through the tree-sitter grammars that the official decoder uses.

Only a grammar of the whole language says which text is an expression of it, and the verdict hangs on that; so the
parsers are the official ones (extra `bfcl`). They need no recursion; walking their trees is bounded by `_MOST_DEPTH`.

What is made of each node repeats `bfcl_eval/model_handler/parser/java_parser.py` and `js_parser.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tunesmith.errors import missing_extra
from tunesmith.evaluate.bfcl.plain_source import Source, plain_call
from tunesmith.evaluate.bfcl.python_calls import Call, Undecodable

MOST_CHARACTERS = 10_000
_MOST_DEPTH = 250


def read_java_call(text: str) -> list[Call] | dict[str, Any]:
    """Return the first call of a Java source text; an empty mapping when there is none, which is no list of calls.

    Strings are unquoted, other arguments are source text.

    Raises:
        Undecodable: a syntax error, or an argument given twice.
        EnvironmentProblem: tree-sitter is not installed.
    """
    plain = _plain_call(text, "java")
    if plain is not None:
        return plain
    if not text:
        return {}
    call = _first_java_call(_root(text, "java"), text, 0)
    return [call] if call is not None else {}


def read_javascript_call(text: str) -> list[Call] | None:
    """Return the first call that is a statement of its own; None when there is none. Arguments are source text.

    Raises:
        Undecodable: a syntax error, or an argument given twice.
        EnvironmentProblem: tree-sitter is not installed.
    """
    plain = _plain_call(text, "javascript")
    if plain is not None:
        return plain
    if not text:
        return None
    for statement in _root(text, "javascript").children:
        if statement.type != "expression_statement":
            continue
        for node in statement.children:
            if node.type == "call_expression":
                return [{_source(node.children[0]): _javascript_arguments(node.children[1])}]
    return None


def _plain_call(text: str, language: Source) -> list[Call] | None:
    plain = plain_call(text, language)
    if plain is None:
        return None
    name, pairs = plain
    arguments = dict(pairs)
    if len(arguments) < len(pairs):
        raise Undecodable("an argument is given twice")
    return [{name: arguments}]


@cache
def _parser(language: str) -> Any:
    try:
        import tree_sitter
        import tree_sitter_java
        import tree_sitter_javascript
    except ImportError:
        raise missing_extra("tree-sitter", "bfcl", needed_for=f"BFCL's {language} category") from None
    grammar = {"java": tree_sitter_java, "javascript": tree_sitter_javascript}[language].language()
    if hasattr(tree_sitter.Parser, "set_language"):  # before 0.22
        parser = tree_sitter.Parser()
        parser.set_language(tree_sitter.Language(grammar, language))
        return parser
    return tree_sitter.Parser(tree_sitter.Language(grammar))


def _root(text: str, language: str) -> Any:
    """Parse a text and return the tree's root.

    Raises:
        Undecodable: it is too long or is no source text of the language.
    """
    if len(text) > MOST_CHARACTERS:
        raise Undecodable(f"{len(text):,} characters are more than any call has")
    try:
        root = _parser(language).parse(text.encode()).root_node
    except UnicodeEncodeError:
        raise Undecodable("half of a surrogate pair") from None
    # A token that the parser made up (MISSING) is an error to it, but not to the official decoder.
    if root.has_error and "(ERROR" in (root.sexp() if hasattr(root, "sexp") else str(root)):
        raise Undecodable(f"no {language} syntax")
    return root


def _source(node: Any) -> str:
    return str(node.text.decode())


def _first_java_call(node: Any, text: str, depth: int) -> Call | None:
    if depth > _MOST_DEPTH:
        raise Undecodable("nested too deeply")
    if node.type == "method_invocation":
        name = _slice(node.child_by_field_name("name"), text)
        of = node.child_by_field_name("object")
        arguments = node.child_by_field_name("arguments")
        return {f"{_slice(of, text)}.{name}" if of else name: _java_arguments(arguments, text)}
    for child in node.children:
        call = _first_java_call(child, text, depth + 1)
        if call is not None:
            return call
    return None


def _slice(node: Any, text: str) -> str:
    """Return a node's source as the official decoder cuts it: by byte offsets, out of a text of characters."""
    return text[node.start_byte : node.end_byte]


def _java_arguments(node: Any, text: str) -> dict[Any, Any]:
    found = _Arguments()
    for child in node.children:
        if child.type == "assignment_expression":
            found.add(_slice(child.children[0], text), _java_value(child.children[2], text, 0))
        elif child.type in ("identifier", "class_literal", "set"):
            found.add(None, _java_value(child, text, 0))
    return found.values


def _javascript_arguments(node: Any) -> dict[Any, Any]:
    found = _Arguments()
    for child in node.children:
        if child.type == "assignment_expression":
            value = _source(child.children[2])
            quoted = any(value.startswith(quote) and value.endswith(quote) for quote in "\"'")
            found.add(_source(child.children[0]), value[1:-1] if quoted else value)
        elif child.type in ("identifier", "true"):
            found.add(None, _source(child))
    return found.values


class _Arguments:
    """Arguments by name; those without one are kept under None, of which there may be one, too."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def add(self, name: str | None, value: str) -> None:
        if name in self.values:
            raise Undecodable(f"argument {name!r} is given twice")
        self.values[name] = value


_PLAIN = ("identifier", "class_literal", "type_identifier", "method_invocation")


def _java_value(node: Any, text: str, depth: int) -> str:
    """Return an argument's source without white space between tokens; a string of its own without its quotes."""
    if depth > _MOST_DEPTH:
        raise Undecodable("nested too deeply")

    def nested(child: Any) -> str:
        if child is None:
            raise Undecodable("a part of an expression is missing")
        return _java_value(child, text, depth + 1)

    if node.type in ("string_literal", "character_literal"):
        return _slice(node, text) if depth else _slice(node, text)[1:-1]
    if node.type in _PLAIN:
        return _slice(node, text)
    special = _SPECIAL.get(node.type)
    if special is not None:
        return special(node, nested)
    children = node.children
    return "".join(map(nested, children)) if children else _slice(node, text)


def _new_array(node: Any, nested: Callable[[Any], str]) -> str:
    return f"new {nested(node.child_by_field_name('type'))}[]{nested(node.child_by_field_name('value'))}"


def _new_object(node: Any, nested: Callable[[Any], str]) -> str:
    """Return the constructor call; a class body behind it is dropped, as the official decoder does."""
    kind, arguments = node.child_by_field_name("type"), node.child_by_field_name("arguments")
    texts = [nested(child) for child in arguments.children if child.type not in ",()"] if arguments else []
    return f"new {nested(kind)}({', '.join(texts)})"


_SPECIAL = {"array_creation_expression": _new_array, "object_creation_expression": _new_object}
