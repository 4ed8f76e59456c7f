"""One rank of `test_train_ranks.py`: gradients of one global batch and short trainings, all in one process group.

    python -m tunesmith.train.ranks 2 tests/parity/ranks_worker.py PLACE

PLACE holds a model `base`, its tied twin `tied`, its twin in 16 bits `narrow`, and the rows of `sft` and `dpo`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests import tiny
from tunesmith.artifacts import Dataset
from tunesmith.recipe.schema import Dpo, Recipe
from tunesmith.store.run_dir import RunDir
from tunesmith.train import loop, shard, stage
from tunesmith.train.building import build
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.setting import Setting
from tunesmith.train.stop import StopSignals
from tunesmith.train.world import World, open_world

NUM_ROWS = 13
BATCHES = {"whole": NUM_ROWS, "few": 3}  # of the second one, some of four ranks get nothing
CASES = [
    (objective, method, parallelism)
    for objective in ("sft", "dpo")
    for method in ("full", "lora", "dora")
    for parallelism in ("ddp", "fsdp2")
]


@dataclass(frozen=True)
class Training:
    """A short training with validation, on all ranks."""

    name: str
    base: str
    objective: str
    method: str
    parallelism: str
    modules_to_save: tuple[str, ...] = ()


TRAININGS = (
    Training("whole copies", "base", "sft", "full", "ddp"),
    Training("tied shards", "tied", "sft", "full", "fsdp2"),
    Training("narrow shards", "narrow", "sft", "full", "fsdp2"),
    Training("adapter in shards", "base", "dpo", "dora", "fsdp2"),
    Training("adapter in copies", "base", "dpo", "lora", "ddp"),
    Training("adapter in narrow shards", "narrow", "sft", "lora", "fsdp2", ("lm_head",)),
)


def recipe_of(place: Path, base: str, objective: str, method: str, parallelism: str, **more: Any) -> Recipe:
    """Return a recipe whose global batch takes several micro-batches even on two ranks."""
    settings: dict[str, Any] = {
        "objective": objective, "method": method, "parallelism": parallelism, "per_device_train_batch_size": 1,
        "dpo": Dpo(beta=0.3), "lora": {"r": 5, "alpha": 10.0},
    }  # fmt: skip
    dtype = "bfloat16" if base == "narrow" else "float32"
    return tiny.recipe_for(place / base, place, dtype=dtype, **settings | more)


def setting_of(recipe: Recipe, run_dir: RunDir, identity: str) -> Setting:
    return Setting(recipe, run_dir, run_dir.load(Dataset), Path(recipe.model.name_or_path), identity)


@torch.no_grad()
def shake(weights: dict[str, Any]) -> None:
    """Move every weight a little, the same on any number of ranks: at its start an adapter gives A no gradient."""
    generator = torch.Generator().manual_seed(4)
    for name in sorted(weights):
        weight = weights[name]
        noise = 0.05 * torch.randn(weight.shape, generator=generator)
        if hasattr(weight, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            noise = distribute_tensor(noise, weight.device_mesh, weight.placements)
        weight.add_(noise)


def gradients(place: Path, case: tuple[str, str, str], world: World, batch: str) -> dict[str, torch.Tensor]:
    """Return the gradients of one global batch, whole, and its loss."""
    recipe = recipe_of(place, "base", *case)
    run_dir = RunDir(place / case[0])
    parts = build(setting_of(recipe, run_dir, "-".join(case)), world)
    shake(parts["moved"].weights)
    shard.let_go(parts["losses"])
    unused = Checkpoints(place / "unused", identity="", keep=1, rank=world.rank, num_ranks=world.size, attempt="a")
    job = loop.Job(recipe.train, 0, world, checkpoints=unused, tracker=None, stop=StopSignals(), **parts)
    rows = np.arange(BATCHES[batch])
    count = len(rows) if job.reference else job.collator.num_targets(rows)
    sums, _ = loop._accumulate(job, loop.State(), rows, count)
    if not job.sharded:
        world.sum_gradients(list(job.moved.weights.values()))
    (loss,) = world.sums([sums["loss"]])
    found = {"loss": torch.tensor(loss / count)}
    for name, weight in job.moved.weights.items():
        assert weight.grad is not None, name
        found[name] = weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
    return found


def train(place: Path, run_dir: RunDir, training: Training, world: World) -> None:
    """Train to the end, as `stage.run` does within a world that is open already."""
    stop = StopSignals()
    stop.alone = world.size == 1
    stage._train_in(world, setting_of(recipe_of_training(place, training), run_dir, training.name), stop)


def recipe_of_training(place: Path, training: Training) -> Recipe:
    more: dict[str, Any] = {"learning_rate": 1e-3, "num_train_epochs": 2.0, "eval_steps": 3}
    if training.method != "full":
        more["lora"] = {"r": 5, "alpha": 10.0, "modules_to_save": training.modules_to_save}
    return recipe_of(place, training.base, training.objective, training.method, training.parallelism, **more)


def main(place: Path) -> None:
    torch.set_num_threads(1)
    with open_world(torch.device("cpu")) as world:
        for case in CASES:
            for batch in BATCHES:
                found = gradients(place, case, world, batch)
                if world.is_first:
                    save_file(
                        {name: tensor.contiguous() for name, tensor in found.items()},
                        str(place / f"{'-'.join(case)}-{batch}-{world.size}.safetensors"),
                    )
        for training in TRAININGS if world.size == 2 else ():
            train(place, RunDir(place / f"{training.name}-{world.size}"), training, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
