"""Build everything in order, then call the loop."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.artifacts import Checkpoint, Dataset
from tunesmith.errors import EnvironmentProblem, TrainError, missing_extra
from tunesmith.hardware import num_cpus, probe
from tunesmith.model.headers import read_headers
from tunesmith.model.locate import locate
from tunesmith.recipe.effects import WITHOUT_EFFECT
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.walk import plain
from tunesmith.store.files import fingerprint
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.shards import Shards
from tunesmith.train.final import finished, write_final
from tunesmith.train.stop import StopSignals

if TYPE_CHECKING:
    from tunesmith.train.loop import Job, State

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
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "train", needed_for="training") from None
    from tunesmith.model.load import pick_device
    from tunesmith.track.tracker import open_tracker
    from tunesmith.train import checkpoint, loop

    torch.set_num_threads(min(torch.get_num_threads(), num_cpus()))
    device = pick_device()
    if device.type == "cpu" and probe().device == "cuda":
        do = "install the CUDA build of PyTorch, or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
        raise EnvironmentProblem("there is a GPU, but this PyTorch does not see it", do=do)

    with _memory_errors_told(recipe):
        parts = _build(recipe, run_dir, dataset, base, identity, device)
        checkpoints = checkpoint.Checkpoints(run_dir.checkpoints, identity=identity, keep=recipe.train.save_total_limit)
        newest = checkpoints.newest()
        state = _restore(newest, parts) if newest else loop.State()
        with open_tracker(recipe, run_dir, resumed_at_step=state.step if newest else None) as tracker:
            job = loop.Job(recipe.train, checkpoints=checkpoints, tracker=tracker, stop=stop, **parts)
            loop.fit(job, state)
            record = _record(recipe, run_dir, base, job, state)
            tracker.summary(_summary(record))
        write_final(recipe, run_dir, base, job.split.model, record, identity)
    return record


# ── The parts, in the order they depend on each other ────────────────────────────────────────────────────────────────


def _build(recipe: Recipe, run_dir: RunDir, dataset: Dataset, base: Path, identity: str, device: Any) -> dict[str, Any]:
    """Return the loop's parts: tokens, model, adapter, what moves, the optimiser, the objective."""
    import torch

    from tunesmith.model.adapters import AdapterSettings, attach
    from tunesmith.model.head import keeps_packed_rows_apart, split
    from tunesmith.model.load import check_vocabulary, load_model
    from tunesmith.tokens.tokenizer import load_tokenizer
    from tunesmith.train.batches import Collator, Stream
    from tunesmith.train.optim import Moved, build_optimizer

    train = recipe.train
    shards = Shards(run_dir.absolute(dataset.train))
    if not len(shards):
        raise TrainError("there are no rows to train on", where=str(shards.directory), do="see data/quarantine.jsonl")
    held_out = Shards(run_dir.absolute(dataset.validation)) if dataset.validation else None
    stream = Stream(len(shards), train, recipe.seed)

    model = load_model(base, recipe.model, four_bit=train.method in ("qlora", "qdora"), device=device)
    check_vocabulary(model, load_tokenizer(base).id_limit, base)
    torch.manual_seed(recipe.seed)
    if train.method != "full":
        attach(model, AdapterSettings.of(train.lora, train.method), seed=recipe.seed)
    moved = Moved(model)
    if train.gradient_checkpointing is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parted = split(model)
    if recipe.data.packing is True and not keeps_packed_rows_apart(parted):
        what = f"{type(model).__name__} with {recipe.model.attn_implementation} attention mixes rows that are packed"
        raise TrainError(what, where="data.packing", do="set data.packing: false")

    def collator(of: Shards) -> Collator:
        size = int(train.per_device_train_batch_size)
        return Collator(of, micro_batch_size=size, packing=recipe.data.packing is True, device=device)

    parts = {
        "split": parted,
        "moved": moved,
        "optimizer": build_optimizer(train, moved.weights),
        "stream": stream,
        "collator": collator(shards),
    }
    return parts | _objectives(recipe, run_dir, identity, parts, collator(held_out) if held_out else None, held_out)


def _objectives(
    recipe: Recipe, run_dir: RunDir, identity: str, parts: dict[str, Any], held_out: Any, held_out_rows: Shards | None
) -> dict[str, Any]:
    """Return the objective and the validation; DPO scores its rows under the reference model first."""
    import numpy as np

    from tunesmith.train.objective import DpoObjective, sft
    from tunesmith.train.reference import reference_log_probabilities
    from tunesmith.train.validation import Validation

    num_held_out = len(held_out_rows) if held_out_rows is not None else 0
    if recipe.train.objective == "sft":
        validation = Validation(held_out, num_held_out, counts_pairs=False) if num_held_out else None
        return {"objective": sft, "validation": validation}

    def objective(name: str, collator: Any, rows: Any, num_rows: int) -> DpoObjective:
        cache = run_dir.stage("train") / f"reference-{name}.safetensors"
        table = reference_log_probabilities(parts["split"], collator, rows, num_rows, cache=cache, identity=identity)
        return DpoObjective(recipe.train.dpo, table)

    stream = parts["stream"]
    wanted = np.unique(np.concatenate([stream.rows(step) for step in range(stream.num_steps)]))
    trained = objective("train", parts["collator"], wanted, stream.num_sequences)
    validation = None
    if num_held_out:
        own = objective("validation", held_out, np.arange(num_held_out), num_held_out)
        validation = Validation(held_out, num_held_out, counts_pairs=True, objective=own)
    return {"objective": trained, "validation": validation}


def _restore(newest: Path, parts: dict[str, Any]) -> State:
    """Put a checkpoint into the parts, and return the state to go on from."""
    from tunesmith.track.console import say
    from tunesmith.train import checkpoint
    from tunesmith.train.loop import State
    from tunesmith.train.optim import fill_optimizer

    checkpoint.load_weights(newest, parts["moved"].weights)
    parts["moved"].write_back()
    fill_optimizer(parts["optimizer"], parts["moved"].weights, checkpoint.load_optimizer_tensors(newest))
    checkpoint.restore_rng(newest)
    state = State(**checkpoint.load_state(newest))
    state.resumed_from_steps.append(state.step)
    say(f"  train: goes on after step {state.step} of {parts['stream'].num_steps}")
    return state


# ── The record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _record(recipe: Recipe, run_dir: RunDir, base: Path, job: Job, state: State) -> Checkpoint:
    in_checkpoint = sum(info.num_elements for info in read_headers(base).values())
    name = recipe.model.name_or_path
    assert state.first_loss is not None and state.loss is not None, "a training has at least one step"
    return Checkpoint(
        path=run_dir.relative(run_dir.trained),
        method=recipe.train.method,
        base_model=str(base.resolve()) if Path(name).exists() or name.startswith("run:") else name,
        num_steps=state.step,
        first_loss=state.first_loss,
        final_loss=state.loss,
        validation_loss=state.validation_loss,
        num_trainable_parameters=job.moved.num_parameters,
        num_parameters=in_checkpoint,
        trained_tokens_per_second=state.num_trained / max(1e-9, state.seconds),
        tokens_per_second=state.num_tokens / max(1e-9, state.seconds),
        peak_memory_bytes=state.peak_memory_bytes,
        seconds=round(state.seconds, 3),
        resumed_from_steps=tuple(state.resumed_from_steps),
    )


def _summary(record: Checkpoint) -> dict[str, float]:
    return {
        "train/total_seconds": record.seconds,
        "train/mean_tokens_per_second": record.tokens_per_second,
        "train/peak_memory_gib": record.peak_memory_bytes / 2**30,
    }


@contextlib.contextmanager
def _memory_errors_told(recipe: Recipe) -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out into an error that says what to do."""
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_cpu = "can't allocate memory" in str(error) or isinstance(error, MemoryError)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        size = recipe.train.per_device_train_batch_size
        do = (
            f"lower train.per_device_train_batch_size (now {size}; the result stays the same) or data.max_length, "
            "set train.gradient_checkpointing: true, or use qlora"
        )
        raise TrainError("memory ran out", do=do) from None
