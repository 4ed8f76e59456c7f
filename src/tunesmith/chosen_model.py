"""The model a person names on the command line, and serving it for as long as it is needed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.artifacts import Which
from tunesmith.recipe.load import load
from tunesmith.serve.engine import ServedModel
from tunesmith.serve.process import ServerProcess
from tunesmith.serve.stage import served_model, serving
from tunesmith.store.run_dir import RunDir, find_run

_STARTUP_SECONDS = 600.0


@dataclass(frozen=True)
class Choice:
    """A model somebody asked for, and how it is served."""

    model: ServedModel
    engine: str
    log: Path
    timeout_seconds: float


def choose_model(word: str, output_dir: str, which: Which, log_name: str) -> Choice:
    """Return the model that a person means: a model directory, or the base or tuned model of a run.

    Raises:
        UsageError: there is no such run.
        TunesmithError: the run has not made the model yet.
    """
    path = Path(word)
    if (path / "config.json").is_file() and not (path / "run.json").exists():
        log = Path(tempfile.gettempdir()) / f"tunesmith-{path.resolve().name}.log"
        return Choice(ServedModel(path, path.resolve().name), _engine(), log, _STARTUP_SECONDS)
    run_dir = find_run(word, output_dir)
    recipe = load(run_dir.resolved_recipe).recipe
    log = RunDir(run_dir.path).server_log(log_name)
    return Choice(served_model(recipe, run_dir, which), recipe.serve.engine, log, recipe.serve.startup_timeout_seconds)


@contextlib.contextmanager
def running(choice: Choice, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[ServerProcess]:
    """Serve a chosen model for the length of a block.

    Raises:
        ServeError: the server did not become healthy.
    """
    with serving(
        choice.model,
        engine=choice.engine,
        log=choice.log,
        host=host,
        port=port,
        timeout_seconds=choice.timeout_seconds,
    ) as server:
        yield server


def _engine() -> str:
    from importlib.util import find_spec

    from tunesmith.hardware import probe

    return "vllm" if probe().device == "cuda" and find_spec("vllm") is not None else "embedded"
