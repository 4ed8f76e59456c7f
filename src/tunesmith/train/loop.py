"""The loop. `fit` is the whole of a training; `_step` is one optimiser step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.errors import TrainError
from tunesmith.model.head import SplitModel
from tunesmith.recipe.schema import Train
from tunesmith.track.console import Progress
from tunesmith.track.tracker import Tracker
from tunesmith.train.batches import Collator, Rows, Stream
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.meter import Meter, peak_memory_bytes
from tunesmith.train.objective import Objective
from tunesmith.train.optim import Moved, clip, learning_rate, optimizer_tensors
from tunesmith.train.stop import StopSignals
from tunesmith.train.validation import Validation


@dataclass
class State:
    """What a training knows of its past; saved with every checkpoint."""

    step: int = 0  # optimiser steps done
    first_loss: float | None = None  # of the first logged step
    loss: float | None = None  # of the newest logged step
    loss_sum: float = 0.0  # since the newest logged step
    loss_count: int = 0
    validated_at: int | None = None
    validation_loss: float | None = None
    num_tokens: int = 0
    num_trained: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    resumed_from_steps: list[int] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Everything the loop works with, built by the stage."""

    train: Train
    split: SplitModel
    moved: Moved
    optimizer: torch.optim.Optimizer
    objective: Objective
    stream: Stream
    collator: Collator
    validation: Validation | None
    checkpoints: Checkpoints
    tracker: Tracker
    stop: StopSignals


def fit(job: Job, state: State) -> None:
    """Train from where `state` stands to the last step. Changes `state` as it goes.

    Raises:
        TrainError: the loss is not finite, or memory ran out.
        Interrupted: a signal asked to stop; the step it came in is finished and saved.
    """
    num_steps, train = job.stream.num_steps, job.train
    meter = Meter(tokens_before=state.num_tokens, trained_before=state.num_trained, seconds_before=state.seconds)
    with job.stop.noted(), Progress("train", num_steps, "steps") as progress:
        progress.start_at(state.step)
        if state.step:
            _validate_if_due(job, state)  # a stop signal may have come between the step and its validation
        while state.step < num_steps and not job.stop.requested:
            metrics = _step(job, state, meter)
            if state.step % train.logging_steps == 0 or state.step == num_steps:
                _log(job, state, meter, metrics)
            progress.advance(1, f"loss {state.loss:.4f}" if state.loss is not None else "")
            _validate_if_due(job, state)
            if state.step % train.save_steps == 0 or state.step == num_steps or job.stop.requested:
                save(job, state)
    if job.stop.requested:
        raise job.stop.interrupted(state.step)


def _step(job: Job, state: State, meter: Meter) -> dict[str, float]:
    """Make one optimiser step, and return its metrics. The sum of losses is divided by the global batch's count."""
    meter.start()
    rows = job.stream.rows(state.step)
    num_targets = job.collator.num_targets(rows)
    count = len(rows) if job.train.objective == "dpo" else max(1, num_targets)
    rate = learning_rate(job.train, state.step, job.stream.num_steps)
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    total: Any = 0.0  # stays on the device until the step is over
    metrics, num_tokens = dict[str, Any](), 0
    for batch in job.collator.micro_batches(rows):
        loss_sum, sums = job.objective(job.split, batch)
        (loss_sum / count).backward()
        total = total + loss_sum.detach().double()
        metrics = {name: metrics.get(name, 0.0) + value for name, value in sums.items()}
        num_tokens += batch.num_tokens
    norm = float(clip(job.moved.weights, job.train.max_grad_norm))
    loss = float(total) / count
    _check_finite(loss, norm, state.step, rows)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    job.moved.write_back()
    meter.stop(num_tokens, num_targets)
    state.num_tokens, state.num_trained, state.seconds = meter.num_tokens, meter.num_trained, meter.seconds
    state.step += 1
    state.loss_sum, state.loss_count = state.loss_sum + float(total), state.loss_count + count
    means = {f"train/{name}": float(value) / count for name, value in metrics.items()}
    return {"train/learning_rate": rate, "train/grad_norm": norm} | means


def _check_finite(loss: float, norm: float, step: int, rows: Rows) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"the {'loss' if not math.isfinite(loss) else 'gradient'} is not finite in step {step + 1}"
    shown = ", ".join(str(row) for row in rows[:16]) + ("…" if len(rows) > 16 else "")
    do = (
        "lower train.learning_rate or train.max_grad_norm, or use model.dtype: float32; "
        f"the sequences of this step: {shown} (`tunesmith data show` prints rows)"
    )
    raise TrainError(what, do=do)


def _log(job: Job, state: State, meter: Meter, metrics: dict[str, float]) -> None:
    """Write the mean loss since the last time, and the newest step's other numbers."""
    state.loss = state.loss_sum / state.loss_count
    state.first_loss = state.loss if state.first_loss is None else state.first_loss
    state.loss_sum, state.loss_count = 0.0, 0
    state.peak_memory_bytes = max(state.peak_memory_bytes, peak_memory_bytes())
    job.tracker.log(
        state.step,
        {"train/loss": state.loss}
        | metrics
        | meter.rates()
        | {"train/epoch": job.stream.epochs_done(state.step), "train/memory_gib": peak_memory_bytes() / 2**30},
    )


def _validate_if_due(job: Job, state: State) -> None:
    """Measure the validation loss where the recipe asks for it, and after the last step."""
    every, last = job.train.eval_steps, state.step == job.stream.num_steps
    due = last or (every is not None and state.step % every == 0)
    if job.validation is None or not due or state.validated_at == state.step:
        return
    metrics = job.validation.measure(job.split, job.objective, job.stop)
    if metrics is not None:
        state.validation_loss, state.validated_at = metrics["eval/loss"], state.step
        job.tracker.log(state.step, metrics)


def save(job: Job, state: State) -> None:
    """Write a checkpoint of this moment."""
    tensors = optimizer_tensors(job.optimizer, job.moved.weights)
    job.checkpoints.save(state.step, dict(job.moved.weights), tensors, dataclasses.asdict(state))
