"""Rows for evaluation and benchmarks: all of them good, each with its name."""

from __future__ import annotations

from tunesmith.errors import DataError
from tunesmith.recipe.schema import Source
from tunesmith.rows.conversation import Conversation
from tunesmith.rows.reading import read_examples
from tunesmith.rows.sources import BadRow


def conversations(files: tuple[str, ...], *, limit: int | None = None) -> list[tuple[str, Conversation]]:
    """Return the conversations of files or globs, each with `file:line`.

    A score over rows of which some could not be read would not say so: the first bad row is an error.

    Raises:
        DataError: a file is missing or damaged, a row cannot be read, or it holds preferences.
    """
    found: list[tuple[str, Conversation]] = []
    for path in files:
        _, examples = read_examples(Source(path))
        for example in examples:
            if limit is not None and len(found) >= limit:
                return found
            where = f"{example.file}:{example.line}"
            if isinstance(example, BadRow):
                raise DataError(f"this row cannot be used: {example.reason}", where=where)
            if not isinstance(example.content, Conversation):
                do = "give rows with one answer each (messages, sharegpt, prompt/completion or instruction)"
                raise DataError("this row is a preference pair, not a conversation", where=where, do=do)
            found.append((where, example.content))
    return found
