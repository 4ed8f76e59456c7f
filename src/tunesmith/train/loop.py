"""The loop. `fit` is the whole of a training; `_step` is one optimiser step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tunesmith.errors import TrainError
from tunesmith.model.in_place import going_backward_times
from tunesmith.recipe.schema import Train
from tunesmith.track.console import Progress, say, warn
from tunesmith.track.tracker import Tracker
from tunesmith.train import watch
from tunesmith.train.batches import Batch, Collator, Rows, Stream
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.meter import Counts, Flops, Meter, peak_memory_bytes
from tunesmith.train.objective import METRICS, Objective
from tunesmith.train.optim import Moved, clip, learning_rate, optimizer_tensors
from tunesmith.train.out_of_memory import MemoryRoom, is_out_of_memory
from tunesmith.train.reference import Reference
from tunesmith.train.stop import StopSignals
from tunesmith.train.token_losses import TokenLosses
from tunesmith.train.validation import Validation
from tunesmith.train.world import World

_MAX_ROLLBACKS = 3


@dataclass
class State:
    """What a training knows of its past; saved with every checkpoint."""

    step: int = 0  # optimiser steps done, those left out among them
    first_loss: float | None = None  # of the first logged step
    loss: float | None = None  # of the newest logged step
    loss_sum: float = 0.0  # since the newest logged step
    loss_count: int = 0
    recent_losses: list[float] = field(default_factory=list)  # of single steps, newest last
    validated_at: int | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    best_step: int | None = None
    num_validations_since_best: int = 0
    left_out: list[int] = field(default_factory=list)  # steps whose rows are not trained on
    num_rollbacks: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    resumed_from_steps: list[int] = field(default_factory=list)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> State:
        return cls(**document | {"counts": Counts(**document["counts"])})


@dataclass(frozen=True)
class Job:
    """Everything the loop works with, built by the stage."""

    train: Train
    seed: int
    world: World
    losses: TokenLosses
    moved: Moved
    optimizer: torch.optim.Optimizer
    objective: Objective
    reference: Reference | None  # of DPO
    stream: Stream
    collator: Collator
    room: MemoryRoom
    validation: Validation | None
    checkpoints: Checkpoints
    tracker: Tracker | None  # rank 0's
    stop: StopSignals

    @property
    def sharded(self) -> bool:
        """Whether ranks hold shards, whose gradients are summed during the backward pass."""
        return self.train.parallelism == "fsdp2" and self.world.size > 1

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log(step, metrics)


class RollBack(Exception):
    """Asks the stage to go back to the newest checkpoint, with a step left out."""


# ── A training ───────────────────────────────────────────────────────────────────────────────────────────────────────


def fit(job: Job, state: State) -> None:
    """Train from where `state` stands to the last step. Changes `state` as it goes.

    Raises:
        TrainError: a step was bad and `on_bad_step` says stop, or memory ran out.
        RollBack: it says roll back.
        Interrupted: a signal asked to stop; the step it came in is finished and saved.
    """
    train, num_steps = job.train, job.stream.num_steps
    flops = Flops.of(job.losses.model, job.moved.num_parameters if train.method != "full" else 0)
    meter = Meter(counts=state.counts, seconds=state.seconds, flops=flops, num_ranks=job.world.size)
    looks = watch.Watch(train)
    with job.stop.noted(), Progress("train", num_steps, "steps", shown=job.world.is_first) as progress:
        progress.start_at(state.step)
        if state.step and _validate_if_due(job, state, looks) and train.load_best_model_at_end:
            save(job, state, best=True)  # a signal came between the step and its validation
        while state.step < num_steps and not _stopped_early(job, state) and not job.stop.agreed:
            passed_over = state.step in state.left_out  # after a rollback
            metrics = _pass_over(job, state) if passed_over else _step(job, state, meter)
            if state.step % train.logging_steps == 0 or state.step == num_steps:
                metrics |= _log(job, state, meter, metrics)
                if job.world.is_first and state.loss is not None and state.step - 1 not in state.left_out:
                    looks.step(state.step, state.loss, metrics["train/grad_norm"], metrics["train/tokens_per_second"])
            progress.advance(1, _note(state, metrics))
            best = _validate_if_due(job, state, looks) and train.load_best_model_at_end
            ends = state.step == num_steps or _stopped_early(job, state) or job.stop.agreed
            if state.step % train.save_steps == 0 or best or ends:
                save(job, state, best=best, aside=not ends)
    written = job.checkpoints.wait()
    if job.stop.agreed:
        raise job.stop.interrupted(state.step, saved=written)


def _step(job: Job, state: State, meter: Meter) -> dict[str, float]:
    """Make one optimiser step, and return its metrics. Losses and gradients are sums over all rows of the global batch,
    whichever rank and micro-batch they were in, divided by the global batch's count.
    """
    meter.start()
    rows = job.stream.rows(state.step)
    num_targets = job.collator.num_targets(rows)
    count = len(rows) if job.reference else max(1, num_targets)
    rate = learning_rate(job.train, state.step, job.stream.num_steps)
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    sums, counts = _accumulate(job, state, rows, count)
    if not job.sharded:
        job.world.sum_gradients(list(job.moved.weights.values()))
    names = ("loss", *METRICS[job.train.objective])
    stops, *summed = job.world.sums(
        [float(bool(job.stop.requested)), *(sums.get(name, 0.0) for name in names), *counts]
    )
    job.stop.agree(bool(stops))
    means = {name: value / count for name, value in zip(names, summed, strict=False)}
    norm = clip(job.moved.weights, job.train.max_grad_norm)
    loss = means.pop("loss")
    fault = watch.fault_of(loss, norm, state.recent_losses, job.train)
    if fault is not None:
        _leave_out(job, state, fault, rows)
    else:
        job.optimizer.step()
        job.moved.write_back()
        state.loss_sum, state.loss_count = state.loss_sum + loss * count, state.loss_count + count
        state.recent_losses = [*state.recent_losses, loss][-watch.WINDOW :]
    job.optimizer.zero_grad(set_to_none=True)
    meter.stop(Counts(summed[len(names)], num_targets, *summed[len(names) + 1 :]))
    state.counts, state.seconds = meter.counts, meter.seconds
    state.step += 1
    return {"train/learning_rate": rate, "train/grad_norm": norm} | {f"train/{n}": v for n, v in means.items()}


def _accumulate(job: Job, state: State, rows: Rows, count: int) -> tuple[dict[str, float], tuple[float, float, float]]:
    """Add up the gradients of this rank's share of a global batch; return sums of losses and metrics, and the tokens,
    positions and pairs that went through the model. When memory runs out, starts over with half the micro-batch.
    """
    while True:
        if job.reference is not None:
            job.reference.begin(rows)
        torch.manual_seed(_seed_of(job.seed, state.step, job.world.rank))
        sums = dict[str, Any](loss=0.0)  # stay on the device until the step is over
        tokens, computed, pairs = 0, 0, 0
        try:
            for batch in job.collator.micro_batches(rows):
                for name, value in _learn(job, batch, count).items():
                    sums[name] = sums.get(name, 0.0) + value.double()
                tokens, computed, pairs = (
                    tokens + batch.num_tokens,
                    computed + batch.num_computed,
                    pairs + batch.num_pairs,
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            if job.reference is not None:
                job.reference.end(rows, job.world)
            return {name: float(value) for name, value in sums.items()}, (tokens, computed, pairs)
        job.optimizer.zero_grad(set_to_none=True)
        event = job.room.halve(job.collator, state.step + 1, ranks_meet=job.sharded)
        state.events.append(event)


def _learn(job: Job, batch: Batch, count: int) -> dict[str, Any]:
    """Add a micro-batch's gradients; return its sums of loss and metrics.

    A function, so that the graph ends with it: kept, it would lie scattered among the next micro-batch's activations,
    and after memory ran out in a backward pass there would be no room for a smaller one.
    """
    with going_backward_times(1 / count) if job.losses.adds_in_place else contextlib.nullcontext():
        loss_sum, more = job.objective(job.losses, batch)
        (loss_sum / count).backward()
    return {**more, "loss": loss_sum.detach()}


def _seed_of(*numbers: int) -> int:
    """Return a seed made of (seed, step, rank): a step's random numbers depend on nothing that happened before it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


# ── Steps that are not taken ─────────────────────────────────────────────────────────────────────────────────────────


def _leave_out(job: Job, state: State, fault: str, rows: Rows) -> None:
    """Do what `on_bad_step` says about the step under way."""
    policy, step = job.train.on_bad_step, state.step + 1
    shown = ", ".join(str(row) for row in rows[:16]) + ("…" if len(rows) > 16 else "")
    if policy == "stop" or (policy == "rollback" and state.num_rollbacks >= _MAX_ROLLBACKS):
        do = (
            "lower train.learning_rate or train.max_grad_norm, use model.dtype: float32, or set train.on_bad_step: skip"
            f"; the sequences of this step: {shown} (`tunesmith data show` prints rows)"
        )
        raise TrainError(f"{fault} in step {step}", do=do)
    event = {"step": step, "event": policy, "reason": fault, "rows": [int(row) for row in rows]}
    if policy == "rollback":
        raise RollBack(event)
    if job.world.is_first:
        warn(f"{fault} in step {step}, which is left out; its sequences: {shown}")
    state.left_out.append(state.step)
    state.events.append(event)
    job.log(step, {"train/steps_left_out": len(state.left_out)})


def _pass_over(job: Job, state: State) -> dict[str, float]:
    """Go past a step that a rollback has left out."""
    state.step += 1
    job.log(state.step, {"train/steps_left_out": sum(step < state.step for step in state.left_out)})
    return {}


# ── What is told, measured and kept ──────────────────────────────────────────────────────────────────────────────────


def _log(job: Job, state: State, meter: Meter, metrics: dict[str, float]) -> dict[str, float]:
    """Write the mean loss since the last time, and the newest step's other numbers; return what was measured here."""
    loss: dict[str, float] = {}
    if state.loss_count:  # some step was taken
        state.loss = loss["train/loss"] = state.loss_sum / state.loss_count
        state.first_loss = state.loss if state.first_loss is None else state.first_loss
    elif not metrics:
        return {}
    state.loss_sum, state.loss_count = 0.0, 0
    state.peak_memory_bytes = max(state.peak_memory_bytes, peak_memory_bytes())
    measured = meter.rates(job.world.device, job.losses.model.dtype) | {
        "train/epoch": job.stream.epochs_done(state.step),
        "train/memory_gib": peak_memory_bytes() / 2**30,
    }
    job.log(state.step, loss | metrics | measured)
    return measured


def _note(state: State, metrics: dict[str, float]) -> str:
    """Return what stands behind the progress bar."""
    if state.loss is None or not {"train/mfu", "train/grad_norm"} <= metrics.keys():
        return ""
    total, trained = metrics["train/tokens_per_second"], metrics["train/trained_tokens_per_second"]
    return (
        f"loss {state.loss:.4f} · lr {metrics['train/learning_rate']:.2e} · grad {metrics['train/grad_norm']:.2f} · "
        f"{total:,.0f} tok/s ({trained:,.0f} trained) · {metrics['train/mfu']:.0%} of peak · "
        f"{metrics['train/memory_gib']:.1f} GiB"
    )


def _validate_if_due(job: Job, state: State, looks: watch.Watch) -> bool:
    """Measure the validation loss where the recipe asks for it, and after the last step; return whether it is the
    lowest so far.
    """
    every, last = job.train.eval_steps, state.step == job.stream.num_steps
    due = last or (every is not None and state.step % every == 0)
    if job.validation is None or not due or state.validated_at == state.step:
        return False
    metrics = job.validation.measure(job.losses, job.world, job.stop)
    if metrics is None:
        job.stop.agree(True)
        return False
    loss = state.validation_loss = metrics["eval/loss"]
    state.validated_at = state.step
    lowest = math.inf if state.best_validation_loss is None else state.best_validation_loss
    better = loss < lowest  # never of a loss that is not finite
    state.num_validations_since_best = 0 if better else state.num_validations_since_best + 1
    job.log(state.step, metrics)
    if job.world.is_first:
        looks.validated(state.step, loss)
    if better:
        state.best_validation_loss, state.best_step = loss, state.step
    if _stopped_early(job, state):
        state.events.append({"step": state.step, "event": "early stop", "reason": f"best was step {state.best_step}"})
        if job.world.is_first:
            say(f"  train: stops early, the validation loss was lowest after step {state.best_step}")
    return better


def _stopped_early(job: Job, state: State) -> bool:
    patience = job.train.early_stopping_patience
    return patience is not None and state.num_validations_since_best >= patience


def save(job: Job, state: State, *, best: bool = False, aside: bool = True) -> None:
    """Write a checkpoint of this moment: aside, while training goes on, or here and now."""
    tensors = optimizer_tensors(job.optimizer, job.moved.weights)
    if job.reference is not None:
        tensors[REFERENCE] = job.reference.table_N2
    weights, document = dict(job.moved.weights), dataclasses.asdict(state)
    job.checkpoints.save(state.step, weights, tensors, document, best=best, aside=aside)


REFERENCE = "reference//log_probabilities"  # beside the optimiser's tensors in a checkpoint
