"""Servers for the stages that need one: the base model and the tuned model, one at a time.

`Servers` implements `artifacts.Serving`. A server starts when its endpoint is asked for and stops when the other one
is, or when the block ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tunesmith.artifacts import Checkpoint, Endpoint, Weights, Which
from tunesmith.model.locate import locate
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Recipe
from tunesmith.serve import process
from tunesmith.serve.engine import ServedModel, engine_named
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.fingerprint import check_probes, probes_of


class Servers:
    """Hands out healthy endpoints of one run.

    Args:
        recipe: resolved.
        run_dir: where the tuned model is, and where logs go (`RunDir.server_log`).
    """

    def __init__(self, recipe: Recipe, run_dir: RunDir) -> None:
        self._recipe, self._run_dir = recipe, run_dir
        self._running: tuple[Which, process.ServerProcess] | None = None
        self._template_fingerprint = ""

    def endpoint(self, which: Which) -> Endpoint:
        """Return a healthy endpoint, starting its server when it does not run (any more).

        Raises:
            ServeError: the server did not become healthy.
            StageError: the tuned model has not been made yet, or it would read other tokens than in training.
        """
        if self._running is None or self._running[0] != which or not self._running[1].is_running():
            self.close()
            self._running = (which, self._start(which))
        server = self._running[1]
        return Endpoint(
            server.url, server.model.name, server.engine.name, which, str(server.log), self._template_fingerprint
        )

    def close(self) -> None:
        """Stop the server that runs."""
        if self._running is not None:
            self._running[1].stop()
            self._running = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, which: Which) -> process.ServerProcess:
        serve = self._recipe.serve
        assert serve.engine != "auto" and serve.port != "auto", "the recipe is not resolved"
        model = served_model(self._recipe, self._run_dir, which)
        found = probes_of(model.path, model.chat_template)
        self._template_fingerprint = check_probes(found, self._run_dir.trained, stage="serve", where=model.path)
        return process.start(
            engine_named(serve.engine),
            model,
            log=self._run_dir.server_log(which),
            port=serve.port,
            timeout_seconds=serve.startup_timeout_seconds,
        )


def served_model(recipe: Recipe, run_dir: RunDir, which: Which) -> ServedModel:
    """Return how a run's base or tuned model is served: both with the chat template of training.

    Raises:
        ModelError, StageError: the model is not there.
    """
    unmerged = which == "tuned" and recipe.serve.unmerged_adapter
    adapter = run_dir.absolute(run_dir.load(Checkpoint).path) if unmerged else None
    if which == "base" or unmerged:
        path = locate(recipe.model, recipe.output_dir)
    else:
        path = run_dir.absolute(run_dir.load(Weights).path)
    length = recipe.serve.max_model_len
    assert length != "auto", "the recipe is not resolved"
    return ServedModel(
        path=path,
        name=f"{recipe.name}-{which}",
        dtype=recipe.model.dtype,
        max_model_len=length,
        chat_template=expand(recipe.data.chat_template),
        trust_remote_code=recipe.model.trust_remote_code,
        gpu_memory_utilization=recipe.serve.gpu_memory_utilization,
        adapter=adapter,
        vllm_python=expand(recipe.serve.vllm_python) if recipe.serve.vllm_python else None,
    )


@contextlib.contextmanager
def serving(
    model: ServedModel,
    *,
    engine: str,
    log: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    timeout_seconds: float = 600.0,
) -> Iterator[process.ServerProcess]:
    """Serve any model directory for the length of a block.

    Raises:
        ServeError: the server did not become healthy.
    """
    server = process.start(engine_named(engine), model, log=log, host=host, port=port, timeout_seconds=timeout_seconds)
    try:
        yield server
    finally:
        server.stop()
