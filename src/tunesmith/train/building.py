"""The loop's parts, built in the order in which they depend on each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tunesmith.errors import TrainError
from tunesmith.model.adapters import AdapterSettings, attach
from tunesmith.model.head import SplitModel, keeps_packed_rows_apart, split, use_spans
from tunesmith.model.load import check_vocabulary, load_model
from tunesmith.recipe.frozen_weights import may_stay_stored
from tunesmith.recipe.schema import Recipe
from tunesmith.tokens.shards import Shards
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.track.console import say
from tunesmith.train import shard
from tunesmith.train.batches import Collator, Layout, Stream
from tunesmith.train.objective import DpoObjective, sft
from tunesmith.train.optim import Moved, build_optimizer
from tunesmith.train.out_of_memory import MemoryRoom
from tunesmith.train.reference import Reference
from tunesmith.train.setting import Setting
from tunesmith.train.threads import use_one_if_better
from tunesmith.train.token_losses import TokenLosses
from tunesmith.train.validation import Validation
from tunesmith.train.world import World


def build(setting: Setting, world: World) -> dict[str, Any]:
    """Return the loop's parts: tokens, model, adapter, what moves, the optimiser, the objective."""
    recipe, run_dir = setting.recipe, setting.run_dir
    train = recipe.train
    shards = Shards(run_dir.absolute(setting.dataset.train))
    if not len(shards):
        raise TrainError("there are no rows to train on", where=str(shards.directory), do="see data/quarantine.jsonl")
    held_out = Shards(run_dir.absolute(setting.dataset.validation)) if setting.dataset.validation else None
    four_bit, whole = train.method in ("qlora", "qdora"), train.lora.modules_to_save
    model = load_model(
        setting.base, recipe.model, four_bit=four_bit, device=world.device,
        keeps_stored=may_stay_stored(recipe, world.device.type), whole=whole,
    )  # fmt: skip
    # Rows tokenised by an earlier version do not say it; reading the tokenizer for it takes an eighth of a second.
    check_vocabulary(model, shards.meta.get("id_limit") or load_tokenizer(setting.base).id_limit, setting.base)
    torch.manual_seed(recipe.seed)
    if train.method != "full":
        attach(model, AdapterSettings.of(train.lora, train.method), seed=recipe.seed)
    else:
        model.requires_grad_(True)
    losses = TokenLosses(split(model, over_spans=recipe.model.attn_implementation == "varlen"))
    layout = _layout(recipe, losses.split, world)
    shard.prepare(losses, recipe, world)
    moved = Moved(model)
    room = MemoryRoom(run_dir.stage("train") / "memory.json")

    asked = int(train.per_device_train_batch_size) * recipe.data.max_length * (1 if shards.num_segments == 1 else 2)

    def collator(of: Shards) -> Collator:
        ranks_meet = train.parallelism == "fsdp2" and world.size > 1
        return Collator(
            of, layout, max_tokens=room.tokens(asked), device=world.device,
            rank=world.rank, num_ranks=world.size, even=ranks_meet,
        )  # fmt: skip

    of_training = collator(shards)
    of_a_step = float(of_training.lengths.mean()) * train.global_batch_size
    if world.device.type == "cpu" and use_one_if_better(model, min(asked, of_a_step)):
        say("  train: one thread; the products of a micro-batch are too small to share out (OMP_NUM_THREADS overrides)")
    parts = {
        "losses": losses,
        "moved": moved,
        "optimizer": build_optimizer(train, moved.weights),
        "stream": Stream(len(shards), train, recipe.seed),
        "collator": of_training,
        "room": room,
    }
    return parts | _objectives(setting, world, parts, collator(held_out) if held_out and len(held_out) else None)


def _layout(recipe: Recipe, parts: SplitModel, world: World) -> Layout:
    """Return how rows are laid out: what the recipe asks for, as far as the model's attention can do it."""
    able = recipe.model.attn_implementation == "varlen" and use_spans(parts)
    if recipe.data.packing is not True:
        return "padded"
    if able:
        return "spans"
    if recipe.model.attn_implementation != "varlen" and keeps_packed_rows_apart(parts):
        return "positions"
    if world.is_first:
        mixing = type(parts.model).__name__
        say(f"  train: the attention of {mixing} mixes packed rows; those of like length go side by side")
    return "padded"


def _objectives(setting: Setting, world: World, parts: dict[str, Any], held_out: Any) -> dict[str, Any]:
    """Return the objective and the validation, with what they know of DPO's reference."""
    train = setting.recipe.train
    num_held_out = len(held_out.lengths) if held_out is not None else 0
    if train.objective == "sft":
        validation = Validation(held_out, num_held_out, sft) if num_held_out else None
        return {"objective": sft, "reference": None, "validation": validation}

    def reference(name: str, collator: Any, rows: Any, num_rows: int) -> Reference:
        known = Reference(num_rows)
        if train.method == "full" or train.lora.modules_to_save:  # nothing to switch off once they have moved
            cache = setting.run_dir.stage("train") / f"reference-{name}.safetensors"
            known.fill(parts["losses"], collator, rows, world, cache, setting.identity)
        return known

    stream = parts["stream"]
    wanted = np.unique(np.concatenate([stream.rows(step) for step in range(stream.num_steps)]))
    known = reference("train", parts["collator"], wanted, stream.num_sequences)
    validation = None
    if num_held_out:
        own = reference("validation", held_out, np.arange(num_held_out), num_held_out)
        validation = Validation(held_out, num_held_out, DpoObjective(train.dpo, own.of), own)
    return {"objective": DpoObjective(train.dpo, known.of), "reference": known, "validation": validation}
