"""The memory formula against what autograd really keeps of packed rows."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach  # noqa: E402
from tunesmith.model.head import split, use_spans  # noqa: E402
from tunesmith.model.headers import model_facts  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.recipe.activations import activation_bytes_per_token  # noqa: E402
from tunesmith.recipe.facts import Facts  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train import shard  # noqa: E402
from tunesmith.train.batches import Collator  # noqa: E402
from tunesmith.train.objective import DpoObjective, sft  # noqa: E402
from tunesmith.train.optim import Moved  # noqa: E402
from tunesmith.train.token_losses import TokenLosses  # noqa: E402
from tunesmith.train.world import World  # noqa: E402

TOLERANCE = 0.15
CPU = torch.device("cpu")


def kept_bytes_per_token(objective: Any, losses: TokenLosses, batch: Any) -> float:
    """Return the size of the distinct tensors that a forward pass keeps for the backward one.

    Those of the layers lie in Python objects, since `model.recomputed` hands them to autograd. Without the gradient of
    a head that moves: it is there once, whatever the batch.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*losses.parameters(), *losses.buffers()]}
    head = losses.split.plain_head
    before = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    known = {id(tensor) for tensor in before}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights and (head is None or tensor.shape != head.weight.shape):
            kept[address] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = objective(losses, batch)
    assert loss.requires_grad
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and id(found) not in known:
            keep(found)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / batch.num_computed


def facts_of(path: Path) -> Facts:
    found = model_facts(path)
    names = ("num_layers", "hidden_size", "vocab_size", "activation", "linears", "others")
    return Facts(**{name: getattr(found, name) for name in names})


def ratio(tmp_path: Path, family: str, *, dtype: str = "float32", **train: Any) -> float:
    """Return the estimated bytes of a position over those that autograd keeps."""
    base = tiny.write_model(tmp_path / "model", family, dtype=dtype)
    recipe = tiny.recipe_for(base, tmp_path, dtype=dtype, **train)
    method, dpo = recipe.train.method, recipe.train.objective == "dpo"
    tiny.write_rows(tmp_path / "rows", num_rows=6, segments=3 if dpo else 1)
    model = load_model(base, recipe.model, four_bit=method.startswith("q"), device=CPU)
    if method != "full":
        attach(model, AdapterSettings.of(recipe.train.lora, method), seed=0)
    Moved(model)
    losses = TokenLosses(split(model))
    assert use_spans(losses.split)
    shard.prepare(losses, recipe, World(0, 1, CPU))
    shards = Shards(tmp_path / "rows")
    (batch,) = Collator(shards, "spans", max_tokens=10_000, device=CPU).micro_batches(torch.arange(6).numpy())
    objective = DpoObjective(recipe.train.dpo, lambda losses, batch: torch.zeros(6, 2)) if dpo else sft
    expected = kept_bytes_per_token(objective, losses, batch)
    return activation_bytes_per_token(recipe, facts_of(base)) / expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["full", "lora", "dora", "qlora", "qdora"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_methods(tmp_path: Path, family: str, method: str, dtype: str) -> None:
    if method.startswith("q"):
        pytest.importorskip("bitsandbytes")
    assert abs(ratio(tmp_path, family, dtype=dtype, method=method, lora={"r": 4}) - 1) < TOLERANCE


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_families(tmp_path: Path, family: str, method: str) -> None:
    assert abs(ratio(tmp_path, family, method=method, lora={"r": 4}) - 1) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_preference_pairs(tmp_path: Path, family: str) -> None:
    assert abs(ratio(tmp_path, family, method="lora", lora={"r": 4}, objective="dpo") - 1) < TOLERANCE


@pytest.mark.parametrize(
    "lora", [{"dropout": 0.1}, {"target_modules": ("q_proj", "v_proj")}, {"modules_to_save": ("norm",)}], ids=str
)
def test_adapters_of_other_kinds(tmp_path: Path, lora: dict[str, Any]) -> None:
    assert abs(ratio(tmp_path, "llama", method="lora", lora={"r": 4} | lora) - 1) < TOLERANCE
