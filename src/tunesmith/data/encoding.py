"""Batches of rows to token arrays, as `Encoder.encode` would have them, and what is asked of such arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tunesmith.data.tokenising import NO_LOSS, Encoder
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.tokens.bulk import ArraySegment, BulkTokenizer
from tunesmith.tokens.chat import preference_segments


class RowEncoder:
    """Encodes rows in bulk."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._bulk = BulkTokenizer(encoder.tokenizer)

    def encode(self, contents: Sequence[Conversation | Preference]) -> list[list[ArraySegment] | str]:
        """Return the segments of each row, or the reason why it has none.

        Raises:
            DataError: as `Encoder.encode`.
        """
        marked = [self._encoder.marked_or_reason(content) for content in contents]
        segments = iter(self._bulk.segments([text for texts in marked if not isinstance(texts, str) for text in texts]))
        return [texts if isinstance(texts, str) else _joined([next(segments) for _ in texts]) for texts in marked]


def _joined(segments: list[ArraySegment]) -> list[ArraySegment] | str:
    if len(segments) == 2:
        chosen, rejected = ((ids.tolist(), trained.tolist()) for ids, trained in segments)
        split = preference_segments(chosen, rejected)
        segments = [(np.asarray(ids, np.uint32), np.asarray(trained, np.bool_)) for ids, trained in split]
    answers = segments[1:] or segments
    return segments if all(trained.any() for _, trained in answers) else NO_LOSS


def truncated(segments: Sequence[ArraySegment], max_length: int) -> list[ArraySegment] | None:
    """Return a row cut to its first `max_length` tokens, or None when nothing to learn would be left.

    A pair keeps its prompt whole; both answers are cut.
    """
    head, answers = segments[0], segments[1:]
    if not answers:
        kept = (head[0][:max_length], head[1][:max_length])
        return [kept] if kept[1].any() else None
    room = max_length - len(head[0])
    if room <= 0:
        return None
    cut = [(ids[:room], trained[:room]) for ids, trained in answers]
    if not all(trained.any() for _, trained in cut) or np.array_equal(cut[0][0], cut[1][0]):
        return None
    return [head, *cut]


def trains_one_of(answers: Sequence[ArraySegment], wanted: npt.NDArray[np.uint32]) -> bool:
    """Return whether one of the wanted tokens has a loss."""
    return any(bool((ids[trained] == one).any()) for ids, trained in answers for one in wanted)
