"""Texts to ids through pieces that are remembered: the same ids as the tokenizer's own, for a fraction of the time.

A byte-level tokenizer cuts a text into words by a regular expression and encodes each word alone. A text may therefore
be cut beforehand, wherever such a word ends in every text: the pieces' ids, one after the other, are the text's ids.
Pieces come back all the time and are looked up; new ones go to the tokenizer in one call per batch.

The patterns in `_WORD_PATTERNS` end a word at each of these places, and look no further ahead than to the end of a run
of white space. Only there is a text cut:

* before a space that follows anything but white space;
* around added tokens;
* between an ASCII letter and another ASCII character that is neither a letter nor an apostrophe before one;
* between an ASCII digit and any other ASCII character but white space before it;
* between a line break that follows anything but white space, and an ASCII letter or digit.

`tests/property/test_tokens_pieces.py` holds this against the tokenizer for every pattern.
"""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ID_TYPE = "I"  # of `array`; ids are given out as the bytes of such an array

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_ASCII_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

# Patterns that cut a whole text into words, as tokenizer.json files write them, and a family that uses each.
_WORD_PATTERNS = {
    "llama3": rf"{_CONTRACTIONS}|{_HEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "qwen2": rf"{_CONTRACTIONS}|{_HEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "qwen3.5": (rf"{_CONTRACTIONS}|{_HEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"),
    "gpt-oss": (
        rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ),
    "mistral-nemo": (
        rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ),
    "deepseek": (
        rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
    ),
}
# Patterns that cut further and leave those places alone.
_OTHER_PATTERNS = (r"\p{N}{1,3}", r"\p{N}", "[一-龥぀-ゟ゠-ヿ]+", "[一-龥\u0800-一가-퟿]+")

_INSIDE_SPACE = re.compile(r"\S ")
_FIRST_OF_ADDED = re.compile(r"[!-/:-@\[-`{-~]")  # no other piece begins so and goes on where the token is cut

_LETTERS = r"[A-Za-z]++(?:'[A-Za-z]++)*+(?!'?[^\x00-\x7f])"  # a mark or letter beyond ASCII may belong to the word
_DIGITS = r"[0-9]++(?![^\x00-\x7f])"
_MOST_PIECES = 1 << 18
_LONGEST_PIECE = 48  # characters; longer ones hardly come back


class PieceTokenizer:
    """Encodes texts by their pieces. Memory is bounded: what is remembered is forgotten when it has grown too large.

    Attributes:
        cut: gives the pieces of a text; joined, they are the text.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self.cut: Callable[[str], list[str]] = _piece_pattern(added).findall
        self._known: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Return the ids of each text, as the bytes of an `array(ID_TYPE)`."""
        if len(self._known) > _MOST_PIECES:
            self._known = {}
        known = self._known
        cut = [self.cut(text) for text in texts]
        new = list(set(chain.from_iterable(cut)).difference(known))
        if new:
            for piece, encoding in zip(
                new, self._backend.encode_batch_fast(new, add_special_tokens=False), strict=True
            ):
                known[piece] = array(ID_TYPE, encoding.ids).tobytes()
        encoded = [b"".join(map(known.__getitem__, pieces)) for pieces in cut]
        for piece in new:
            if len(piece) > _LONGEST_PIECE:
                del known[piece]
        return encoded


def _piece_pattern(added: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern whose matches, one after the other, are a whole text."""
    longest_first = "|".join(re.escape(text) for text in sorted(added, key=len, reverse=True)) or "(?!)"
    first = re.escape("".join(sorted({text[0] for text in added if text})))
    token = rf"(?=[{first}])(?:{longest_first})" if added else "(?!)"
    ends = (r"(?<=[!-~])(?=[ 0-9])", r"(?<=\S\n)(?=[0-9A-Za-z])", f"(?={token})", _LETTERS, _DIGITS, r"\Z")
    pieces = (
        f" ?{_LETTERS}",
        token,
        f" ?{_DIGITS}",
        rf"[\x00-/:-@\[-`{{-\x7f]+?(?:{'|'.join(ends)})",
        # What holds anything beyond ASCII goes on to the next space that follows anything but white space.
        r"[\s\S][^ ]*(?:(?<=\s) [^ ]*)*",
    )
    return re.compile("|".join(pieces))


def piece_tokenizer(backend: Tokenizer) -> PieceTokenizer | None:
    """Return a tokenizer by pieces, or None where it cannot be proven that pieces give the ids of the whole."""
    model = backend.model
    if type(model).__name__ != "BPE" or getattr(model, "dropout", None):
        return None
    if not _cuts_words(backend) or not _is_plain(backend):
        return None
    return PieceTokenizer(backend)


def keeps_text(backend: Tokenizer, text: str) -> bool:
    """Return whether the normalizer, of those that `piece_tokenizer` accepts, leaves a text as it is."""
    return backend.normalizer is None or text.isascii() or unicodedata.is_normalized("NFC", text)


def _cuts_words(backend: Tokenizer) -> bool:
    components = _components(backend.pre_tokenizer, "pretokenizers")
    words, is_byte_level = False, False
    for component in components:
        kind = component["type"]
        if kind == "ByteLevel":
            if component["add_prefix_space"]:
                return False
            words |= component["use_regex"]
            is_byte_level = True
        elif kind == "Split":
            pattern = component["pattern"].get("Regex")
            isolated = (component["behavior"], component["invert"]) in (("Isolated", False), ("Removed", True))
            if not isolated or pattern not in (*_WORD_PATTERNS.values(), *_OTHER_PATTERNS):
                return False
            if component["behavior"] == "Removed" and pattern in _OTHER_PATTERNS:
                return False
            words |= pattern in _WORD_PATTERNS.values()
        elif kind != "Digits":
            return False
    return words and is_byte_level


def _is_plain(backend: Tokenizer) -> bool:
    """Return whether normalizer and added tokens look at nothing across a cut."""
    normalizers = [component["type"] for component in _components(backend.normalizer, "normalizers")]
    tokens = list(backend.get_added_tokens_decoder().values())
    if normalizers not in ([], ["NFC"]) or any(t.lstrip or t.rstrip or t.single_word for t in tokens):
        return False
    if any(_INSIDE_SPACE.search(t.content) or not _FIRST_OF_ADDED.match(t.content) for t in tokens):
        return False
    # Tokens that are looked for in the normalized text are looked for after the others; one kind alone is in one pass.
    kinds = {token.normalized for token in tokens}
    return len(kinds) <= 1 and not (normalizers and True in kinds)


def _components(part: Any, name: str) -> list[dict[str, Any]]:
    """Return the description of a tokenizer's part, a sequence taken apart."""
    if part is None:
        return []
    state: dict[str, Any] = json.loads(part.__getstate__())
    return list(state[name]) if state["type"] == "Sequence" else [state]
