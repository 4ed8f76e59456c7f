"""Frozen weights kept in the 16 bits they are stored in, beside the same model held in float32: the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach, base_weight, linear_layers  # noqa: E402
from tunesmith.model.head import split  # noqa: E402
from tunesmith.model.headers import read_headers  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.model.stored import StoredLinear, keep_stored  # noqa: E402
from tunesmith.model.straight import read_straight  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train import shard  # noqa: E402
from tunesmith.train.batches import Collator  # noqa: E402
from tunesmith.train.objective import DpoObjective, sft  # noqa: E402
from tunesmith.train.optim import Moved  # noqa: E402
from tunesmith.train.reference import Reference  # noqa: E402
from tunesmith.train.token_losses import TokenLosses  # noqa: E402
from tunesmith.train.world import World  # noqa: E402

CPU = torch.device("cpu")
# Linear layers of three decoder layers that stay as stored; GPT-2's are `Conv1D`.
EXPECTED = {"llama": 21, "qwen3": 21, "gemma2": 21, "phi3": 12, "gpt_neox": 12, "granite": 21, "mistral": 21, "gpt2": 0}


def stored_layers(model: Any) -> dict[str, StoredLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, StoredLinear)}


def trained_once(base: Path, tmp_path: Path, *, keeps_stored: bool, **train: Any) -> dict[str, Any]:
    """Return everything that one step of training makes: the reference, the loss, every gradient."""
    recipe = tiny.recipe_for(base, tmp_path, dtype="float32", **train)
    whole = recipe.train.lora.modules_to_save
    model = load_model(base, recipe.model, four_bit=False, device=CPU, keeps_stored=keeps_stored, whole=whole)
    settings = AdapterSettings.of(recipe.train.lora, recipe.train.method)
    for layer in attach(model, settings, seed=3).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(5))
    moved = Moved(model)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    losses = TokenLosses(split(model, over_spans=True))
    shard.prepare(losses, recipe, World(0, 1, CPU))
    dpo = recipe.train.objective == "dpo"
    directory = tmp_path / ("pairs" if dpo else "rows")
    if not directory.exists():
        tiny.write_rows(directory, num_rows=6, segments=3 if dpo else 1)
    shards = Shards(directory)
    layout = "spans" if losses.split.over_spans else "padded"
    (batch,) = Collator(shards, layout, max_tokens=10_000, device=CPU).micro_batches(torch.arange(6).numpy())
    reference = Reference(6)
    if dpo:
        reference.begin(torch.arange(6).numpy())
    torch.manual_seed(7)
    loss, _ = (DpoObjective(recipe.train.dpo, reference.of) if dpo else sft)(losses, batch)
    loss.backward()
    found = {name: weight.grad for name, weight in moved.weights.items()}
    assert all(grad is not None for grad in found.values())
    return found | {"loss": loss.detach(), "reference": reference.table_N2, "model": model}


def assert_same_bits(base: Path, tmp_path: Path, *, num_stored: int, **train: Any) -> None:
    wide = trained_once(base, tmp_path, keeps_stored=False, **train)
    stored = trained_once(base, tmp_path, keeps_stored=True, **train)
    assert len(stored_layers(stored.pop("model"))) == num_stored and not stored_layers(wide.pop("model"))
    assert stored.keys() == wide.keys()
    for name, values in wide.items():
        assert torch.equal(stored[name].nan_to_num(), values.nan_to_num()), name
    assert float(wide["loss"]) != 0 and any(grad.abs().max() > 0 for grad in wide.values())


@pytest.mark.parametrize("family", EXPECTED)
def test_families(tmp_path: Path, family: str) -> None:
    base = tiny.write_model(tmp_path / "model", family, dtype="bfloat16")
    assert_same_bits(base, tmp_path, num_stored=EXPECTED[family], method="lora", lora={"r": 4})


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    "lora",
    [{"dropout": 0.2}, {"target_modules": ("q_proj", "up_proj")}, {"target_modules": ("down_proj",), "dropout": 0.2}],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_adapters_of_every_kind(tmp_path: Path, family: str, method: str, lora: dict[str, Any]) -> None:
    if family == "gpt_neox" and "target_modules" in lora:
        lora = lora | {"target_modules": ("query_key_value", "dense_4h_to_h")}  # layers with a bias
    base = tiny.write_model(tmp_path / "model", family, dtype="float16")
    assert_same_bits(base, tmp_path, num_stored=EXPECTED[family], method=method, lora={"r": 4} | lora)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_preference_pairs(tmp_path: Path, method: str) -> None:
    base = tiny.write_model(tmp_path / "model", "qwen3", dtype="bfloat16")
    assert_same_bits(base, tmp_path, num_stored=21, method=method, lora={"r": 4}, objective="dpo")


def test_gradient_checkpointing(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "model", "llama", dtype="bfloat16")
    assert_same_bits(base, tmp_path, num_stored=21, method="lora", lora={"r": 4}, gradient_checkpointing=True)


@pytest.mark.parametrize(("whole", "num_stored"), [("mlp", 12), ("lm_head", 21), ("layers.1", 14)])
def test_modules_that_are_trained_whole_are_wide(tmp_path: Path, whole: str, num_stored: int) -> None:
    base = tiny.write_model(tmp_path / "model", "llama", dtype="bfloat16", tied=True)
    lora = {"r": 4, "modules_to_save": (whole,)}
    assert_same_bits(base, tmp_path, num_stored=num_stored, method="lora", lora=lora)


def test_what_does_not_fit_into_16_bits_stays_wide(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "model", "llama")
    assert_same_bits(base, tmp_path, num_stored=0, method="lora", lora={"r": 4})


def test_whoever_looks_at_a_weight_sees_float32(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "model", "llama", dtype="bfloat16")
    recipe = tiny.recipe_for(base, tmp_path, dtype="float32")
    wide, stored = (
        load_model(base, recipe.model, four_bit=False, device=CPU, keeps_stored=keeps) for keeps in (False, True)
    )
    theirs, ours = linear_layers(wide), linear_layers(stored)
    assert list(ours) == list(theirs)
    for name, layer in ours.items():
        assert isinstance(layer, StoredLinear) and layer.stored.dtype == torch.bfloat16
        assert torch.equal(layer.weight, theirs[name].weight) and torch.equal(base_weight(layer), theirs[name].weight)
    assert stored.dtype == torch.float32


@pytest.mark.parametrize("family", [family for family in EXPECTED if family != "gpt_neox"])  # renamed on the way
@pytest.mark.parametrize("tied", [False, True])
def test_a_base_read_straight_is_the_one_that_transformers_loads(tmp_path: Path, family: str, tied: bool) -> None:
    base = tiny.write_model(tmp_path / "model", family, dtype="bfloat16", tied=tied, shards="20KB")
    settings = tiny.recipe_for(base, tmp_path, dtype="float32").model
    theirs = load_model(base, settings, four_bit=False, device=CPU)
    ours = read_straight(base, read_headers(base), settings, "eager" if family == "gemma2" else "sdpa", whole=())
    assert ours is not None
    own = ours.state_dict() | {f"{name}.weight": layer.weight for name, layer in stored_layers(ours).items()}
    assert own.keys() == theirs.state_dict().keys()
    assert all(torch.equal(own[name], values) for name, values in theirs.state_dict().items())
    assert not any(tensor.is_meta for tensor in [*ours.parameters(), *ours.buffers()])
    buffers = {name: buffer for name, buffer in ours.named_buffers() if not name.endswith(".stored")}
    assert buffers.keys() == dict(theirs.named_buffers()).keys()
    assert all(torch.equal(buffers[name], values) for name, values in theirs.named_buffers())
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert (
        ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    ) == theirs.config.tie_word_embeddings
    assert len(stored_layers(ours)) == EXPECTED[family]


def test_a_base_that_cannot_be_read_straight_is_narrowed(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "model", "llama", dtype="bfloat16")
    settings = tiny.recipe_for(base, tmp_path, dtype="float32").model
    renamed = {name.replace("mlp", "feed"): info for name, info in read_headers(base).items()}
    assert read_straight(base, renamed, settings, "sdpa", whole=()) is None
    model = load_model(base, settings, four_bit=False, device=CPU)
    expected = {name: layer.weight for name, layer in linear_layers(model).items()}
    assert keep_stored(model) == 21
    assert all(torch.equal(layer.weight, expected[name]) for name, layer in stored_layers(model).items())
