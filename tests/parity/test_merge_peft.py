"""Merging against PEFT's merge_and_unload, and 4-bit merging against dequantised weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import tiny  # noqa: E402
from tests.adapter_on_model import put_on  # noqa: E402
from tests.parity.test_adapters_peft import TIED, VARIANTS, randomise, variant  # noqa: E402
from tunesmith.artifacts import Checkpoint  # noqa: E402
from tunesmith.errors import ModelError  # noqa: E402
from tunesmith.merge import stage as merge  # noqa: E402
from tunesmith.model.companions import write_companions  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402


def trained_by_peft(root: Path, base: Path, *, use_dora: bool, dtype: str = "float32", **config: Any) -> RunDir:
    """Return a run whose training stage left an adapter made by PEFT."""
    from transformers import AutoModelForCausalLM

    run_dir = tiny.run_with_rows(root / "run", num_rows=5)
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=getattr(torch, dtype))
    settings = {"r": 5, "lora_alpha": 9, "target_modules": "all-linear"} | config
    adapted = peft.get_peft_model(model, peft.LoraConfig(use_dora=use_dora, task_type="CAUSAL_LM", **settings))
    randomise(p for p in adapted.parameters() if p.requires_grad)
    adapted.save_pretrained(str(run_dir.trained))
    write_companions(base, run_dir.trained, template=tiny.TEMPLATE, end_ids=(2,))
    adapted.merge_and_unload().save_pretrained(str(root / "theirs"))
    method = "dora" if use_dora else "lora"
    record = Checkpoint(
        "train/final", method, str(base), 1, 1.0, 1.0, None, 1, 1, 1.0, 1.0, 1, 1.0
    )  # fmt: skip
    run_dir.save(record)
    return run_dir


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "mistral", "granite", "gpt2"])
def test_bit_identical_in_float32(tmp_path: Path, family: str, use_dora: bool) -> None:
    base = tiny.write_model(tmp_path / "base", family)
    run_dir = trained_by_peft(tmp_path, base, use_dora=use_dora)
    weights = merge.run(tiny.recipe_for(base, tmp_path), run_dir)
    ours, theirs = load_file(run_dir.merged / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    assert set(ours) == set(theirs)
    unequal = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not unequal
    assert weights.proof["max_difference"] <= 1e-5 * weights.proof["logit_range"]
    assert weights.proof["top1_agreement"] == 1.0


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", TIED])
def test_variants_are_bit_identical_in_float32(tmp_path: Path, family: str, name: str, use_dora: bool) -> None:
    base = tiny.write_model(tmp_path / "base", "llama" if family == TIED else family, tied=family == TIED)
    settings, ties = variant(name, family), family in (TIED, "gpt2")
    if "modules_to_save" in settings:
        names = set(settings["modules_to_save"]) | ({"lm_head"} if ties else set())
        settings |= {"modules_to_save": sorted(names)}
    run_dir = trained_by_peft(tmp_path, base, use_dora=use_dora, ensure_weight_tying=ties, **settings)
    weights = merge.run(tiny.recipe_for(base, tmp_path), run_dir)
    ours, theirs = load_file(run_dir.merged / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    assert set(ours) == set(theirs)
    unequal = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not unequal
    assert weights.proof["max_difference"] <= 1e-5 * weights.proof["logit_range"]
    config = json.loads((run_dir.merged / "config.json").read_text())
    assert config["tie_word_embeddings"] == ties


def units_apart(ours: torch.Tensor, exact: torch.Tensor) -> int:
    """Return how many steps of the number format lie between two tensors, at most."""
    ordered = []
    for tensor in (ours, exact.to(ours.dtype)):
        bits = tensor.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32).long()
        ordered.append(torch.where(bits < 0, -(bits & (2 ** (8 * tensor.dtype.itemsize - 1) - 1)), bits))
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_whole_modules_take_the_number_format_of_the_merge(tmp_path: Path, base_dtype: str) -> None:
    base = tiny.write_model(tmp_path / "base", "qwen2", dtype=base_dtype)
    run_dir = trained_by_peft(tmp_path, base, use_dora=False, modules_to_save=["embed_tokens", "norm"])
    merge.run(tiny.recipe_for(base, tmp_path), run_dir)
    ours, exact = load_file(run_dir.merged / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    for name, tensor in ours.items():
        assert units_apart(tensor, exact[name]) <= (base_dtype == "bfloat16"), name
    before = load_file(base / "model.safetensors")
    assert not torch.equal(before["model.embed_tokens.weight"], ours["model.embed_tokens.weight"])
    assert torch.equal(before["lm_head.weight"], ours["lm_head.weight"])


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_within_one_unit_of_16_bits(tmp_path: Path, dtype: str, use_dora: bool) -> None:
    base = tiny.write_model(tmp_path / "base", "llama", dtype=dtype)
    run_dir = trained_by_peft(tmp_path, base, use_dora=use_dora)  # PEFT in float32: the exact result
    merge.run(tiny.recipe_for(base, tmp_path), run_dir)
    ours, exact = load_file(run_dir.merged / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    for name, tensor in ours.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert units_apart(tensor, exact[name]) <= 1, name


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_within_one_unit_of_what_peft_makes_in_bfloat16(tmp_path: Path, use_dora: bool) -> None:
    """PEFT rounds the change, and then the sum: a unit is that of the largest of the three."""
    base = tiny.write_model(tmp_path / "base", "llama", dtype="bfloat16")
    run_dir = trained_by_peft(tmp_path, base, use_dora=use_dora, dtype="bfloat16")
    merge.run(tiny.recipe_for(base, tmp_path), run_dir)
    ours, theirs = load_file(run_dir.merged / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    before = load_file(base / "model.safetensors")
    for name, tensor in ours.items():
        a, b, w = tensor.float(), theirs[name].float(), before[name].float()
        largest = torch.stack([a.abs(), b.abs(), w.abs(), (b - w).abs()]).amax(0)
        # DoRA takes PEFT three roundings (change, norm, product).
        allowed = (1 + 2 * use_dora) * torch.exp2(torch.floor(torch.log2(largest.clamp_min(1e-30))) - 7)
        assert ((a - b).abs() <= allowed).all(), name


@pytest.mark.parametrize("method", ["qlora", "qdora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bit_base_is_what_training_saw(tmp_path: Path, method: str, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    from tunesmith.model.adapter_files import load_adapter
    from tunesmith.model.load import load_model
    from tunesmith.train import stage

    base = tiny.write_model(tmp_path / "base")
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=12)
    # Some layers carry an adapter, all of them were in 4 bits.
    lora = tiny.schema.Lora(target_modules=("q_proj", "down_proj"))
    recipe = tiny.recipe_for(base, tmp_path, method=method, dtype=dtype, lora=lora)
    recipe = dataclasses.replace(recipe, merge=tiny.schema.Merge(dtype="float32", fold_onto="nf4"))
    run_dir.save(stage.run(recipe, run_dir))
    weights = merge.run(recipe, run_dir)
    assert weights.proof["folded_onto"] == "the weights after NF4"

    model = load_model(base, recipe.model, four_bit=True, device=torch.device("cpu"))
    put_on(model, load_adapter(run_dir.trained))
    merged = AutoModelForCausalLM.from_pretrained(str(run_dir.merged), dtype=torch.float32)
    assert not hasattr(merged.config, "quantization_config")
    ids = torch.randint(3, tiny.VOCAB_SIZE, (2, 17), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before, after = model.eval()(input_ids=ids).logits.float(), merged(input_ids=ids).logits
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    assert (before - after).abs().max() < tolerance * before.abs().max()
    original = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    untouched = "model.layers.1.mlp.up_proj.weight"
    moved = (merged.get_parameter(untouched) - original.get_parameter(untouched)).abs().max()
    assert moved > 1e-3, "layers without an adapter keep NF4's rounding, too"

    # What is taken by itself is what is measured to be better, and the other way round for the other.
    measured = dataclasses.replace(recipe, merge=tiny.schema.Merge(dtype="float32"))
    proof = merge.run(measured, run_dir).proof
    losses = {
        "the weights after NF4": proof["loss_on_nf4_base"],
        "the original weights": proof["loss_on_original_base"],
    }
    assert losses[proof["folded_onto"]] == min(losses.values()) and len(set(losses.values())) == 2
    after_nf4 = AutoModelForCausalLM.from_pretrained(str(run_dir.merged), dtype=torch.float32)
    changed = (after_nf4.get_parameter(untouched) - original.get_parameter(untouched)).abs().max()
    assert (changed == 0) == (proof["folded_onto"] == "the original weights")


def test_shards_index_and_companions(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny.write_model(tmp_path / "base", "llama", shards="100KB")
    assert (base / "model.safetensors.index.json").exists()
    run_dir = trained_by_peft(tmp_path, base, use_dora=False)
    recipe = tiny.recipe_for(base, tmp_path)
    recipe = dataclasses.replace(recipe, merge=tiny.schema.Merge(max_shard_gib=60_000 / 2**30))
    weights = merge.run(recipe, run_dir)
    shards = [name for name in weights.files if name.endswith(".safetensors")]
    assert len(shards) > 3 and "model.safetensors.index.json" in weights.files
    merged = AutoModelForCausalLM.from_pretrained(str(run_dir.merged))
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path / "theirs"))
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name)), name
    assert AutoTokenizer.from_pretrained(str(run_dir.merged)).chat_template == tiny.TEMPLATE


def test_another_adapter_format_is_refused(tmp_path: Path) -> None:
    from tunesmith.model.adapter_files import load_adapter

    base = tiny.write_model(tmp_path / "base")
    run_dir = trained_by_peft(tmp_path, base, use_dora=False)
    config = json.loads((run_dir.trained / "adapter_config.json").read_text()) | {"lora_bias": True}
    (run_dir.trained / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lora_bias"):
        load_adapter(run_dir.trained)
