"""Read a plain Java or JavaScript call without a parser: names, strings without escapes, numbers, `true` and `false`.

The result is what `tree_calls` makes of the same text; whatever is not plain is left to it.
"""

from __future__ import annotations

import re
from typing import Any, Literal

_WORD = r"[A-Za-z_]\w*+"
_NAME = rf"{_WORD}(?:\.{_WORD})*+"
_STRINGS = {"java": r'"[^"\\\n\r\x00]*+"', "javascript": r""""[^"\\\n\r\x00]*+"|'[^'\\\n\r\x00]*+'"""}
_NUMBER = r"-?(?:0|[1-9]\d{0,17}+)(?:\.\d{1,17}+)?+(?![\w.])"

# Reserved words, and words that begin something in one version of the language or another.
# fmt: off
_RESERVED = frozenset((
    "abstract", "any", "arguments", "as", "assert", "async", "await", "boolean", "break", "byte", "case", "catch",
    "char", "class", "const", "continue", "debugger", "default", "delete", "do", "double", "else", "enum", "eval",
    "export", "exports", "extends", "final", "finally", "float", "for", "from", "function", "get", "goto", "if",
    "implements", "import", "in", "instanceof", "int", "interface", "let", "long", "module", "native", "new", "non",
    "null", "of", "open", "opens", "package", "permits", "private", "protected", "provides", "public", "record",
    "requires", "return", "sealed", "set", "short", "static", "strictfp", "super", "switch", "synchronized",
    "target", "this", "throw", "throws", "to", "transient", "transitive", "try", "type", "typeof", "undefined",
    "uses", "using", "var", "void", "volatile", "when", "while", "with", "yield", "_",
))
# fmt: on

# A text without its semicolon is complete to the Java parser only if it is long enough: recovery is a matter of cost.
_SHORTEST_JAVA = 40

_Source = Literal["java", "javascript"]


def _patterns(language: _Source) -> tuple[re.Pattern[str], re.Pattern[str]]:
    value = rf"{_STRINGS[language]}|{_NUMBER}|{_WORD}"
    argument = rf"{_WORD} ?= ?(?:{value})"
    return (
        re.compile(rf"({_NAME})\(({argument}(?:, ?{argument})*+)\)", re.ASCII),
        re.compile(rf"({_WORD}) ?= ?({value})", re.ASCII),
    )


_PATTERNS: dict[_Source, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "java": _patterns("java"),
    "javascript": _patterns("javascript"),
}


def plain_call(text: str, language: _Source) -> list[dict[str, dict[Any, Any]]] | None:
    """Return the call of a plain text, or None when it is not plain."""
    if not text.isascii() or (language == "java" and len(text) < _SHORTEST_JAVA):
        return None
    whole, part = _PATTERNS[language]
    found = whole.fullmatch(text)
    if found is None:
        return None
    name, inside = found.groups()
    pairs = part.findall(inside)
    arguments = {word: value[1:-1] if value[0] in "\"'" else value for word, value in pairs}
    words = {*name.split("."), *arguments, *(value for _, value in pairs)}
    if len(arguments) < len(pairs) or not _RESERVED.isdisjoint(words):
        return None
    return [{name: arguments}]
