"""JSON in the shapes that people have: one object per line, an array, one object around an array, objects in a row.

An array and objects in a row are parsed through a window, so that a file larger than memory is no trouble; an object
around an array is read whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Any, NoReturn

from tunesmith.errors import DataError
from tunesmith.rows.row import SHOWN_CHARACTERS, BadRow, Row, bad_row

_WINDOW_BYTES = 1 << 20
_SAMPLED_LINES = 5
_LONGEST_SAMPLED_LINE = 64 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89abAB]|[\ud800-\udfff]")
_NEXT_OBJECT = re.compile(r"\n(?=\{)")
# Keys that make an object a row of its own, whatever lists it holds.
_ROW_KEYS = frozenset(["messages", "conversations", "prompt", "instruction", "chosen", "chosen_messages", "mapping"])
_LIST_KEYS = ("data", "rows", "train", "examples", "conversations")


def read_json(file: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a JSON or JSONL file, told apart by their content, not by the file's name.

    Raises:
        DataError: the file is not UTF-8 as a whole, or an array is broken.
    """
    sample = _first_lines(file)
    if not sample:
        return iter(())
    if sample[0].startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("the file is UTF-16", where=name, do="save it as UTF-8")
    file.seek(0)
    full = [line for line in sample if line.strip()]
    if not full:
        return iter(())
    return _lines(file, name) if _is_line_wise(full, name) else _documents(file, name)


class _Parser:
    """JSON as the standard has it: Python's own parser also takes NaN and Infinity."""

    def __init__(self) -> None:
        self._refused: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._refused.append)

    def value_at(self, text: str, position: int) -> tuple[Any, int, str]:
        """Return the value that begins here, where it ends, and what is wrong with it although it could be read.

        Raises:
            json.JSONDecodeError: no value begins here, or the text ends before it does.
        """
        self._refused.clear()
        try:
            value, end = self._decoder.raw_decode(text, position)
        except RecursionError:
            raise json.JSONDecodeError("the JSON is nested too deeply", text, position) from None
        except json.JSONDecodeError:
            raise
        except ValueError:
            raise json.JSONDecodeError("a number has thousands of digits", text, position) from None
        problem = f"{self._refused[0]} is not JSON" if self._refused else _bad_characters(text[position:end], value)
        return value, end, problem


def parse(text: str, parser: _Parser | None = None) -> Any:
    """Parse one JSON value.

    Args:
        parser: one to use again; making it costs as much as parsing a short row.

    Raises:
        ValueError: it is not valid JSON, with the reason.
    """
    value, end, problem = (parser or _Parser()).value_at(text, _match_end(text, 0))
    if _match_end(text, end) != len(text):
        raise json.JSONDecodeError("there is more behind the value", text, end)
    if problem:
        raise ValueError(problem)
    return value


def _first_lines(file: IO[bytes]) -> list[bytes]:
    lines: list[bytes] = []
    while len([line for line in lines if line.strip()]) < _SAMPLED_LINES:
        line = file.readline(_LONGEST_SAMPLED_LINE)
        if not line:
            break
        lines.append(line if lines else line.removeprefix(codecs.BOM_UTF8))
    return lines


def _is_line_wise(full: list[bytes], name: str) -> bool:
    """Return whether each line is a row, going by the first lines that are not blank."""
    if full[0].lstrip().startswith(b"["):
        return False
    if len(full) == 1 and _is_object(full[0]):
        return _list_inside(parse(full[0].decode("utf-8")), name) is None
    if not name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return all(map(_is_object, full))
    # A first line that is no object is broken, or begins one that goes on below; then the next line is indented.
    goes_on = full[0].strip() == b"{" or (len(full) > 1 and full[1][:1] in (b" ", b"\t"))
    return _is_object(full[0]) or not goes_on


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse(line.decode("utf-8")), dict)
    except ValueError:
        return False


def _lines(file: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    parser = _Parser()
    for number, raw in enumerate(file, 1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
            value = parse(text, parser)
        except UnicodeDecodeError as error:
            yield bad_row(name, number, f"not valid UTF-8 at byte {error.start + 1}", line.decode("utf-8", "replace"))
        except json.JSONDecodeError as error:
            yield bad_row(name, number, f"not valid JSON: {error.msg} at character {error.pos + 1}", text)
        except ValueError as error:
            yield bad_row(name, number, str(error), text)
        else:
            yield _row(name, number, value)


def _row(name: str, number: int, value: Any) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(name, number, value)
    kind = {list: "an array", str: "a text", type(None): "null"}.get(type(value), "a number")
    return bad_row(name, number, f"a row must be a JSON object, this is {kind}", json.dumps(value, ensure_ascii=False))


class _UnacceptableError(ValueError):
    """A value that is JSON for Python and not for others."""

    def __init__(self, problem: str, beginning: str) -> None:
        super().__init__(problem)
        self.beginning = beginning


class _Window:
    """Text of a file, of which only the part that is being parsed is in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        # Broken bytes become lone surrogates, which are found again in the row that holds them.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.position = 0
        self.line = 1  # of `position`
        self.at_end = False
        self._size = _WINDOW_BYTES
        self._parser = _Parser()
        self.grow()
        self.text = self.text.removeprefix("\ufeff")

    def grow(self) -> bool:
        """Read on; return whether there was more. What was parsed is dropped; each growth reads twice as much."""
        if self.at_end:
            return False
        raw = self._file.read(self._size)
        self.at_end = len(raw) < self._size
        self.text = self.text[self.position :] + self._decoder.decode(raw, final=self.at_end)
        self.position = 0
        self._size *= 2
        return True

    def move(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position
        self._size = _WINDOW_BYTES

    def peek(self) -> str:
        """Return the next character that is not white space, or an empty text at the end."""
        while True:
            self.move(_match_end(self.text, self.position))
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""

    def value(self) -> Any:
        """Parse the value here and move behind it.

        Raises:
            json.JSONDecodeError: there is none, even with all of the file read.
            _UnacceptableError: it can be read and not be used; the window stands behind it.
        """
        while True:
            try:
                value, end, problem = self._parser.value_at(self.text, self.position)
            except json.JSONDecodeError:
                if not self.grow():
                    raise
                continue
            if end == len(self.text) and self.grow():
                continue  # a number may go on
            beginning = self.beginning()
            self.move(end)
            if problem:
                raise _UnacceptableError(problem, beginning)
            return value

    def beginning(self) -> str:
        return self.text[self.position : self.position + SHOWN_CHARACTERS]


def _documents(file: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    window = _Window(file)
    if window.peek() == "[":
        yield from _array(window, name)
        return
    documents = _objects(window, name)
    head = list(islice(documents, 2))
    if len(head) == 1 and isinstance(head[0], Row):
        inside = _list_inside(head[0].value, name)
        if inside is not None:
            yield from (_row(name, number, element) for number, element in enumerate(inside, 1))
            return
    yield from chain(head, documents)


def _array(window: _Window, name: str) -> Iterator[Row | BadRow]:
    window.move(window.position + 1)
    number = 0
    if window.peek() == "]":
        window.move(window.position + 1)
    else:
        while True:
            number += 1
            window.peek()
            try:
                yield _row(name, number, window.value())
            except json.JSONDecodeError as error:
                _broken_array(window, name, number, error.msg)
            except _UnacceptableError as error:
                yield bad_row(name, number, str(error), error.beginning)
            separator = window.peek()
            if separator not in (",", "]"):
                reason = f"expected a comma or a bracket, found {separator!r}" if separator else "the file ends here"
                _broken_array(window, name, number, reason)
            window.move(window.position + 1)
            if separator == "]":
                break
    if window.peek():
        _broken_array(window, name, number, "there is more behind the array")


def _broken_array(window: _Window, name: str, number: int, reason: str) -> NoReturn:
    what = f"the JSON array is broken at element {number}: {reason}"
    raise DataError(what, where=f"{name}:{window.line}", do="repair the file; JSONL loses only the broken line")


def _objects(window: _Window, name: str) -> Iterator[Row | BadRow]:
    """Yield objects one after the other; behind a broken one, go on at the next line that begins with `{`."""
    while window.peek():
        line = window.line
        try:
            yield _row(name, line, window.value())
        except json.JSONDecodeError as error:
            yield bad_row(name, line, f"not valid JSON: {error.msg}", window.beginning())
            following = _NEXT_OBJECT.search(window.text, window.position + 1)
            window.move(following.end() if following else len(window.text))
        except _UnacceptableError as error:
            yield bad_row(name, line, str(error), error.beginning)


def _list_inside(document: dict[str, Any], name: str) -> list[Any] | None:
    """Return the list of rows that an object is wrapped around, or None when the object is a row itself."""
    lists = {k: v for k, v in document.items() if isinstance(v, list) and v and all(isinstance(e, dict) for e in v)}
    if not lists or (_ROW_KEYS & set(document) and not _are_rows(document)):
        return None
    if len(lists) == 1:
        return next(iter(lists.values()))
    for key in _LIST_KEYS:
        if key in lists:
            return lists[key]
    keys = ", ".join(lists)
    do = "keep one list of rows per file"
    raise DataError(f"the object holds several lists of objects ({keys})", where=name, do=do)


def _are_rows(document: dict[str, Any]) -> bool:
    """Return whether the list under a row's key holds rows, as in `{"conversations": [{"mapping": …}, …]}`."""
    elements = document.get("conversations")
    return isinstance(elements, list) and all(isinstance(e, dict) and _ROW_KEYS & set(e) for e in elements)


def _bad_characters(source: str, value: Any) -> str:
    """Say what is wrong with text that has no UTF-8 form: broken bytes of the file, halves of surrogate pairs."""
    if "\\u" not in source:
        return "" if source.isascii() or _has_utf8(source) else "not valid UTF-8"
    if not _SURROGATE.search(source):
        return ""
    if not _has_utf8(source):
        return "not valid UTF-8"
    if not _has_utf8(json.dumps(value, ensure_ascii=False)):
        return "half of a surrogate pair (\\ud800 to \\udfff) stands alone"
    return ""


def _has_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _match_end(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
