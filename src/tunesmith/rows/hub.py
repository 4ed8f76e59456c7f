"""Data sets of the Hugging Face Hub, through the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from tunesmith.errors import DataError, missing_extra
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Source
from tunesmith.rows.row import BadRow, Row
from tunesmith.rows.tables import table_row

_COMMIT = re.compile(r"@([0-9a-f]{40})/")


def rows(source: Source) -> Iterator[Row | BadRow]:
    """Yield the rows of a data set; `line` is the row's position in its split.

    Raises:
        DataError: the data set, its subset, split or revision cannot be loaded.
        EnvironmentProblem: `datasets` is not installed.
    """
    name = expand(source.path)
    for number, value in enumerate(load(source), 1):
        yield table_row(name, number, value)


def load(source: Source) -> Any:
    """Return the data set, memory-mapped from the cache of `datasets`."""
    return _load(expand(source.path), source.subset, source.split, source.revision)


def commit(dataset: Any) -> str | None:
    """Return the commit that a data set was downloaded from, as its own record of downloads tells it."""
    for url in dataset.info.download_checksums or {}:
        if found := _COMMIT.search(url):
            return found.group(1)
    return None


def content_hash(dataset: Any) -> str | None:
    """Return the hash under which `datasets` caches a data set; it changes with the files it was made from."""
    found = getattr(dataset, "_fingerprint", None)
    return found if isinstance(found, str) else None


@lru_cache(maxsize=8)
def _load(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "data", needed_for=f"the Hub data set {path}") from None
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, name=subset, split=split, revision=revision)
    except Exception as error:  # noqa: BLE001 - the library raises its own, the Hub's, requests' and the system's errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        chosen = "".join(f", {key} {value!r}" for key, value in (("subset", subset), ("revision", revision)) if value)
        what = f"the Hub data set {path!r} (split {split!r}{chosen}) cannot be loaded: {reason}"
        do = "check its name and the connection (HF_HUB_OFFLINE, HF_TOKEN for private ones), or give a local file"
        raise DataError(what, do=do) from None
