"""Rows to marked texts and token segments, one by one and without numpy: what planning and showing rows need."""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tunesmith.errors import DataError
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.tokens.chat import (
    MarkedText,
    Segment,
    TemplateProblem,
    mark,
    mark_preference,
    preference_segments,
    segment_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeVar

    from tunesmith.recipe.schema import Recipe
    from tunesmith.tokens.templates import ChatTemplate
    from tunesmith.tokens.tokenizer import ChatTokenizer

    Item = TypeVar("Item")

ROWS_PER_BATCH = 512
NUM_SEGMENTS = {"sft": 1, "dpo": 3}
NO_LOSS = "no token of this row has a loss with this template and `train_on`"


@dataclass(frozen=True)
class Encoder:
    """Everything that turns a row into tokens."""

    tokenizer: ChatTokenizer
    template: ChatTemplate
    recipe: Recipe

    def use_threads(self) -> None:
        """Let the tokenizer use `data.num_workers` threads; later calls in one process change nothing."""
        if isinstance(self.recipe.data.num_workers, int):
            os.environ["RAYON_NUM_THREADS"] = str(self.recipe.data.num_workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"

    def encode(self, contents: Sequence[Conversation | Preference]) -> list[list[Segment] | str]:
        """Return the segments of each row, or the reason why it has none.

        Raises:
            DataError: a row does not fit the objective, or the template cannot be masked.
        """
        marked = [self.marked_or_reason(content) for content in contents]
        texts = [text.text for texts in marked if not isinstance(texts, str) for text in texts]
        encodings = iter(self.tokenizer.encodings(texts))
        return [
            texts if isinstance(texts, str) else _segments([segment_of(next(encodings), t.spans) for t in texts])
            for texts in marked
        ]

    def marked(self, content: Conversation | Preference) -> list[MarkedText]:
        """Return one rendered text for a conversation, two for a preference.

        Raises:
            TemplateProblem: the template refuses the row.
            DataError: as `encode`.
        """
        objective = self.recipe.train.objective
        if isinstance(content, Preference):
            if objective != "dpo":
                do = "set train.objective to dpo, or give rows with one answer each"
                raise DataError(f"the rows are preference pairs, and train.objective is {objective}", do=do)
            return mark_preference(self.tokenizer, self.template, content.prompt, (content.chosen, content.rejected))
        if objective == "dpo":
            do = "give rows with `prompt`, `chosen` and `rejected`, or set train.objective to sft"
            raise DataError("the rows have one answer each, and train.objective is dpo", do=do)
        return [mark(self.tokenizer, self.template, content, self.recipe.data.train_on)]

    def marked_or_reason(self, content: Conversation | Preference) -> list[MarkedText] | str:
        """Like `marked`, with the reason when the template refuses the row.

        Raises:
            DataError: as `encode`.
        """
        try:
            return self.marked(content)
        except TemplateProblem as problem:
            return str(problem)


def _segments(segments: list[Segment]) -> list[Segment] | str:
    if len(segments) == 2:
        segments = preference_segments(*segments)
    answers = segments[1:] or segments
    return segments if all(any(trained) for _, trained in answers) else NO_LOSS


def length_of(segments: Sequence[tuple[Sized, Sized]]) -> int:
    """Return the longest sequence the model sees for a row, in tokens: of a pair, prompt and longer answer."""
    lengths = [len(ids) for ids, _ in segments]
    return lengths[0] + max(lengths[1:], default=0)


def num_tokens_of(segments: Sequence[tuple[Sized, Sized]]) -> int:
    """Return the tokens the model sees for a row: of a pair, the prompt twice."""
    lengths = [len(ids) for ids, _ in segments]
    return sum(lengths) + (lengths[0] if len(lengths) > 1 else 0)


def batches(items: Iterable[Item], size: int = ROWS_PER_BATCH) -> Iterator[list[Item]]:
    """Yield lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
