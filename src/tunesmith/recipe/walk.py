"""Go through a recipe's values: as plain data for files and hashes, or text by text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tunesmith.recipe.typed import KeyPath


def plain(value: Any) -> Any:
    """Return dataclasses as mappings and tuples as lists, ready for YAML, JSON and hashing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def strings(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield every text in a recipe with its key path."""
    document = plain(value) if dataclasses.is_dataclass(value) else value
    if isinstance(document, dict):
        for key, item in document.items():
            yield from strings(item, (*path, key))
    elif isinstance(document, list):
        for index, item in enumerate(document):
            yield from strings(item, (*path, index))
    elif isinstance(document, str):
        yield path, document
