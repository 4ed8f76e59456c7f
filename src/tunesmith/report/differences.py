"""Where an answer differs from its reference: whole lines of calls, single words of texts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

Piece = tuple[str, bool]  # text, whether it is marked

_MAX_WORDS = 400
_MIN_LIKENESS = 0.35  # below this nearly every word would be marked, which tells nothing


def marked_lines(lines: Sequence[str], reference: Sequence[str]) -> list[bool]:
    """Return which lines do not stand in the reference, each of whose lines counts once."""
    left = list(reference)
    marks = []
    for line in lines:
        marks.append(line not in left)
        if line in left:
            left.remove(line)
    return marks


def marked_words(text: str, reference: str) -> tuple[Piece, ...]:
    """Return a text in pieces, those marked that stand in the reference otherwise or not at all.

    A text with little in common with its reference, or a very long one, is left unmarked.
    """
    words, others = _words(text), _words(reference)
    if (
        not words
        or not others
        or min(len(words), len(others)) < 3
        or max(len(words), len(others)) > _MAX_WORDS
        or text == reference
    ):
        return ((text, False),) if text else ()
    folded, folded_others = ([word.strip().lower() for word in some] for some in (words, others))
    matcher = difflib.SequenceMatcher(a=folded, b=folded_others, autojunk=False)
    if matcher.ratio() < _MIN_LIKENESS:
        return ((text, False),)
    pieces: list[Piece] = []
    place = 0
    for begin, _, length in matcher.get_matching_blocks():
        if begin > place:
            pieces.append(("".join(words[place:begin]), True))
        if length:
            pieces.append(("".join(words[begin : begin + length]), False))
        place = begin + length
    return tuple(pieces)


def _words(text: str) -> list[str]:
    """Return words with the white space behind them: joined they are the text again."""
    return re.findall(r"\s*\S+\s*", text)
