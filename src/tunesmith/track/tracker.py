"""Where numbers go while a model trains: metrics.jsonl, always, and the mirrors that the recipe asks for."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from tunesmith.errors import Interrupted
from tunesmith.recipe.schema import Recipe
from tunesmith.store.run_dir import RunDir
from tunesmith.track import jsonl
from tunesmith.track.mirror import Follower, Mirror, Outcome


def open_tracker(recipe: Recipe, run_dir: RunDir, *, resumed_at_step: int | None) -> Tracker:
    """Open the metrics of a run and start its mirrors. Call it in one process of a run only (rank 0).

    Args:
        resumed_at_step: the step of the checkpoint that training goes on from; lines of later steps are dropped, since
            those steps are made again. None starts from nothing.

    Raises:
        TrackError: a mirror cannot start.
        EnvironmentProblem: a mirror's package or environment variable is missing.
    """
    jsonl.keep_until(run_dir.metrics, resumed_at_step)
    return Tracker(run_dir, lambda: _start(recipe, run_dir))


def _start(recipe: Recipe, run_dir: RunDir) -> list[Mirror]:
    """Start the mirrors; when one cannot, those before it are closed again."""
    started: list[Mirror] = []
    try:
        if recipe.track.tensorboard:
            from tunesmith.track.tensorboard import TensorBoardMirror

            started.append(TensorBoardMirror(run_dir))
        if recipe.track.mlflow is not None:
            from tunesmith.track.mlflow import MlflowMirror

            started.append(MlflowMirror(recipe, recipe.track.mlflow, run_dir))
        if recipe.track.wandb is not None:
            from tunesmith.track.wandb import WandbMirror

            started.append(WandbMirror(recipe, recipe.track.wandb, run_dir))
    except BaseException:
        for mirror in started:
            mirror.close("failed")
        raise
    return started


class Tracker:
    """Takes numbers. A context manager: leaving it closes it, and tells the mirrors how the training ended."""

    def __init__(self, run_dir: RunDir, start: Callable[[], list[Mirror]]) -> None:
        self._run_dir, self._start = run_dir, start
        self._open()

    def _open(self) -> None:
        mirrors = self._start()
        self._file = jsonl.MetricsFile(self._run_dir.metrics)
        self._followers = [Follower(mirror, jsonl.read_metrics(self._run_dir.metrics)) for mirror in mirrors]
        self._closed = False

    def rewind(self, step: int) -> None:
        """Forget every number after a step: training goes on from there. The mirrors start anew, as after a restart."""
        self.close("interrupted")
        jsonl.keep_until(self._run_dir.metrics, step)
        self._open()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write numbers of a step. Steps never go back; a step may be logged in several pieces."""
        line = self._file.write(step, metrics)
        if line is not None:
            for follower in self._followers:
                follower.add(line)

    def summary(self, metrics: dict[str, float]) -> None:
        """Write numbers of the whole training, at the last step that was logged."""
        self.log(max(0, self._file.last_step), metrics)

    def close(self, outcome: Outcome = "done") -> None:
        """Close the file and finish the mirrors, waiting until they have every number. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._file.close()
        for follower in self._followers:
            follower.close(outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("interrupted" if issubclass(kind, Interrupted | KeyboardInterrupt) else "failed")
