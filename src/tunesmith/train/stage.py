"""Build everything in order, then call the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.artifacts import Checkpoint, Dataset
from tunesmith.errors import EnvironmentProblem, TrainError
from tunesmith.hardware import num_cpus, probe
from tunesmith.model.headers import read_headers
from tunesmith.model.imports import import_libraries
from tunesmith.model.locate import locate
from tunesmith.recipe.effects import WITHOUT_EFFECT
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.walk import plain
from tunesmith.store.files import fingerprint
from tunesmith.store.run_dir import RunDir
from tunesmith.train.final import finished, write_final
from tunesmith.train.setting import Setting
from tunesmith.train.stop import StopSignals

if TYPE_CHECKING:
    from tunesmith.train.checkpoint import Checkpoints
    from tunesmith.train.loop import Job, State
    from tunesmith.train.optim import Moved
    from tunesmith.train.reference import Reference
    from tunesmith.train.world import World

# ── The stage ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(recipe: Recipe, run_dir: RunDir) -> Checkpoint:
    """Train what the recipe asks for, from the newest whole checkpoint when there is one.

    Raises:
        ModelError, DataError: what it starts from is missing or does not fit together.
        TrainError: the loss is not finite, or memory ran out.
        Interrupted: a signal stopped it; the same call goes on.
    """
    with StopSignals() as stop:
        dataset = run_dir.load(Dataset)
        base = locate(recipe.model, recipe.output_dir)
        identity = identity_of(recipe, dataset, base)
        record = finished(run_dir, identity)
        if record is not None:
            return record
        return _train(recipe, run_dir, dataset, base, identity, stop)


def identity_of(recipe: Recipe, dataset: Dataset, base: Path) -> str:
    """Return the hash of what decides the result: checkpoints of another identity are not resumed."""
    train = {key: value for key, value in plain(recipe.train).items() if key not in WITHOUT_EFFECT["train"]}
    weights = [
        [name, info.dtype, info.shape, info.file.name, info.start] for name, info in sorted(read_headers(base).items())
    ]
    settings = [recipe.model.dtype, recipe.seed, recipe.data.packing, dataset.key, dataset.num_sequences]
    return fingerprint([train, settings, weights, json.loads((base / "config.json").read_text())])


def _train(
    recipe: Recipe, run_dir: RunDir, dataset: Dataset, base: Path, identity: str, stop: StopSignals
) -> Checkpoint:
    import_libraries()
    import torch

    from tunesmith.model.load import pick_device
    from tunesmith.train import world

    torch.set_num_threads(min(torch.get_num_threads(), num_cpus()))
    device = pick_device(world.local_rank())
    if device.type == "cpu" and probe().device == "cuda":
        do = "install the CUDA build of PyTorch, or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
        raise EnvironmentProblem("there is a GPU, but this PyTorch does not see it", do=do)
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    with _memory_errors_told(recipe), world.open_world(device) as peers:
        stop.alone = peers.size == 1
        return _train_in(peers, Setting(recipe, run_dir, dataset, base, identity), stop)


def _train_in(world: World, setting: Setting, stop: StopSignals) -> Checkpoint:
    """Train as one of the ranks of a world."""
    from tunesmith.track.tracker import open_tracker
    from tunesmith.train import loop, shard
    from tunesmith.train.building import build
    from tunesmith.train.checkpoint import Checkpoints
    from tunesmith.train.final import gathered

    recipe, run_dir = setting.recipe, setting.run_dir
    parts = build(setting, world)
    checkpoints = Checkpoints(
        run_dir.checkpoints, identity=setting.identity, keep=recipe.train.save_total_limit,
        rank=world.rank, num_ranks=world.size, attempt=world.from_first(secrets.token_hex(4)),
    )  # fmt: skip
    state = _restore(checkpoints, parts, world)
    with contextlib.ExitStack() as stack:
        tracker = None
        if world.is_first:
            resumed_at = state.step if state.resumed_from_steps else None
            tracker = stack.enter_context(open_tracker(recipe, run_dir, resumed_at_step=resumed_at))
        job = loop.Job(recipe.train, recipe.seed, world, checkpoints=checkpoints, tracker=tracker, stop=stop, **parts)
        _dry_run(job)
        _fit(job, state)
        if recipe.train.load_best_model_at_end:
            _take_best(job, state)
        record = _record(setting, job, state)
        if tracker is not None:
            tracker.summary(_summary(record))
        shard.let_go(job.losses)  # the last validation has left the outermost module's weights gathered
        tensors = gathered(job.losses.model, recipe, world)
    if world.is_first:
        record = write_final(setting, job.losses.model, tensors, record)
        _remove_broken(checkpoints)
    world.wait_for_all()
    return record


def _fit(job: Job, state: State) -> None:
    """Call the loop, and go back to the newest checkpoint as often as it asks for it."""
    from tunesmith.track.console import warn
    from tunesmith.train import loop

    while True:
        try:
            return loop.fit(job, state)
        except loop.RollBack as asked:
            (event,) = asked.args
            job.optimizer.zero_grad(set_to_none=True)
            job.checkpoints.wait()
            kept = {
                "left_out": [*state.left_out, event["step"] - 1],
                "num_rollbacks": state.num_rollbacks + 1,
                "events": [*state.events, event],
                "resumed_from_steps": state.resumed_from_steps,
            }
            earlier = _load(job.world.from_first(_newest(job)), vars(job))
            if job.world.is_first:
                back = f"back to step {earlier.step}, and past it without its rows"
                warn(f"{event['reason']} in step {event['step']}: {back}")
            if job.tracker is not None:
                job.tracker.rewind(earlier.step)
            for field in dataclasses.fields(state):
                setattr(state, field.name, kept.get(field.name, getattr(earlier, field.name)))


def _newest(job: Job) -> str | None:
    newest = job.checkpoints.newest() if job.world.is_first else None
    return str(newest) if newest else None


def _dry_run(job: Job) -> None:
    """Let the largest micro-batch pass through the model before step 1, so that a lack of memory shows at once.

    On a GPU only: elsewhere memory is promised without limit, and nothing would show.
    """
    import torch

    from tunesmith.train.out_of_memory import is_out_of_memory

    if job.world.device.type != "cuda":
        return
    while True:
        largest = job.collator.largest()
        if job.reference is not None:
            job.reference.begin(largest)
        try:
            for batch in job.collator.micro_batches(largest):
                job.objective(job.losses, batch)[0].backward()
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        job.room.halve(job.collator, 0, ranks_meet=job.sharded)
    job.optimizer.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()


def _remove_broken(checkpoints: Checkpoints) -> None:
    """Remove what was set aside, now that the training is whole without it."""
    from tunesmith.track.console import say

    removed = checkpoints.remove_broken()
    if removed:
        them = "checkpoint that was" if len(removed) == 1 else "checkpoints that were"
        say(f"  train: came to its end; removed the broken {them} set aside: {', '.join(removed)}")


# ── Where it starts, and where it ends ───────────────────────────────────────────────────────────────────────────────


def _restore(checkpoints: Checkpoints, parts: dict[str, Any], world: World) -> State:
    """Put the newest whole checkpoint into the parts, and return the state to go on from."""
    from tunesmith.track.console import say
    from tunesmith.train.loop import State

    newest = checkpoints.newest() if world.is_first else None
    path = world.from_first(str(newest) if newest else None)
    if path is None:
        return State()
    state = _load(path, parts)
    state.resumed_from_steps.append(state.step)
    if world.is_first:
        say(f"  train: goes on after step {state.step} of {parts['stream'].num_steps}")
    return state


def _load(path: str | None, parts: dict[str, Any]) -> State:
    """Put a checkpoint into the parts, and return its state.

    Raises:
        TrainError: there is none.
    """
    from tunesmith.train import checkpoint, shard
    from tunesmith.train.loop import REFERENCE, State
    from tunesmith.train.optim import fill_optimizer

    if path is None:
        raise TrainError(
            "there is no checkpoint to go back to yet", do="lower train.save_steps, or train.learning_rate"
        )
    moved: Moved = parts["moved"]
    reference: Reference | None = parts["reference"]
    checkpoint.load_weights(Path(path), moved.weights)
    moved.write_back()
    shard.let_go(parts["losses"])
    tensors = checkpoint.load_optimizer_tensors(Path(path), moved.weights)
    table = tensors.pop(REFERENCE, None)
    if reference is not None and table is not None:
        reference.table_N2.copy_(table)
    fill_optimizer(parts["optimizer"], moved.weights, tensors)
    return State.from_json(checkpoint.load_state(Path(path)))


def _take_best(job: Job, state: State) -> None:
    """Put the weights with the lowest validation loss back, when they are not the newest.

    Of losses whose checkpoint could not be kept nothing is claimed.
    """
    from tunesmith.track.console import say, warn
    from tunesmith.train import checkpoint
    from tunesmith.train.loop import State

    best = job.checkpoints.best() if job.world.is_first else None
    path = job.world.from_first(str(best) if best else None)
    if state.best_step in (None, state.step):
        return
    kept = State.from_json(checkpoint.load_state(Path(path))) if path else None
    if kept is None or kept.step != state.best_step:
        state.events.append({"step": state.step, "event": "best weights lost", "reason": f"of step {state.best_step}"})
        if job.world.is_first:
            warn(f"the weights of step {state.best_step}, whose validation loss was lowest, could not be kept")
        if kept is None:
            state.best_step = state.best_validation_loss = None
            return
        state.best_step, state.best_validation_loss = kept.step, kept.best_validation_loss
    assert path is not None
    checkpoint.load_weights(Path(path), job.moved.weights)
    job.moved.write_back()
    state.events.append({"step": state.step, "event": "best weights", "reason": f"those of step {state.best_step}"})
    if job.world.is_first:
        say(f"  train: ends with the weights of step {state.best_step}, the best of those that were kept")


# ── The record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _record(setting: Setting, job: Job, state: State) -> Checkpoint:
    from tunesmith.train.meter import peak_memory_bytes

    recipe, base = setting.recipe, setting.base
    in_checkpoint = sum(info.num_elements for info in read_headers(base).values())
    name = recipe.model.name_or_path
    if state.first_loss is None or state.loss is None:
        raise TrainError(
            "no step was good enough to be taken", do="see the warnings above, and lower train.learning_rate"
        )
    with_best = recipe.train.load_best_model_at_end and state.best_validation_loss is not None
    return Checkpoint(
        path=setting.run_dir.relative(setting.run_dir.trained),
        method=recipe.train.method,
        base_model=str(base.resolve()) if Path(name).exists() or name.startswith("run:") else name,
        num_steps=state.step,
        first_loss=state.first_loss,
        final_loss=state.loss,
        validation_loss=state.best_validation_loss if with_best else state.validation_loss,
        num_trainable_parameters=job.moved.num_parameters,
        num_parameters=in_checkpoint,
        trained_tokens_per_second=state.counts.trained / max(1e-9, state.seconds),
        tokens_per_second=state.counts.tokens / max(1e-9, state.seconds),
        peak_memory_bytes=max(state.peak_memory_bytes, peak_memory_bytes()),
        seconds=round(state.seconds, 3),
        resumed_from_steps=tuple(state.resumed_from_steps),
        num_ranks=job.world.size,
        shared_tokens=round(state.counts.shared, 4),
        events=tuple(state.events),
    )


def _summary(record: Checkpoint) -> dict[str, float]:
    return {
        "train/total_seconds": record.seconds,
        "train/mean_tokens_per_second": record.tokens_per_second,
        "train/peak_memory_gib": record.peak_memory_bytes / 2**30,
    }


@contextlib.contextmanager
def _memory_errors_told(recipe: Recipe) -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out outside of steps into an error that says what to do."""
    from tunesmith.train.out_of_memory import is_out_of_memory, too_large

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_large(int(recipe.train.per_device_train_batch_size) * recipe.data.max_length) from None
