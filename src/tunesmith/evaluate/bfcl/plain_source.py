"""Read a plain Java or JavaScript call without a parser: names, literals, and what models make lists and maps of.

The result is what `tree_calls` makes of the same text; whatever is not plain is left to it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, NamedTuple

Source = Literal["java", "javascript"]

# Reserved words, and words that begin something in one version of the language or another.
# fmt: off
_EVERYWHERE = (
    "abstract", "assert", "async", "await", "boolean", "break", "byte", "case", "catch", "char", "class", "const",
    "continue", "default", "do", "double", "else", "enum", "export", "extends", "false", "final", "finally", "float",
    "for", "goto", "if", "implements", "import", "in", "instanceof", "int", "interface", "long", "native", "new",
    "null", "package", "private", "protected", "public", "return", "short", "static", "strictfp", "super", "switch",
    "synchronized", "this", "throw", "throws", "transient", "true", "try", "var", "void", "volatile", "while", "with",
    "yield", "_",
)
_RESERVED: dict[Source, frozenset[str]] = {
    "java": frozenset((
        *_EVERYWHERE, "exports", "module", "non", "open", "opens", "permits", "provides", "record", "requires",
        "sealed", "transitive", "uses", "when",
    )),
    "javascript": frozenset((
        *_EVERYWHERE, "arguments", "as", "debugger", "delete", "eval", "from", "function", "get", "let", "of", "set",
        "target", "typeof", "undefined", "using",
    )),
}
# fmt: on

# A text without its semicolon is complete to the Java parser only if it is long enough: recovery is a matter of cost.
_SHORTEST_JAVA = 40

_WORD = r"[A-Za-z_]\w*+"
_NAME = rf"{_WORD}(?:\.{_WORD})*+"
_DIGITS = r"(?:0|[1-9]\d{0,17}+)"


def _string(quote: str) -> str:
    plain = rf"[^{quote}\\\n\r\x00]*+"
    return rf"{quote}{plain}(?:\\[bfnrt\"'\\]{plain})*+{quote}"


def _listed(value: str) -> str:
    return rf"(?:(?:{value})(?:,(?! ?[\])}}>]) ?|(?=[\])}}>])))*+"


def _call(value: str) -> str:
    return rf"{_NAME}\({_listed(value)}\)"


_LITERAL = "(?:false|null|true)"
_PRIMITIVE = "(?:boolean|byte|char|double|float|int|long|short)"
_STRING = _string('"')
_SCALAR = rf"{_STRING}|-?{_DIGITS}(?:\.\d{{1,17}}+[dDfF]?+|[dDfFlL])?+(?![\w.])|{_NAME}"
_VALUE = rf"{_call(_SCALAR)}|{_SCALAR}"
_KIND = rf"{_NAME}(?:<{_listed(rf'(?!{_LITERAL}){_WORD}')}>)?+"


class _Syntax(NamedTuple):
    """Expressions for what is plain in a language: whole calls, their arguments, and words that may be reserved."""

    whole: re.Pattern[str]
    argument: re.Pattern[str]
    words: re.Pattern[str]


def _syntax(value: str, strings: str) -> _Syntax:
    argument = rf"{_WORD} ?= ?(?:{value})"
    return _Syntax(
        re.compile(rf"({_NAME})\((?!\))({_listed(argument)})\)", re.ASCII),
        re.compile(rf"({_WORD}) ?= ?({value})", re.ASCII),
        re.compile(rf"{strings}|\bnew (?:{_PRIMITIVE}\b)?+|\b{_LITERAL}\b(?= ?[,)\]}}])|({_WORD})", re.ASCII),
    )


def _java() -> _Syntax:
    body = rf"\{{\{{ ?(?:{_call(_SCALAR)}; ?)*+\}}\}}"
    array = rf"new (?:{_PRIMITIVE}|{_WORD})\[\] ?\{{{_listed(_SCALAR)}\}}"
    return _syntax(rf"{array}|new {_KIND}\({_listed(_VALUE)}\)(?: ?{body})?+|{_VALUE}", _STRING)


def _javascript() -> _Syntax:
    strings = "|".join(map(_string, "\"'"))
    value = rf"{strings}|-?{_DIGITS}(?:n|\.\d{{1,17}}+)?+(?![\w.])|{_NAME}"
    for _ in range(2):
        pair = rf"(?:{strings}|{_WORD}): ?(?:{value})"
        value = rf"\[{_listed(value)}\]|\{{{_listed(pair)}\}}|(?:new )?+{_call(value)}|{value}"
    return _syntax(value, strings)


@cache
def _syntax_of(language: Source) -> _Syntax:
    """Compile a language's expressions, which takes some milliseconds."""
    return _java() if language == "java" else _javascript()


def plain_call(text: str, language: Source) -> tuple[str, list[tuple[str, str]]] | None:
    """Return the function's name and the arguments of a plain text, or None when it is not plain."""
    if not text.isascii() or (language == "java" and len(text) < _SHORTEST_JAVA):
        return None
    whole, argument, words = _syntax_of(language)
    found = whole.fullmatch(text)
    if found is None or not _RESERVED[language].isdisjoint(words.findall(text)):
        return None
    name, inside = found.groups()
    return name, [(word, _value(value, language)) for word, value in argument.findall(inside)]


def _value(text: str, language: Source) -> str:
    if text[0] == '"' or text[0] == "'":
        return text[1:-1]
    return _made(text) if language == "java" and text.startswith("new ") else text


@cache
def _java_parts() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Compile expressions for an object that is made, for each value in it, and for strings or spaces."""
    made = re.compile(rf"new ({_KIND})\(({_listed(_VALUE)})\)", re.ASCII)
    return made, re.compile(_VALUE, re.ASCII), re.compile(rf"({_STRING})| ", re.ASCII)


def _made(text: str) -> str:
    """Return how `tree_calls` writes what `new` makes: no space in an array, `, ` between arguments, no class body."""
    an_object, values, spaces = _java_parts()
    made = an_object.match(text)
    if made is None:
        return "new " + spaces.sub(lambda found: found[1] or "", text[len("new ") :])
    kind, inside = made.groups()
    return f"new {kind.replace(' ', '')}({', '.join(values.findall(inside))})"
