"""Many rendered texts to ids and flags: what `encodings` and `segment_of` give, as arrays and much faster.

Ids come from pieces (`tokens/pieces.py`). A byte-level token stands for a known number of bytes, so the characters with
a loss are found by adding up lengths; no offsets are asked for. A text whose bytes do not add up, and every text of a
tokenizer of another kind, is encoded the plain way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tunesmith.tokens.chat import MarkedText, segment_of
from tunesmith.tokens.pieces import keeps_text, piece_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tunesmith.tokens.tokenizer import ChatTokenizer

ArraySegment = tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]


class BulkTokenizer:
    """Encodes batches of marked texts; keeps what it learnt about words from one batch to the next."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces = piece_tokenizer(tokenizer.backend)
        self._num_bytes = _bytes_of_tokens(tokenizer.backend, tokenizer.id_limit) if self._pieces else None

    def segments(self, texts: Sequence[MarkedText]) -> list[ArraySegment]:
        """Return ids and flags of each text; a token counts when any of its characters lies in a span."""
        found: list[ArraySegment | None] = [None] * len(texts)
        if self._pieces is not None:
            backend = self._tokenizer.backend
            chosen = [n for n, marked in enumerate(texts) if keeps_text(backend, marked.text)]
            by_pieces = self._by_pieces([texts[n] for n in chosen])
            for n, segment in zip(chosen, by_pieces, strict=True):
                found[n] = segment
        rest = [n for n, segment in enumerate(found) if segment is None]
        encodings = self._tokenizer.encodings([texts[n].text for n in rest]) if rest else []
        for n, encoding in zip(rest, encodings, strict=True):
            ids, trained = segment_of(encoding, texts[n].spans)
            found[n] = np.asarray(ids, np.uint32), np.asarray(trained, np.bool_)
        return [segment for segment in found if segment is not None]

    def _by_pieces(self, texts: Sequence[MarkedText]) -> list[ArraySegment | None]:
        """Return segments, None for a text whose tokens do not cover its bytes."""
        assert self._pieces is not None and self._num_bytes is not None
        encoded = self._pieces.encode([marked.text for marked in texts])
        ids = np.frombuffer(b"".join(encoded), np.uint32)
        ends = np.cumsum(self._num_bytes[ids])  # of each token, in the bytes of all texts
        trained = np.zeros(len(ids), np.bool_)
        borders = _Borders(texts)
        positions = np.cumsum([0, *(len(one) // ids.itemsize for one in encoded)], dtype=np.int64)
        covered = np.diff(np.concatenate([[0], ends])[positions]) == borders.num_bytes
        if not covered.all():
            return self._one_by_one(texts, covered)
        # The first token that ends behind a span's start, and the first that begins at its end or later.
        first = np.searchsorted(ends, borders.starts, "right").tolist()
        behind = (np.searchsorted(ends, borders.ends, "left") + 1).tolist()
        for begin, end in zip(first, behind, strict=True):
            trained[begin:end] = True
        return [(ids[begin:end], trained[begin:end]) for begin, end in pairwise(positions.tolist())]

    def _one_by_one(self, texts: Sequence[MarkedText], covered: npt.NDArray[Any]) -> list[ArraySegment | None]:
        """Leave out the texts that are not covered and try the others again."""
        if not covered.any():
            return [None] * len(texts)
        good = iter(self._by_pieces([marked for marked, is_good in zip(texts, covered, strict=True) if is_good]))
        return [next(good) if is_good else None for is_good in covered]


class _Borders:
    """Where spans begin and end, counted in bytes from the first text's beginning."""

    def __init__(self, texts: Sequence[MarkedText]) -> None:
        starts: list[int] = []
        ends: list[int] = []
        sizes: list[int] = []
        begin = 0
        for marked in texts:
            text = marked.text
            if text.isascii():
                size = len(text)
                pairs = marked.spans
            else:
                size = len(text.encode())
                pairs = tuple((len(text[:start].encode()), len(text[:end].encode())) for start, end in marked.spans)
            for start, end in pairs:
                if start < end:
                    starts.append(begin + start)
                    ends.append(begin + end)
            sizes.append(size)
            begin += size
        self.starts, self.ends = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
        self.num_bytes = np.asarray(sizes, np.int64)


def _bytes_of_tokens(backend: Tokenizer, id_limit: int) -> npt.NDArray[np.int64]:
    """Return how many bytes each id stands for; byte-level vocabularies write one character per byte."""
    num_bytes = np.zeros(id_limit, np.int64)
    for text, token_id in backend.get_vocab(with_added_tokens=False).items():
        num_bytes[token_id] = len(text)
    for token_id, token in backend.get_added_tokens_decoder().items():
        num_bytes[token_id] = len(token.content.encode())
    return num_bytes
