"""MLflow: a database beside the runs by default, or a tracking server.

What a run has is asked of MLflow itself, number by number: an append-only history cannot be corrected, so that a step
which a restarted training makes again is not sent again. Its numbers are the same, since a resumed training equals an
uninterrupted one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from tunesmith.errors import TrackError, missing_extra
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Mlflow, Recipe
from tunesmith.recipe.walk import plain
from tunesmith.store.run_dir import RunDir
from tunesmith.track import identities
from tunesmith.track.jsonl import Line
from tunesmith.track.mirror import Outcome, brief

_TAG = "tunesmith.key"
_MAX_METRICS_PER_CALL = 1000  # limits of MLflow's REST API, log-batch
_MAX_PARAMS_PER_CALL = 100
_MAX_PARAM_CHARACTERS = 6000
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowMirror:
    """One MLflow run, found again after a restart by a tag that was chosen before the run was made."""

    name = "MLflow"

    def __init__(self, recipe: Recipe, settings: Mlflow, run_dir: RunDir) -> None:
        client_class = _import()
        written = settings.tracking_uri or _local_uri(recipe)
        experiment = settings.experiment or recipe.name
        key = identities.identity(run_dir, "mlflow", f"{written} {experiment}")
        uri = expand(written)
        try:
            self._client: Any = client_class(tracking_uri=uri)
            experiment_id = self._experiment(experiment, None if settings.tracking_uri else recipe)
            self._run_id = self._find_or_create(experiment_id, key, run_dir)
            self._log_params(recipe)
            self._sent = self._sent_steps()
        except Exception as error:
            do = "start the server, correct track.mlflow, or take mlflow out of track"
            raise TrackError(f"MLflow cannot start: {brief(error)}", where=written, do=do) from error

    def _experiment(self, name: str, local: Recipe | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = (Path(local.output_dir).resolve() / "mlartifacts").as_uri() if local else None
            return str(self._client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage == "deleted":
            raise ValueError(f"the experiment {name!r} is deleted; restore it or set track.mlflow.experiment")
        return str(found.experiment_id)

    def _find_or_create(self, experiment_id: str, key: str, run_dir: RunDir) -> str:
        found = self._client.search_runs([experiment_id], f"tags.`{_TAG}` = '{key}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {_TAG: key, "tunesmith.run": run_dir.path.name}
        return str(self._client.create_run(experiment_id, tags=tags, run_name=run_dir.path.name).info.run_id)

    def _log_params(self, recipe: Recipe) -> None:
        """Log the resolved recipe; what is there stays, since MLflow's parameters cannot be changed."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        wanted = {name: value for name, value in flatten(plain(recipe)).items() if name not in known}
        params = [Param(name, value) for name, value in wanted.items()]
        for start in range(0, len(params), _MAX_PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=params[start : start + _MAX_PARAMS_PER_CALL])

    def _sent_steps(self) -> dict[str, int]:
        names = self._client.get_run(self._run_id).data.metrics
        return {name: max(m.step for m in self._client.get_metric_history(self._run_id, name)) for name in names}

    def write(self, lines: list[Line]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(line.time_seconds * 1000), line.step)
            for line in lines
            for name, value in line.metrics.items()
            if line.step > self._sent.get(name, -1)
        ]
        # The same number with the same time and step is stored once, so that a call may be repeated after a failure.
        for start in range(0, len(metrics), _MAX_METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MAX_METRICS_PER_CALL])
        self._sent |= {metric.key: metric.step for metric in metrics}

    def close(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._run_id, status=_STATUS[outcome])


def _import() -> Any:
    """Import MLflow quietly: no telemetry, no migration log, and a server that is away is told within seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise missing_extra("mlflow", "mlflow", needed_for="track.mlflow") from None
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient


def _local_uri(recipe: Recipe) -> str:
    """Return the default database, and make the directory it is in."""
    directory = Path(recipe.output_dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{directory / 'mlflow.db'}"


def flatten(document: Any, prefix: str = "") -> dict[str, str]:
    """Return a recipe as `data.train.0.path` → text, for trackers that know flat parameters only."""
    if isinstance(document, dict | list) and document:
        pairs = document.items() if isinstance(document, dict) else enumerate(document)
        return {
            name: text
            for key, value in pairs
            for name, text in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: str(document)[:_MAX_PARAM_CHARACTERS]}
