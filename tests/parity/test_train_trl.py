"""Twenty optimiser steps against TRL's trainers: the loss of each step, in float32, on the same rows in the same order.

What is known to differ, and therefore left out: transformers' warm-up begins with a step of learning rate zero, ours
with the first step of the ramp. Decay after it is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
pytest.importorskip("trl", minversion="1.16", reason="TRL is not installed (`pip install 'trl>=1.16'`)")

from tests import tiny  # noqa: E402
from tunesmith.model.adapter_files import adapter_parameters  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach  # noqa: E402
from tunesmith.recipe.schema import Dpo, Recipe  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train import stage  # noqa: E402
from tunesmith.train.batches import Stream  # noqa: E402

NUM_STEPS, GLOBAL_BATCH = 20, 4
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("base") / "model")


def ours(recipe: Recipe, run_dir: RunDir) -> list[float]:
    """Train through the stage's door and return the loss of every step."""
    stage.run(recipe, run_dir)
    curve = tiny.losses(run_dir)
    assert [step for step, _ in curve] == list(range(1, NUM_STEPS + 1))
    return [loss for _, loss in curve]


def in_order(recipe: Recipe, run_dir: RunDir, columns: Any) -> Any:
    """Return the rows of every step, one after the other, as a data set."""
    shards = Shards(run_dir.train_tokens)
    stream = Stream(len(shards), recipe.train, recipe.seed)
    rows = np.concatenate([stream.rows(step) for step in range(NUM_STEPS)])
    assert len(rows) == NUM_STEPS * GLOBAL_BATCH
    return datasets.Dataset.from_list([columns(shards, int(row)) for row in rows])


def sft_columns(shards: Shards, row: int) -> dict[str, list[int]]:
    ids, trained = shards.segment(row, 0)
    return {"input_ids": ids.tolist(), "labels": np.where(trained, ids.astype(np.int64), -100).tolist()}


def dpo_columns(shards: Shards, row: int) -> dict[str, list[int]]:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {name: shards.segment(row, segment)[0].tolist() for segment, name in enumerate(names)}


def theirs(recipe: Recipe, rows: Any, out: Path, **settings: Any) -> list[float]:
    """Train with TRL from the same weights and return the loss of every step, which it would round in its log."""
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    train, dpo = recipe.train, recipe.train.objective == "dpo"
    per_device = settings.pop("per_device_train_batch_size")
    losses = [0.0]

    class Watched(DPOTrainer if dpo else SFTTrainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses[-1] += float(loss)
            if self.accelerator.sync_gradients:
                losses.append(0.0)
            return loss

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # pairs are tokenised already, which DPOTrainer has no setting for

    arguments = {
        "output_dir": str(out / "trl"),
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": GLOBAL_BATCH // per_device,
        "train_sampling_strategy": "sequential",
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": 0,
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "max_grad_norm": train.max_grad_norm,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if dpo:
        arguments |= {"beta": train.dpo.beta, "loss_type": [train.dpo.loss_type]}
    lora = peft.LoraConfig(
        r=train.lora.r,
        lora_alpha=train.lora.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32),
        args=(DPOConfig if dpo else SFTConfig)(**arguments | settings),
        train_dataset=rows,
        peft_config=None if train.method == "full" else lora,
    )
    if train.method != "full":
        start_alike(trainer.model, recipe)
    trainer.train()
    return losses[:-1]


def start_alike(model: Any, recipe: Recipe) -> None:
    """Give PEFT's adapter the numbers that ours begins with."""
    from transformers import AutoModelForCausalLM

    adapted = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)
    attach(adapted, AdapterSettings.of(recipe.train.lora, recipe.train.method), seed=recipe.seed)
    numbers = {name: weight.detach() for name, weight in adapter_parameters(adapted).items() if ".lora_" in name}
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        name.replace(".weight", ".default.weight") for name in numbers
    }
    peft.set_peft_model_state_dict(model, numbers)


def assert_equal(found: list[float], expected: list[float]) -> None:
    assert len(found) == len(expected) == NUM_STEPS
    assert found[0] != pytest.approx(found[-1], rel=1e-2), "a training that moves"
    difference = np.abs(np.array(found) / np.array(expected) - 1)
    assert difference.max() <= TOLERANCE, f"step {difference.argmax() + 1}: {difference.max():.2e}"


SFT = {
    "full": {"method": "full", "learning_rate": 1e-3, "lr_scheduler_type": "linear", "weight_decay": 0.1},
    "lora": {"method": "lora", "learning_rate": 5e-3, "lr_scheduler_type": "cosine", "weight_decay": 0.01},
}


@pytest.mark.parametrize(("method", "ours_at_once", "theirs_at_once"), [("full", 4, 2), ("lora", 1, 4), ("lora", 2, 1)])
def test_sft_equals_trl(base: Path, tmp_path: Path, method: str, ours_at_once: int, theirs_at_once: int) -> None:
    settings: dict[str, Any] = SFT[method] | {"per_device_train_batch_size": ours_at_once}
    recipe = tiny.recipe_for(
        base,
        tmp_path,
        num_train_epochs=4.0,
        max_steps=NUM_STEPS,
        warmup_steps=0,
        max_grad_norm=0.5,
        lora={"r": 5, "alpha": 12.0},
        **settings,
    )
    run_dir = tiny.run_with_rows(tmp_path / "run", shared=True)
    rows = in_order(recipe, run_dir, sft_columns)
    expected = theirs(recipe, rows, tmp_path, per_device_train_batch_size=theirs_at_once)
    assert_equal(ours(recipe, run_dir), expected)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_equals_trl(base: Path, tmp_path: Path, loss_type: str) -> None:
    recipe = tiny.recipe_for(
        base,
        tmp_path,
        objective="dpo",
        dpo=Dpo(beta=0.1, loss_type=loss_type),  # type: ignore[arg-type]
        num_train_epochs=4.0,
        max_steps=NUM_STEPS,
        warmup_steps=0,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        lora={"r": 5, "alpha": 12.0},
    )
    run_dir = tiny.run_with_rows(tmp_path / "run", objective="dpo", shared=True)
    rows = in_order(recipe, run_dir, dpo_columns)
    expected = theirs(recipe, rows, tmp_path, per_device_train_batch_size=GLOBAL_BATCH)
    assert_equal(ours(recipe, run_dir), expected)
