"""Where the data is: a directory, the installed official package, or the Hub."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from tunesmith.errors import DataError, TunesmithError

HUB_DATASET = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
VARIABLE = "TUNESMITH_BFCL_DATA"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def locate(data: str | None) -> Path:
    """Return the directory of the data, fetching it from the Hub when it is named by a Hub id.

    Args:
        data: a directory, or a Hub data set `owner/name` or `owner/name@revision`. None looks where
            $TUNESMITH_BFCL_DATA says, into the package `bfcl-eval` (nothing of it is imported), on the Hub.

    Raises:
        DataError: it is at none of these places, or the Hub does not have it.
        EnvironmentProblem: the Hub is asked for, and its client is not installed.
    """
    if data is None:
        here = os.environ.get(VARIABLE) or _package_data()
        if here is None:
            try:
                return _fetched(HUB_DATASET)
            except TunesmithError as error:
                do = f"name a directory (--data, `evaluate.bfcl.data`, {VARIABLE}) or pip install --no-deps bfcl-eval"
                raise DataError(f"BFCL's data was not found on this machine, and {error.what}", do=do) from None
        data = here
    path = Path(data).expanduser()
    if path.is_dir():
        return path / "data" if (path / "data").is_dir() and not list(path.glob("BFCL_v*.json")) else path
    if _HUB_ID.fullmatch(data) and not data.startswith("."):
        return _fetched(data)
    raise DataError("there is no such directory", where=data, do="give the directory that holds BFCL_v4_*.json")


def on_this_machine(data: str | None) -> Path | None:
    """Return the directory that `locate` would return without the network, or None."""
    named = data or os.environ.get(VARIABLE) or _package_data()
    return locate(named) if named and Path(named).expanduser().is_dir() else None


def _package_data() -> str | None:
    found = importlib.util.find_spec("bfcl_eval")
    locations = list(found.submodule_search_locations or []) if found else []
    return next((str(Path(place) / "data") for place in locations if (Path(place) / "data").is_dir()), None)


def _fetched(name: str) -> Path:
    from tunesmith.store.hub import dataset_snapshot

    repo_id, _, revision = name.partition("@")
    return dataset_snapshot(repo_id, revision=revision or None, patterns=["*BFCL_v*.json", "multi_turn_func_doc/*"])
