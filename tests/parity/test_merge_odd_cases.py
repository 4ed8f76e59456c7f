"""Adapters out of the ordinary against PEFT: ties, sizes, embeddings, several at once, old names, fused layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests import tiny  # noqa: E402
from tunesmith.errors import MergeError, ModelError, TunesmithError  # noqa: E402
from tunesmith.merge import standalone  # noqa: E402
from tunesmith.merge.job import Merged  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def adapted(base: Path, *, seed: int = 5, resize: int | None = None, **config: Any) -> Any:
    """Return a PEFT model with random adapter weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    if resize:
        torch.manual_seed(seed)
        model.resize_token_embeddings(resize, mean_resizing=False)
    settings = {"r": 5, "lora_alpha": 9, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    made = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in made.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + 0.1 * noise) if parameter.ndim == 1 else parameter.copy_(0.1 * noise)
    return made.eval()


def merged(root: Path, base: Path, *adapters: Path, **order: Any) -> tuple[Any, Merged]:
    """Merge with ours; returns the model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    out = root / "ours"
    _, found = standalone.run(standalone.Order(str(base), tuple(map(str, adapters)), str(out), **order))
    return AutoModelForCausalLM.from_pretrained(str(out), dtype=torch.float32).eval(), found


def ids() -> Any:
    return torch.randint(3, tiny.VOCAB_SIZE, (2, 11), generator=torch.Generator().manual_seed(3))


def same_logits(a: Any, b: Any) -> bool:
    with torch.no_grad():
        first, second = a(input_ids=ids()).logits, b(input_ids=ids()).logits
    return bool((first - second).abs().max() <= 2e-5 * first.abs().max())


def same_weights(ours: Path, theirs: Path) -> None:
    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert set(a) == set(b)
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", ["phi3", "qwen3", "gemma3_text"])
def test_more_families(tmp_path: Path, family: str, kind: str) -> None:
    """phi3 has fused projections; gemma3 scales its embedding."""
    base = tiny.write_model(tmp_path / "base", family)
    theirs = adapted(base, use_dora=kind == "dora", use_rslora=kind == "rslora")
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours, found = merged(tmp_path, base, tmp_path / "adapter")
    assert same_logits(ours, theirs)
    assert found.proof["compared"] == "logits on probe prompts"
    assert found.proof["max_difference"] <= 1e-5 * found.proof["logit_range"]
    theirs.merge_and_unload().save_pretrained(str(tmp_path / "theirs"))
    same_weights(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids=" ".join)
def test_modules_that_untie_get_a_head_of_their_own(tmp_path: Path, names: list[str]) -> None:
    base = tiny.write_model(tmp_path / "base", tied=True)
    theirs = adapted(base, modules_to_save=names)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours, _ = merged(tmp_path, base, tmp_path / "adapter")
    assert same_logits(ours, theirs)
    assert ours.config.tie_word_embeddings is False
    assert not torch.equal(ours.model.embed_tokens.weight, ours.lm_head.weight)
    theirs.merge_and_unload().save_pretrained(str(tmp_path / "theirs"))
    same_weights(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_lora_on_an_embedding(tmp_path: Path, tied: bool) -> None:
    """PEFT's model looks words up with the adapter and ends without it; its merge of tied ones moves both."""
    base = tiny.write_model(tmp_path / "base", tied=tied)
    theirs = adapted(base, target_modules=["embed_tokens", "q_proj"])
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours, found = merged(tmp_path, base, tmp_path / "adapter")
    assert same_logits(ours, theirs)
    assert found.proof["max_difference"] <= 1e-5 * found.proof["logit_range"]


def test_lora_on_the_head(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base", tied=True)
    theirs = adapted(base, target_modules=["lm_head", "q_proj"])
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours, _ = merged(tmp_path, base, tmp_path / "adapter")
    assert same_logits(ours, theirs) and ours.config.tie_word_embeddings is False


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_resized_embeddings(tmp_path: Path, tied: bool) -> None:
    base = tiny.write_model(tmp_path / "base", tied=tied)
    theirs = adapted(base, resize=tiny.VOCAB_SIZE + 7)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours, _ = merged(tmp_path, base, tmp_path / "adapter")
    assert same_logits(ours, theirs)
    assert ours.config.vocab_size == tiny.VOCAB_SIZE + 7 == ours.lm_head.weight.shape[0]
    assert ours.config.tie_word_embeddings == tied


def test_only_one_of_two_matrices_resized_is_refused(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base")
    theirs = adapted(base, resize=tiny.VOCAB_SIZE + 7)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "lm_head" not in name}, file)
    with pytest.raises(MergeError, match="embedding and output head differ in their rows"):
        merged(tmp_path, base, tmp_path / "adapter")
    assert not (tmp_path / "ours").exists()


def test_biases_trained_beside_the_adapter(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base", "qwen2")
    theirs = adapted(base, bias="lora_only")
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours, _ = merged(tmp_path, base, tmp_path / "adapter")
    assert same_logits(ours, theirs)


@pytest.mark.parametrize("naming", ["adapter's name", "compiled", "no prefix"])
def test_names_that_other_programs_and_versions_wrote(tmp_path: Path, naming: str) -> None:
    base = tiny.write_model(tmp_path / "base")
    theirs = adapted(base, use_dora=True, modules_to_save=["norm"])
    directory = tmp_path / "adapter"
    theirs.save_pretrained(str(directory))
    renamed = {}
    for name, tensor in load_file(directory / "adapter_model.safetensors").items():
        if naming == "adapter's name":  # a whole state dict, as Trainer wrote it
            name = name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.w", "lora_B.default.w")
            name = name.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight")
            name = name.replace("norm.weight", "norm.modules_to_save.default.weight")
        elif naming == "compiled":
            name = name.replace("base_model.model.", "_orig_mod.base_model.model.")
        else:
            name = name.removeprefix("base_model.model.")
        renamed[name] = tensor
    save_file(renamed, directory / "adapter_model.safetensors")
    config = json.loads((directory / "adapter_config.json").read_text())
    old = {
        key: config[key] for key in ("peft_type", "r", "lora_alpha", "target_modules", "use_dora", "modules_to_save")
    }
    (directory / "adapter_config.json").write_text(json.dumps(old))
    ours, _ = merged(tmp_path, base, directory)
    assert same_logits(ours, theirs)


@pytest.mark.parametrize("combination", ["cat", "linear"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_several_adapters_with_weights(tmp_path: Path, family: str, combination: str) -> None:
    base = tiny.write_model(tmp_path / "base", family)
    ranks = (5, 5) if combination == "linear" else (5, 3)
    weights = (0.7, -0.4)
    for name, rank, seed in zip("ab", ranks, (1, 2), strict=True):
        adapted(base, seed=seed, r=rank, use_rslora=name == "b").save_pretrained(str(tmp_path / name))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(model, str(tmp_path / "a"), adapter_name="a")
    theirs.load_adapter(str(tmp_path / "b"), adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], list(weights), "both", combination_type=combination)
    theirs.set_adapter("both")
    ours, found = merged(tmp_path, base, tmp_path / "a", tmp_path / "b", weights=weights, combination=combination)
    assert same_logits(ours, theirs.eval())
    assert found.proof["max_difference"] <= 1e-5 * found.proof["logit_range"]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("dora", "DoRA adapters cannot be weighted"),
        ("ranks", "matrices of one rank"),
        ("whole", "two adapters hold a 'model.layers.0.input_layernorm.weight'"),
        ("models", "belong to different models"),
        ("weights", "2 adapters and 1 weights"),
    ],
)
def test_adapters_that_cannot_be_combined(tmp_path: Path, problem: str, message: str) -> None:
    base = tiny.write_model(tmp_path / "base")
    first: dict[str, Any] = {"modules_to_save": ["norm"]} if problem == "whole" else {}
    second = first | ({"use_dora": True} if problem == "dora" else {"r": 3} if problem == "ranks" else {})
    adapted(base, **first).save_pretrained(str(tmp_path / "a"))
    adapted(base, **second).save_pretrained(str(tmp_path / "b"))
    if problem == "models":
        file = tmp_path / "b" / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if "q_proj.lora_A" in name)
        save_file(tensors | {name: torch.zeros(5, 47)}, file)
    order: dict[str, Any] = {"combination": "linear"} if problem == "ranks" else {}
    if problem == "weights":
        order["weights"] = (1.0,)
    with pytest.raises(TunesmithError, match=message):
        merged(tmp_path, base, tmp_path / "a", tmp_path / "b", **order)
    assert not (tmp_path / "ours").exists()


def test_blocks_of_rows_are_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrices are folded some rows at a time."""
    from tunesmith.merge import fold

    base = tiny.write_model(tmp_path / "base")
    theirs = adapted(base, use_dora=True)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 48 * 7)
    merged(tmp_path, base, tmp_path / "adapter")
    theirs.merge_and_unload().save_pretrained(str(tmp_path / "theirs"))
    same_weights(tmp_path / "ours", tmp_path / "theirs")


def test_an_adapter_in_a_pickle_is_not_opened(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base")
    adapted(base).save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        merged(tmp_path, base, tmp_path / "adapter")


def test_an_adapter_on_a_quantised_base_without_a_record_is_taken_at_its_word(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny.write_model(tmp_path / "base")
    adapted(base).save_pretrained(str(tmp_path / "adapter"))
    _, plain = merged(tmp_path, base, tmp_path / "adapter")
    assert "folded_onto" not in plain.proof
    (tmp_path / "ours").rename(tmp_path / "plain")
    _, found = merged(tmp_path, base, tmp_path / "adapter", trained_in_nf4=True)
    losses = {"the weights after NF4": found.proof["loss_on_nf4_base"]}
    losses |= {"the original weights": found.proof["loss_on_original_base"]}
    assert losses[found.proof["folded_onto"]] == min(losses.values())


def test_rows_of_a_file_are_the_probes(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base")
    adapted(base).save_pretrained(str(tmp_path / "adapter"))
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "seven times eight"}, {"role": "assistant", "content": "fifty six"}]
    rows.write_text(f"{json.dumps({'messages': turns})}\n")
    _, found = merged(tmp_path, base, tmp_path / "adapter", rows=str(rows))
    assert found.proof["num_prompts"] == 1


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts_that_cannot_be_streamed_are_proved_layer_by_layer(tmp_path: Path, family: str) -> None:
    """Their files hold each expert, the model holds all of a layer in one matrix."""
    base = tiny.write_model(tmp_path / "base", family)
    theirs = adapted(base, target_modules=["q_proj", "o_proj"], use_dora=True)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours, found = merged(tmp_path, base, tmp_path / "adapter")
    assert same_logits(ours, theirs)
    assert found.proof["compared"].startswith("outputs of 6 adapted layers on random inputs")
    assert 0 < found.proof["worst_layer_in_roundings"] < 1 and "tolerance" not in found.proof
