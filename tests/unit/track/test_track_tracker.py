from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tunesmith.errors import EnvironmentProblem, TrackError
from tunesmith.recipe.schema import Data, Mlflow, Model, Recipe, Source, Track, Wandb
from tunesmith.store.run_dir import RunDir
from tunesmith.track import mirror as mirrors
from tunesmith.track.jsonl import Line, read_metrics
from tunesmith.track.mirror import Follower, Outcome
from tunesmith.track.mlflow import flatten
from tunesmith.track.tracker import Tracker, open_tracker


def _recipe(tmp_path: Path, track: Track) -> Recipe:
    return Recipe("x", Model("m"), Data((Source("a"),)), output_dir=str(tmp_path), track=track)


class _Recorder:
    """A mirror that keeps what it gets; it can fail from a step on, or wait."""

    name = "Recorder"

    def __init__(self, fails_from: int | None = None, gate: threading.Event | None = None) -> None:
        self.lines: list[Line] = []
        self.outcome: Outcome | None = None
        self.calls = 0
        self._fails_from, self._gate = fails_from, gate

    def write(self, lines: list[Line]) -> None:
        self.calls += 1
        if self._gate:
            self._gate.wait(10)
        if self._fails_from is not None and lines[-1].step >= self._fails_from:
            raise OSError("the server at https://user:secret-value@host is away")
        self.lines += lines

    def close(self, outcome: Outcome) -> None:
        self.outcome = outcome


def test_mirrors_get_what_the_file_holds_and_what_comes(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with open_tracker(_recipe(tmp_path, Track()), run_dir, resumed_at_step=None) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"train/loss": 1.0 / step})
    run_dir_lines = list(read_metrics(run_dir.metrics))
    recorder = _Recorder()
    with Tracker(run_dir, lambda: [recorder]) as tracker:
        tracker.log(4, {"train/loss": 0.25})
        tracker.summary({"train/final_loss": 0.25})
    assert [line.step for line in recorder.lines] == [1, 2, 3, 4, 4]
    assert recorder.lines[:3] == run_dir_lines
    assert recorder.lines == list(read_metrics(run_dir.metrics))
    assert recorder.outcome == "done"


def test_resuming_drops_later_lines(tmp_path: Path) -> None:
    recipe, run_dir = _recipe(tmp_path, Track()), RunDir(tmp_path)
    for resumed, until in ((None, 7), (4, 9)):
        with open_tracker(recipe, run_dir, resumed_at_step=resumed) as tracker:
            for step in range((resumed or 0) + 1, until + 1):
                tracker.log(step, {"train/loss": 1.0})
    assert [line.step for line in read_metrics(run_dir.metrics)] == list(range(1, 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_mirror_that_fails_later_warns_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-value")
    broken, healthy = _Recorder(fails_from=1), _Recorder()
    with Tracker(RunDir(tmp_path), lambda: [broken, healthy]) as tracker:
        for step in range(1, 50):
            tracker.log(step, {"train/loss": 1.0})
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "Recorder" in told and "the run goes on" in told
    assert "secret-value" not in told
    assert broken.calls == 3, "tried again before it was given up"
    assert len(healthy.lines) == 49


def test_a_slow_mirror_holds_nothing_up_and_gets_lines_together() -> None:
    gate = threading.Event()
    recorder = _Recorder(gate=gate)
    follower = Follower(recorder, [])
    for step in range(1000):
        follower.add(Line(step, 0.0, {"a": 1.0}))
    assert recorder.lines == []
    gate.set()
    follower.close("interrupted")
    assert [line.step for line in recorder.lines] == list(range(1000))
    assert recorder.calls < 20 and recorder.outcome == "interrupted"


def test_an_exception_tells_mirrors_that_the_training_failed(tmp_path: Path) -> None:
    recorder = _Recorder()
    with pytest.raises(ValueError, match="out of memory"), Tracker(RunDir(tmp_path), lambda: [recorder]):
        raise ValueError("out of memory")
    assert recorder.outcome == "failed"


@pytest.mark.parametrize(
    ("track", "package", "extra"),
    [
        (Track(tensorboard=True), "tensorboardX", "tensorboard"),
        (Track(mlflow=Mlflow()), "mlflow.tracking", "mlflow"),
        (Track(wandb=Wandb()), "wandb", "wandb"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: Track, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem, match=rf"pip install 'tunesmith\[{extra}\]'"):
        open_tracker(_recipe(tmp_path, track), RunDir(tmp_path), resumed_at_step=None)


def test_online_wandb_without_a_key_is_told_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(EnvironmentProblem, match="export WANDB_API_KEY"):
        open_tracker(_recipe(tmp_path, Track(wandb=Wandb(mode="online"))), RunDir(tmp_path), resumed_at_step=None)


def test_a_mirror_that_cannot_start_stops_the_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "file").write_text("in the way")
    settings = Mlflow(tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackError, match="take mlflow out of track"):
        open_tracker(_recipe(tmp_path, Track(mlflow=settings)), RunDir(tmp_path), resumed_at_step=None)


def test_a_tracking_uri_whose_variable_is_missing_names_it(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    settings = Mlflow(tracking_uri="${env:NO_SUCH_VARIABLE}")
    with pytest.raises(EnvironmentProblem, match="NO_SUCH_VARIABLE"):
        open_tracker(_recipe(tmp_path, Track(mlflow=settings)), RunDir(tmp_path), resumed_at_step=None)


def test_unwritable_tensorboard_directory_stops_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "tensorboard").write_text("a file in the way")
    with pytest.raises(TrackError, match="take tensorboard out of track"):
        open_tracker(_recipe(tmp_path, Track(tensorboard=True)), RunDir(tmp_path), resumed_at_step=None)


def test_no_mirror_no_import() -> None:
    code = (
        "import sys, tunesmith.track.tracker; "
        "print([m for m in ('mlflow', 'wandb', 'tensorboardX', 'torch', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parameters_are_flat() -> None:
    document = {"a": {"b": [{"c": 1}, {"c": None}], "d": [], "e": "x" * 7000}, "f": 0.1}
    flat = flatten(document)
    assert {name: flat[name] for name in ("a.b.0.c", "a.b.1.c", "a.d", "f")} == {
        "a.b.0.c": "1",
        "a.b.1.c": "None",
        "a.d": "[]",
        "f": "0.1",
    }
    assert len(flat["a.e"]) == 6000
