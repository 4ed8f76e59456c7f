"""From what a recipe calls the model to a local directory."""

from __future__ import annotations

import re
from pathlib import Path

from tunesmith.errors import ModelError, UsageError, starting_point
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(model: Model, output_dir: str) -> Path:
    """Return the directory of a model: a local one, what a run made (`run:NAME`), or a snapshot from the Hub.

    Side effects: a model of the Hub that is not in the local cache is downloaded.

    Raises:
        ModelError: there is no such directory, run or repository.
    """
    name = expand(model.name_or_path)
    if name.startswith("run:"):
        return _of_run(name.removeprefix("run:"), output_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError("this is a file, not a directory", where=name, do="give the directory that holds config.json")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local or not _HUB_ID.fullmatch(name):
        do = f"check model.name_or_path{starting_point(name)}"
        raise ModelError("there is no such directory", where=name, do=do)
    from tunesmith.store import hub

    return hub.snapshot(name, revision=model.revision, trust_remote_code=model.trust_remote_code)


def _of_run(word: str, output_dir: str) -> Path:
    """Return the merged model of a run: a run directory's name, a recipe's name (its newest run), or `latest`."""
    from tunesmith.store.run_dir import find_run

    try:
        run_dir = find_run(word, output_dir)
    except UsageError as error:
        raise ModelError(error.what, where=f"run:{word}", do=error.do) from None
    if not (run_dir.merged / "config.json").is_file():
        do = f"finish it first: tunesmith stage merge {run_dir.path}"
        raise ModelError("this run has no merged model yet", where=str(run_dir.path), do=do)
    return run_dir.merged
