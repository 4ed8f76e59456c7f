"""Our LoRA and DoRA against PEFT's, files both ways, on tiny models of unequal sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402
from tests.adapter_on_model import put_on  # noqa: E402
from tunesmith.model.adapter_files import load_adapter, save_adapter  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach  # noqa: E402
from tunesmith.model.chosen import whole_modules  # noqa: E402

TOLERANCE = 1e-5
FAMILIES = ("llama", "qwen2", "gemma2", "gpt2")
TIED = "tied llama"
NAMES = {  # attention, the way down in the MLP, a norm, the embedding
    "llama": ("q_proj", "mlp.down_proj", "norm", "embed_tokens"),
    "gpt2": ("c_attn", "mlp.c_proj", "ln_f", "wte"),
}


def variant(name: str, family: str) -> dict[str, Any]:
    """Return the settings of a variant, under the names that ours and PEFT's have in common."""
    attention, down, norm, embedding = NAMES["gpt2" if family == "gpt2" else "llama"]
    rslora = {"use_rslora": True}
    # Where two keys match, the first counts; PEFT sorts them when it saves, so these are in that order.
    patterns = {"rank_pattern": {r".*\.1\..*": 7, attention: 3}, "alpha_pattern": {rf"0\.{down}": 4.0, down: 5.0}}
    modules = {"modules_to_save": (norm, embedding, "lm_head")}
    return {
        "rslora": rslora,
        "patterns": patterns,
        "modules": modules,
        "everything": rslora | patterns | modules,
        "part of the linears": {"modules_to_save": (f"1.{down}", embedding)},
    }[name]


VARIANTS = ("rslora", "patterns", "modules", "everything", "part of the linears")


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32).requires_grad_(False)


def randomise(parameters: Any) -> None:
    """Give every adapter weight a value, so that B is not zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + 0.1 * noise) if parameter.ndim == 1 else parameter.copy_(0.1 * noise)


def batch() -> Any:
    return torch.randint(3, tiny.VOCAB_SIZE, (2, 11), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    models = {family: tiny.write_model(root / family, family) for family in FAMILIES}
    return models | {TIED: tiny.write_model(root / "tied", tied=True)}


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ours_saved_and_loaded_by_peft(bases: dict[str, Path], tmp_path: Path, family: str, use_dora: bool) -> None:
    settings = AdapterSettings(5, 12.0, 0.0, "all-linear", use_dora)
    ours = load(bases[family])
    adapted = attach(ours, settings, seed=1)
    parameters = [p for p in ours.parameters() if p.requires_grad]
    randomise(parameters)
    save_adapter(tmp_path, ours, settings, str(bases[family]))
    theirs = peft.PeftModel.from_pretrained(load(bases[family]), str(tmp_path), is_trainable=True)

    mine, other = ours(input_ids=batch()).logits, theirs(input_ids=batch()).logits
    assert (mine - other).abs().max() < TOLERANCE * mine.abs().max()
    assert (mine - load(bases[family])(input_ids=batch()).logits).abs().max() > 1e-2, "the adapter does something"

    mine.square().mean().backward()
    other.square().mean().backward()
    for name, layer in adapted.items():
        module = theirs.base_model.model.get_submodule(name)
        pairs = [(layer.lora_A, module.lora_A["default"].weight), (layer.lora_B, module.lora_B["default"].weight)]
        if layer.magnitude is not None:
            pairs.append((layer.magnitude, module.lora_magnitude_vector["default"].weight))
        for a, b in pairs:
            assert a.grad is not None and b.grad is not None
            assert (a.grad - b.grad).abs().max() <= 1e-5 * max(1.0, float(b.grad.abs().max())), name


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", TIED])
def test_variants_saved_and_loaded_by_peft(
    bases: dict[str, Path], tmp_path: Path, family: str, name: str, use_dora: bool
) -> None:
    settings = AdapterSettings(5, 12.0, 0.0, "all-linear", use_dora, **variant(name, family))
    ours = load(bases[family])
    adapted = attach(ours, settings, seed=1)
    randomise(p for p in ours.parameters() if p.requires_grad)
    save_adapter(tmp_path, ours, settings, str(bases[family]))
    theirs = peft.PeftModel.from_pretrained(load(bases[family]), str(tmp_path), is_trainable=True)
    mine, other = ours(input_ids=batch()).logits, theirs(input_ids=batch()).logits
    assert (mine - other).abs().max() < TOLERANCE * mine.abs().max()
    assert (mine - load(bases[family])(input_ids=batch()).logits).abs().max() > 1e-2, "the adapter does something"

    again = load(bases[family])
    put_on(again, load_adapter(tmp_path))
    assert torch.equal(again(input_ids=batch()).logits, mine)

    mine.square().mean().backward()
    other.square().mean().backward()
    tuner = theirs.base_model.model
    for layer_name, layer in adapted.items():
        grad = tuner.get_submodule(layer_name).lora_B["default"].weight.grad
        assert (layer.lora_B.grad - grad).abs().max() <= 1e-5 * max(1.0, float(grad.abs().max())), layer_name
    for module_name, module in whole_modules(ours, settings.modules_to_save).items():
        theirs_whole = tuner.get_submodule(module_name).modules_to_save["default"]
        for (key, a), b in zip(module.named_parameters(), theirs_whole.parameters(), strict=True):
            assert (a.grad - b.grad).abs().max() <= 1e-5 * max(1.0, float(b.grad.abs().max())), (module_name, key)
    count = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert count == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", TIED])
def test_variants_saved_by_peft_and_loaded_by_us(
    bases: dict[str, Path], tmp_path: Path, family: str, name: str, use_dora: bool
) -> None:
    settings = variant(name, family)
    ties = family in (TIED, "gpt2")
    if ties and "modules_to_save" in settings:  # PEFT keeps GPT-2's tie only when the head is named
        settings |= {"modules_to_save": (*settings["modules_to_save"], "lm_head")}
    if "modules_to_save" in settings:
        settings |= {"modules_to_save": sorted(set(settings["modules_to_save"]))}
    config = peft.LoraConfig(
        r=5, lora_alpha=12, target_modules="all-linear", use_dora=use_dora, task_type="CAUSAL_LM",
        ensure_weight_tying=ties, **settings,
    )  # fmt: skip
    theirs = peft.get_peft_model(load(bases[family]), config)
    randomise(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(str(tmp_path))
    ours = load(bases[family])
    put_on(ours, load_adapter(tmp_path))
    mine, other = ours(input_ids=batch()).logits, theirs(input_ids=batch()).logits
    assert (mine - other).abs().max() < TOLERANCE * other.abs().max()


def test_patterns_mean_the_same_in_any_order(bases: dict[str, Path], tmp_path: Path) -> None:
    """PEFT sorts the keys when it saves; in this order that would give layer 1 other ranks."""
    patterns = {"rank_pattern": {"q_proj": 3, r".*\.1\..*": 7}, "alpha_pattern": {"q_proj": 6.0, r".*\.1\..*": 16.0}}
    settings = AdapterSettings(16, 16.0, 0.0, "all-linear", False, **patterns)  # type: ignore[arg-type]
    ours = load(bases["llama"])
    attach(ours, settings, seed=0)
    randomise(p for p in ours.parameters() if p.requires_grad)
    save_adapter(tmp_path, ours, settings, str(bases["llama"]))
    theirs = peft.PeftModel.from_pretrained(load(bases["llama"]), str(tmp_path))
    theirs.save_pretrained(str(tmp_path / "again"))
    again = load(bases["llama"])
    put_on(again, load_adapter(tmp_path / "again"))
    mine, other = ours(input_ids=batch()).logits, theirs(input_ids=batch()).logits
    assert (mine - other).abs().max() < TOLERANCE * mine.abs().max()
    assert torch.equal(again(input_ids=batch()).logits, mine)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("name", ["norm", "mlp", "part of the linears", "proj of one layer"])
def test_the_same_modules_are_trained_whole(bases: dict[str, Path], family: str, name: str) -> None:
    down = NAMES["gpt2" if family == "gpt2" else "llama"][1]
    names = {
        "norm": ("ln_f", "ln_1") if family == "gpt2" else ("norm",),
        "mlp": ("mlp",),
        "part of the linears": (f"1.{down}", "lm_head"),
        "proj of one layer": (f"h.1.{down}" if family == "gpt2" else f"layers.1.{down}",),
    }[name]
    if family == "gpt2":
        names = tuple(word for word in names if word != "lm_head")
    ours = load(bases[family])
    adapted = attach(ours, AdapterSettings(2, 4.0, 0.0, "all-linear", False, modules_to_save=names), seed=0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=list(names), task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(load(bases[family]), config).base_model.model
    whole = {n for n, m in theirs.named_modules() if type(m).__name__ == "ModulesToSaveWrapper"}
    assert set(whole_modules(ours, names)) == whole
    assert set(adapted) == {n.removesuffix(".lora_A") for n, _ in theirs.named_modules() if n.endswith(".lora_A")}


@pytest.mark.parametrize("tied_name", ["embed_tokens", "lm_head"])
def test_either_name_of_tied_embeddings_means_both(bases: dict[str, Path], tmp_path: Path, tied_name: str) -> None:
    settings = AdapterSettings(2, 4.0, 0.0, ("q_proj",), False, modules_to_save=(tied_name,))
    model = load(bases[TIED])
    attach(model, settings, seed=0)
    randomise(p for p in model.parameters() if p.requires_grad)
    save_adapter(tmp_path, model, settings, str(bases[TIED]))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["ensure_weight_tying"] and set(config["modules_to_save"]) == {"model.embed_tokens", "lm_head"}
    theirs = peft.PeftModel.from_pretrained(load(bases[TIED]), str(tmp_path))
    mine, other = model(input_ids=batch()).logits, theirs(input_ids=batch()).logits
    assert (mine - other).abs().max() < TOLERANCE * mine.abs().max()
    assert theirs.merge_and_unload().config.tie_word_embeddings


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_saved_by_peft_and_loaded_by_us(bases: dict[str, Path], tmp_path: Path, use_dora: bool) -> None:
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], use_dora=use_dora, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(load(bases["llama"]), config)
    randomise(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(str(tmp_path))

    adapter = load_adapter(tmp_path)
    assert adapter.settings.scaling == 7 / 3
    ours = load(bases["llama"])
    put_on(ours, adapter)
    mine, other = ours(input_ids=batch()).logits, theirs(input_ids=batch()).logits
    assert (mine - other).abs().max() < TOLERANCE * other.abs().max()


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "self_attn.o_proj"), r".*layers\.[12]\..*_proj"])
def test_the_same_layers_are_chosen(bases: dict[str, Path], targets: Any) -> None:
    ours = load(bases["llama"])
    adapted = attach(ours, AdapterSettings(2, 4.0, 0.0, targets, False), seed=0)
    wanted = list(targets) if isinstance(targets, tuple) else targets
    config = peft.LoraConfig(r=2, target_modules=wanted, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(load(bases["llama"]), config)
    chosen = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in theirs.named_modules()
        if name.endswith(".lora_A")
    }
    assert set(adapted) == chosen


def test_a_has_pefts_spread_and_b_is_zero(bases: dict[str, Path]) -> None:
    ours = attach(load(bases["llama"]), AdapterSettings(64, 4.0, 0.0, "all-linear", False), seed=0)
    theirs = peft.get_peft_model(
        load(bases["llama"]), peft.LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, layer in ours.items():
        other = theirs.base_model.model.get_submodule(name).lora_A["default"].weight
        assert not layer.lora_B.any()
        assert abs(float((layer.lora_A.std() / other.std()).detach()) - 1) < 0.1
        assert abs(float((layer.lora_A.abs().max() / other.abs().max()).detach()) - 1) < 0.02


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_dropout_acts_on_the_adapters_input_only(bases: dict[str, Path], use_dora: bool) -> None:
    model = load(bases["llama"])
    attach(model, AdapterSettings(4, 8.0, 0.5, "all-linear", use_dora), seed=0)
    randomise(p for p in model.parameters() if p.requires_grad)
    model.train()
    torch.manual_seed(0)
    first, second = model(input_ids=batch()).logits, model(input_ids=batch()).logits
    assert (first - second).abs().max() > 1e-3
    model.eval()
    assert torch.equal(model(input_ids=batch()).logits, model(input_ids=batch()).logits)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_steps_follow_pefts(bases: dict[str, Path], tmp_path: Path, use_dora: bool) -> None:
    """Eight steps of our fused AdamW on our layers, and of plain AdamW on PEFT's, from the same start."""
    settings = AdapterSettings(4, 8.0, 0.0, "all-linear", use_dora)
    ours = load(bases["llama"])
    attach(ours, settings, seed=1)
    save_adapter(tmp_path, ours, settings, str(bases["llama"]))
    theirs = peft.PeftModel.from_pretrained(load(bases["llama"]), str(tmp_path), is_trainable=True)
    curves = []
    for model, fused in ((ours, True), (theirs, False)):
        moved = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(moved, lr=2e-2, weight_decay=0.0, fused=fused)
        losses = []
        for _ in range(8):
            loss = model(input_ids=batch(), labels=batch()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
