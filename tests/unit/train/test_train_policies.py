"""What training does when something goes wrong: bad steps, lack of memory, a full disk, a signal at a bad moment."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import tiny  # noqa: E402
from tunesmith.errors import Interrupted, TrainError  # noqa: E402
from tunesmith.recipe.schema import Recipe, Train  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402
from tunesmith.tokens.shards import Shards, ShardWriter  # noqa: E402
from tunesmith.train import objective, stage  # noqa: E402
from tunesmith.train.batches import Stream  # noqa: E402
from tunesmith.train.watch import WINDOW, Watch  # noqa: E402

ROOT = Path(__file__).parents[3]
POISON = tiny.VOCAB_SIZE - 1  # a token whose embedding is infinite
NUM_ROWS, NUM_STEPS = 24, 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def poisoned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("poisoned") / "base"
    shutil.copytree(base, path)
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = torch.inf
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe_of(base: Path, place: Path, **train: Any) -> Recipe:
    return tiny.recipe_for(base, place, **{"num_train_epochs": 2.0, "learning_rate": 3e-3} | train)


def run_with(place: Path, recipe: Recipe, *, bad_steps: tuple[int, ...], num_held_out: int = 0) -> RunDir:
    """Return a run in which one row of each of these steps (counted from 1) holds the poison, and no other row does."""
    run_dir = tiny.run_with_rows(place, num_rows=NUM_ROWS, num_held_out=num_held_out)
    stream = Stream(NUM_ROWS, recipe.train, recipe.seed)
    bad = {int(stream.rows(step - 1)[0]) for step in bad_steps}

    def spoil(row: int, ids: Any) -> Any:
        clean = np.where(ids == POISON, 7, ids)
        return np.concatenate([[POISON], clean[1:]]) if row in bad else clean

    rewrite(run_dir.train_tokens, spoil)
    if num_held_out:
        rewrite(run_dir.validation_tokens, lambda row, ids: np.where(ids == POISON, 7, ids))
    return run_dir


def rewrite(path: Path, change: Any) -> None:
    """Give every row other tokens."""
    shards = Shards(path)
    rows = [shards.segment(row, 0) for row in range(len(shards))]
    shutil.rmtree(path)
    with ShardWriter(path, 1) as writer:
        for number, (ids, flags) in enumerate(rows):
            writer.add([(change(number, ids).astype(np.uint32), flags)])
        writer.close({})


def final(run_dir: RunDir) -> dict[str, Any]:
    (file,) = run_dir.trained.glob("*.safetensors")
    tensors: dict[str, Any] = load_file(file)
    return tensors


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)


# ── Bad steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_skip_and_rollback_leave_the_bad_step_out_and_end_alike(
    poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves, ends = [], []
    for policy in ("skip", "rollback"):
        recipe = recipe_of(poisoned, tmp_path, on_bad_step=policy, save_steps=4, num_train_epochs=1.0)
        run_dir = run_with(tmp_path / policy, recipe, bad_steps=(6,))
        record = stage.run(recipe, run_dir)
        (event,) = record.events
        assert event["event"] == policy and event["step"] == 6 and "not finite" in event["reason"]
        assert len(event["rows"]) == 4 and record.num_steps == 6
        assert tiny.losses(run_dir, "train/steps_left_out") == [(6, 1.0)]
        curves.append(tiny.losses(run_dir))
        ends.append(final(run_dir))
        assert all(torch.isfinite(tensor).all() for tensor in ends[-1].values())
    assert [step for step, _ in curves[0]] == [1, 2, 3, 4, 5], "one line per step, none for the one left out"
    assert curves[0] == curves[1] and same(*ends)
    told = capsys.readouterr().err
    assert "in step 6, which is left out" in told and "back to step 4" in told


def test_rollback_keeps_to_the_measurements(poisoned: Path, tmp_path: Path) -> None:
    """Two bad steps, with means of two steps logged and validation in between."""
    ends = []
    for policy in ("skip", "rollback"):
        recipe = recipe_of(poisoned, tmp_path, on_bad_step=policy, save_steps=2, eval_steps=3, logging_steps=2)
        # The second epoch meets that row again.
        run_dir = run_with(tmp_path / policy, recipe, bad_steps=(6,), num_held_out=4)
        record = stage.run(recipe, run_dir)
        assert [event["event"] for event in record.events] == [policy] * 2
        assert [step for step, _ in tiny.losses(run_dir)] == [2, 4, 6, 8, 10, 12] and record.num_steps == NUM_STEPS
        assert [step for step, _ in tiny.losses(run_dir, "eval/loss")] == [3, 6, 9, 12]
        ends.append((tiny.losses(run_dir), tiny.losses(run_dir, "eval/loss"), record.validation_loss))
    assert ends[0] == ends[1]


def test_a_left_out_step_that_is_the_last_one(poisoned: Path, tmp_path: Path) -> None:
    recipe = recipe_of(poisoned, tmp_path, on_bad_step="rollback", save_steps=2, num_train_epochs=1.0)
    run_dir = run_with(tmp_path / "run", recipe, bad_steps=(6,))
    record = stage.run(recipe, run_dir)
    assert record.num_steps == 6 and (run_dir.checkpoints / "step-000006").exists()


def test_the_fourth_rollback_and_one_without_a_checkpoint_stop(poisoned: Path, tmp_path: Path) -> None:
    recipe = recipe_of(poisoned, tmp_path, on_bad_step="rollback", save_steps=1, num_train_epochs=1.0)
    run_dir = run_with(tmp_path / "four", recipe, bad_steps=(2, 3, 5, 6))
    with pytest.raises(TrainError, match="not finite in step 6"):
        stage.run(recipe, run_dir)
    assert len(tiny.losses(run_dir, "train/steps_left_out")) == 3
    run_dir = run_with(tmp_path / "first", recipe, bad_steps=(1,))
    with pytest.raises(TrainError, match="no checkpoint to go back to") as caught:
        stage.run(recipe, run_dir)
    assert "save_steps" in caught.value.do


def test_a_loss_that_jumps(base: Path, tmp_path: Path) -> None:
    """All rows are alike but one, which comes once the others have been learnt."""
    settings = {"method": "full", "learning_rate": 1e-2, "num_train_epochs": 1.0}
    recipe = recipe_of(base, tmp_path, on_bad_step="skip", max_loss_spike=2.0, **settings)
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=96)
    strange = int(Stream(96, recipe.train, recipe.seed).rows(19)[0])
    random = np.random.default_rng(3)
    rewrite(
        run_dir.train_tokens,
        lambda row, ids: random.integers(3, 300, len(ids)) if row == strange else np.resize([5, 9, 17], len(ids)),
    )
    record = stage.run(recipe, run_dir)
    (event,) = record.events
    assert event["step"] == 20 and event["event"] == "skip" and "the loss jumped to" in event["reason"]
    assert record.num_steps == 24 and max(loss for step, loss in tiny.losses(run_dir)[-4:]) < 1.0


def test_a_validation_loss_that_is_not_finite_is_not_the_best(poisoned: Path, tmp_path: Path) -> None:
    recipe = recipe_of(poisoned, tmp_path, eval_steps=2, early_stopping_patience=2, load_best_model_at_end=True)
    run_dir = run_with(tmp_path / "run", recipe, bad_steps=(), num_held_out=4)
    rewrite(run_dir.validation_tokens, lambda row, ids: np.where(np.arange(len(ids)) == 0, POISON, ids))
    record = stage.run(recipe, run_dir)
    assert [event["event"] for event in record.events] == ["early stop"] and record.num_steps == 4


# ── Lack of memory ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_micro_batches_are_halved_until_they_fit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"per_device_train_batch_size": 2, "global_batch_size": 12}
    expected = tiny.run_with_rows(tmp_path / "expected", num_rows=NUM_ROWS)
    stage.run(recipe_of(base, tmp_path, **settings), expected)
    largest = [0]

    def short(losses: Any, batch: Any) -> Any:
        sums = objective.sft(losses, batch)
        if batch.num_computed > 50:
            sums[0].backward()  # what was done before memory ran out must not count
            raise torch.OutOfMemoryError("no memory for this")
        largest[0] = max(largest[0], batch.num_computed)
        return sums

    monkeypatch.setattr("tunesmith.train.building.sft", short)
    run_dir = tiny.run_with_rows(tmp_path / "short", num_rows=NUM_ROWS)
    record = stage.run(recipe_of(base, tmp_path, **settings), run_dir)
    found, wanted = tiny.losses(run_dir), tiny.losses(expected)
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], rel=1e-5)
    assert len(found) == len(wanted) == 4
    assert [event["reason"] for event in record.events] == ["160 → 80 tokens per pass", "80 → 40 tokens per pass"]
    assert largest[0] <= 40 and "goes on with 40" in capsys.readouterr().err
    assert json.loads((run_dir.stage("train") / "memory.json").read_text()) == {"max_tokens": 40}
    again = stage.run(dataclasses.replace(recipe_of(base, tmp_path, **settings), seed=8), run_dir)
    assert again.events == (), "the next start knows"


def test_a_row_that_is_too_large_alone(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(losses: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("no memory for anything")

    monkeypatch.setattr("tunesmith.train.building.sft", short)
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=8)
    with pytest.raises(TrainError, match="memory ran out") as caught:
        stage.run(recipe_of(base, tmp_path), run_dir)
    assert "gradient_checkpointing" in caught.value.do


_SHORT = """
import json, resource, sys
from pathlib import Path
import torch
from tests import tiny
from tunesmith.store.run_dir import RunDir
from tunesmith.train import building, objective, stage
torch.set_num_threads(1)
base, output, run, settings = sys.argv[1:]
calls = []
def limited(losses, batch):
    if not calls:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20), resource.RLIM_INFINITY))
    calls.append(batch.num_computed)
    return objective.sft(losses, batch)
building.sft = limited
record = stage.run(tiny.recipe_for(Path(base), Path(output), **json.loads(settings)), RunDir(run))
print(json.dumps(record.events))
"""


def test_memory_that_really_runs_out(base: Path, tmp_path: Path) -> None:
    """A process that may take 128 MiB more than it has when training begins."""
    settings = {
        "per_device_train_batch_size": 2000, "global_batch_size": 2000,
        "num_train_epochs": 2.0, "learning_rate": 1e-3,
    }  # fmt: skip
    whole, run_dir = (tiny.run_with_rows(tmp_path / name, num_rows=2000) for name in ("whole", "short"))
    stage.run(tiny.recipe_for(base, tmp_path, **settings), whole)
    words = [sys.executable, "-c", _SHORT, str(base), str(tmp_path), str(run_dir.path), json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout.splitlines()[-1])
    assert events and {event["event"] for event in events} == {"out of memory"} and len(events) < 8
    found, wanted = tiny.losses(run_dir), tiny.losses(whole)
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], rel=1e-5) and len(found) == 2


# ── A full disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_training_goes_on_while_the_disk_is_full(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may grow beyond 32 KiB for some steps: metrics can be written, checkpoints cannot."""
    whole = tiny.run_with_rows(tmp_path / "whole", num_rows=NUM_ROWS)
    stage.run(recipe_of(base, tmp_path, save_steps=2), whole)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = at_steps(monkeypatch, {3: lambda: _limit_files(32 << 10), 10: lambda: _limit_files(limits[0])})
    run_dir = tiny.run_with_rows(tmp_path / "full", num_rows=NUM_ROWS)
    try:
        stage.run(recipe_of(base, tmp_path, save_steps=2), run_dir)
    finally:
        _limit_files(limits[0])
    assert calls[0] == NUM_STEPS
    told = capsys.readouterr().err
    assert all(f"checkpoint of step {step} could not be written, training goes on" in told for step in (4, 6))
    assert tiny.losses(run_dir) == tiny.losses(whole) and same(final(run_dir), final(whole))
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["step-000010", "step-000012"]


def _limit_files(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def at_steps(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Any]) -> list[int]:
    """Do something at the beginning of a step (counted from 1 in each training) whose micro-batches are one each."""
    calls = [0]

    def acting(losses: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            calls[0] += 1
            actions.get(calls[0], lambda: None)()
        return objective.sft(losses, batch)

    monkeypatch.setattr("tunesmith.train.building.sft", acting)
    return calls


# ── Stopped and resumed ──────────────────────────────────────────────────────────────────────────────────────────────

_ONE_EACH = {"per_device_train_batch_size": 4}  # micro-batch of a step


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adamw_8bit", "method": "full"},
        {"optim": "paged_adamw_8bit", "method": "full"},
        {"optim": "adafactor", "method": "full"},
        {"optim": "adafactor", "lora": {"r": 4, "dropout": 0.2}},
        {"deterministic": True, "lora": {"r": 4, "dropout": 0.2}, "gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(str(value) for value in list(settings.values())[:2]).replace(" ", ""),
)
@pytest.mark.filterwarnings("error:Paged optimizers", "error:`gradient_checkpointing_enable`")  # users would see them
def test_resumed_exactly(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    if "8bit" in settings.get("optim", ""):
        pytest.importorskip("bitsandbytes")
    recipe = recipe_of(base, tmp_path, **_ONE_EACH | settings)
    try:
        whole = tiny.run_with_rows(tmp_path / "whole", num_rows=NUM_ROWS)
        stage.run(recipe, whole)
        curve = tiny.losses(whole)
        assert curve[-1][1] < curve[0][1], "it learns"
        run_dir = tiny.run_with_rows(tmp_path / "stopped", num_rows=NUM_ROWS)
        at_steps(monkeypatch, {7: lambda: signal.raise_signal(signal.SIGUSR1)})
        with pytest.raises(Interrupted, match="SIGUSR1 after step 7, which is saved"):
            stage.run(recipe, run_dir)
        assert stage.run(recipe, run_dir).resumed_from_steps == (7,)
    finally:
        torch.use_deterministic_algorithms(False)
    assert tiny.losses(run_dir) == curve
    assert same(final(run_dir), final(whole))


# ── The best weights ─────────────────────────────────────────────────────────────────────────────────────────────────


def overfitting(place: Path) -> RunDir:
    return tiny.run_with_rows(place, num_rows=NUM_ROWS, num_held_out=6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_stops_early_and_ends_with_the_best_weights(base: Path, tmp_path: Path, method: str) -> None:
    settings = {
        "method": method, "num_train_epochs": 20.0, "eval_steps": 2, "save_steps": 3, "save_total_limit": 1,
        "learning_rate": 3e-3, "early_stopping_patience": 3, "load_best_model_at_end": True,
    }  # fmt: skip
    run_dir = overfitting(tmp_path / "run")
    record = stage.run(recipe_of(base, tmp_path, **settings), run_dir)
    measured = tiny.losses(run_dir, "eval/loss")
    best_step, lowest = min(measured, key=lambda point: point[1])
    assert record.num_steps == measured[-1][0] == best_step + 6 < 120
    assert record.validation_loss == lowest
    assert [(event["event"], event["reason"]) for event in record.events] == [
        ("early stop", f"best was step {best_step}"),
        ("best weights", f"those of step {best_step}"),
    ]
    assert f"step-{best_step:06d}" in {path.name for path in run_dir.checkpoints.iterdir()}
    kept = load_file(run_dir.checkpoints / f"step-{best_step:06d}" / "weights.safetensors")
    ended = final(run_dir)
    assert sorted(tensor.sum().item() for tensor in kept.values()) == sorted(t.sum().item() for t in ended.values())


def test_the_best_is_known_when_a_signal_comes_before_its_validation(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the step, measured after the restart, and still the weights that training ends with."""
    settings = _ONE_EACH | {"num_train_epochs": 8.0, "eval_steps": 2, "save_steps": 100, "load_best_model_at_end": True}
    whole = overfitting(tmp_path / "whole")
    expected = stage.run(recipe_of(base, tmp_path, **settings), whole)
    (event,) = expected.events
    best_step = int(event["reason"].split()[-1])
    run_dir = overfitting(tmp_path / "stopped")
    at_steps(monkeypatch, {best_step: lambda: signal.raise_signal(signal.SIGTERM)})
    with pytest.raises(Interrupted):
        stage.run(recipe_of(base, tmp_path, **settings), run_dir)
    found = stage.run(recipe_of(base, tmp_path, **settings), run_dir)
    assert found.resumed_from_steps == (best_step,)
    assert found.events == expected.events and found.validation_loss == expected.validation_loss
    assert same(final(run_dir), final(whole))


def test_best_weights_that_are_lost_are_not_claimed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint with the lowest loss could not be kept: the record is about the weights at the end."""
    settings = _ONE_EACH | {"num_train_epochs": 8.0, "eval_steps": 2, "save_steps": 100, "load_best_model_at_end": True}
    first = overfitting(tmp_path / "first")
    best_step = int(stage.run(recipe_of(base, tmp_path, **settings), first).events[0]["reason"].split()[-1])
    run_dir = overfitting(tmp_path / "run")

    def lose() -> None:
        until = time.monotonic() + 30  # it is written aside
        while not (run_dir.checkpoints / f"step-{best_step:06d}").exists() and time.monotonic() < until:
            time.sleep(0.01)
        for kept in run_dir.checkpoints.glob("step-*"):
            shutil.rmtree(kept)

    at_steps(monkeypatch, {best_step + 2: lose})
    record = stage.run(recipe_of(base, tmp_path, **settings), run_dir)
    measured = tiny.losses(run_dir, "eval/loss")
    assert record.validation_loss == measured[-1][1] > min(loss for _, loss in measured)
    assert [event["event"] for event in record.events] == ["best weights lost"]
    newest = load_file(run_dir.checkpoints / f"step-{record.num_steps:06d}" / "weights.safetensors")
    assert sorted(t.sum().item() for t in newest.values()) == sorted(t.sum().item() for t in final(run_dir).values())


# ── Signs that something is wrong ────────────────────────────────────────────────────────────────────────────────────

HEALTHY = [(3.0 * 0.99**step + 0.1 * (step % 3), 0.5 + 0.1 * (step % 2), 1000.0 + step % 7) for step in range(200)]
SICK = {
    "gradient has been zero": [(3.0, 0.0, 1000.0)] * 80,
    "cut down more than twenty times": [(loss, 40.0, speed) for loss, _, speed in HEALTHY],
    "loss has risen": HEALTHY[:80] + [(2.0 + 0.05 * step, 0.5, 1000.0) for step in range(80)],
    "half of what it did": HEALTHY[:80] + [(loss, norm, 300.0) for loss, norm, _ in HEALTHY[80:]],
}


@pytest.mark.parametrize("sign", [*SICK, None])
def test_each_sign_is_told_once(sign: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    looks = Watch(Train())
    for step, numbers in enumerate(SICK.get(sign, HEALTHY) if sign else HEALTHY, start=1):
        looks.step(step, *numbers)
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == (sign is not None) and (sign is None or sign in told[0])
    assert WINDOW > 16


def test_overfitting_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    looks = Watch(Train())
    for step, loss in enumerate([3.0, 2.0, 2.1, 2.05, 2.04, 2.1, 2.2, 2.3, 2.4, 2.5]):
        looks.validated(step, loss)
    assert capsys.readouterr().err.count("learns its rows by heart") == 1
