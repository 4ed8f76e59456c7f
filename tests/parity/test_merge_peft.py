"""Merging against PEFT's merge_and_unload, and 4-bit merging against dequantised weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import tiny  # noqa: E402
from tests.parity.test_adapters_peft import randomise  # noqa: E402
from tunesmith import merge  # noqa: E402
from tunesmith.artifacts import Checkpoint  # noqa: E402
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


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_within_one_unit_in_bfloat16(tmp_path: Path, use_dora: bool) -> None:
    base = tiny.write_model(tmp_path / "base", "llama", dtype="bfloat16")
    run_dir = trained_by_peft(tmp_path, base, use_dora=use_dora)  # PEFT in float32: the exact result
    merge.run(tiny.recipe_for(base, tmp_path), run_dir)
    ours, exact = load_file(run_dir.merged / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    for name, tensor in ours.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("method", ["qlora", "qdora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bit_base_is_what_training_saw(tmp_path: Path, method: str, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    from tunesmith.model.adapter_files import fill, load_adapter
    from tunesmith.model.adapters import attach_to
    from tunesmith.model.load import load_model
    from tunesmith.train import stage

    base = tiny.write_model(tmp_path / "base")
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=12)
    # Some layers carry an adapter, all of them were in 4 bits.
    lora = tiny.schema.Lora(target_modules=("q_proj", "down_proj"))
    recipe = tiny.recipe_for(base, tmp_path, method=method, dtype=dtype, lora=lora)
    recipe = dataclasses.replace(recipe, merge=tiny.schema.Merge(dtype="float32"))
    run_dir.save(stage.run(recipe, run_dir))
    weights = merge.run(recipe, run_dir)
    assert weights.proof["folded_onto"] == "the weights after NF4"

    model = load_model(base, recipe.model, four_bit=True, device=torch.device("cpu"))
    adapter = load_adapter(run_dir.trained)
    fill(attach_to(model, adapter.settings, sorted(adapter.layers), seed=0), adapter)
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
    from tunesmith.errors import ModelError
    from tunesmith.model.adapter_files import load_adapter

    base = tiny.write_model(tmp_path / "base")
    run_dir = trained_by_peft(tmp_path, base, use_dora=False, use_rslora=True)
    with pytest.raises(ModelError, match="use_rslora"):
        load_adapter(run_dir.trained)
