"""MLflow's, TensorBoard's and W&B's own readers return the curve of metrics.jsonl, after a kill, too."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.recipe.schema import Data, Mlflow, Model, Recipe, Source, Track, Wandb
from tunesmith.store.run_dir import RunDir
from tunesmith.track.jsonl import read_metrics

pytestmark = pytest.mark.real

# Trains nothing, but logs as training does: `(seed, step)` gives the loss, so that a resumed run repeats its numbers.
_TRAINING = """
import json, os, signal, sys, time
from pathlib import Path
from tunesmith.recipe.load import load
from tunesmith.store.run_dir import RunDir
from tunesmith.track.tracker import open_tracker

run_dir, resumed, last = RunDir(Path(sys.argv[1])), json.loads(sys.argv[2]), int(sys.argv[3])
killed = sys.argv[4] == "killed"
with open_tracker(load(run_dir.resolved_recipe).recipe, run_dir, resumed_at_step=resumed) as tracker:
    for step in range((resumed or 0) + 1, last + 1):
        tracker.log(step, {"train/loss": 3.0 / step, "train/learning_rate": 1e-4 * step, "train/epoch": step / 10})
        if step % 5 == 0:
            tracker.log(step, {"eval/loss": 4.0 / step})
        time.sleep(0.01)
    if killed:
        time.sleep(float(sys.argv[5]))
        os.kill(os.getpid(), signal.SIGKILL)
    tracker.summary({"train/final_loss": 3.0 / last})
"""


def _start(run_dir: RunDir, resumed: int | None, last: int, *, killed_after: float | None = None) -> None:
    from tunesmith.recipe.dump import dump_recipe

    output_dir = run_dir.path.parent.parent
    track = Track(tensorboard=True, mlflow=Mlflow(), wandb=Wandb())
    recipe = Recipe(
        "curves", Model("some/model"), Data((Source("rows.jsonl"),)), output_dir=str(output_dir), track=track
    )
    run_dir.path.mkdir(parents=True, exist_ok=True)
    run_dir.resolved_recipe.write_text(dump_recipe(recipe))
    words = [json.dumps(resumed), str(last), "killed" if killed_after is not None else "ends", str(killed_after or 0)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", _TRAINING, str(run_dir.path), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if killed_after is not None else 0), done.stderr
    assert done.stderr == "", "mirrors are quiet"
    assert done.stdout == "", "mirrors are quiet"


def _written(run_dir: RunDir) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(run_dir.metrics):
        for name, value in line.metrics.items():
            curves.setdefault(name, []).append((line.step, value))
    return curves


def _mlflow(run_dir: RunDir) -> dict[str, list[tuple[int, float]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir.path.parent.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("curves")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["data.train.0.path"] == "rows.jsonl"
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(metric.step, metric.value) for metric in metrics] for name, metrics in history.items()}


def _tensorboard(run_dir: RunDir) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir.tensorboard), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def _wandb(run_dir: RunDir) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    ids = set()
    for file in sorted(run_dir.wandb.glob("offline-run-*/run-*.wandb")):
        for record in _wandb_records(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                for item in record.history.item:
                    name = item.key or ".".join(item.nested_key)
                    if not name.startswith("_"):
                        curves.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    assert len(ids) == 1, "one W&B run, whatever the number of processes"
    return curves


def _wandb_records(file: Path) -> Iterator[Any]:
    """Read W&B's own file: a header of 7 bytes, then LevelDB's log framing around `Record` messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = file.read_bytes()
    assert content[:4] == b":W&B", content[:8]
    position, parts = 7, []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, last piece
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def _require_readers() -> None:
    for package in ("mlflow", "wandb", "tensorboardX", "tensorboard"):
        pytest.importorskip(package)


@pytest.mark.parametrize("killed_after", [None, 0.0, 1.5], ids=["never", "at once", "later"])
def test_own_readers_return_the_curve(tmp_path: Path, killed_after: float | None) -> None:
    _require_readers()
    run_dir = RunDir(tmp_path / "outputs of mine" / "runs" / "20260101-000000-curves")
    if killed_after is not None:
        _start(run_dir, None, 17, killed_after=killed_after)  # the newest checkpoint is that of step 10
        _start(run_dir, 10, 13, killed_after=killed_after)  # and again, before it got as far as the first time
    _start(run_dir, 10 if killed_after is not None else None, 20)

    expected = _written(run_dir)
    assert [step for step, _ in expected["train/loss"]] == list(range(1, 21))
    assert [step for step, _ in expected["eval/loss"]] == [5, 10, 15, 20]
    for read in (_mlflow, _tensorboard, _wandb):
        curves = read(run_dir)
        assert set(curves) == set(expected), read.__name__
        for name, points in expected.items():
            assert [step for step, _ in curves[name]] == [step for step, _ in points], (read.__name__, name)
            values = [value for _, value in points]
            # TensorBoard's scalars are float32.
            assert [value for _, value in curves[name]] == pytest.approx(values, rel=1e-6), (read.__name__, name)


def test_nan_is_mirrored_and_references_stay_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    from tunesmith.track.tracker import open_tracker

    monkeypatch.setenv("DATABASE", f"sqlite:///{tmp_path}/elsewhere.db")
    settings = Mlflow(tracking_uri="${env:DATABASE}", experiment="mine")
    recipe = Recipe("x", Model("m"), Data((Source("a"),)), output_dir=str(tmp_path), track=Track(mlflow=settings))
    run_dir = RunDir(tmp_path / "runs" / "20260101-000000-x")
    with pytest.raises(ValueError, match="on purpose"), open_tracker(recipe, run_dir, resumed_at_step=None) as tracker:
        tracker.log(1, {"train/loss": float("nan")})
        raise ValueError("on purpose")
    client = MlflowClient(f"sqlite:///{tmp_path}/elsewhere.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.params["track.mlflow.tracking_uri"] == "${env:DATABASE}"
    assert str(tmp_path) not in run_dir.trackers.read_text()
    (metric,) = client.get_metric_history(run.info.run_id, "train/loss")
    assert metric.step == 1 and metric.value != metric.value
