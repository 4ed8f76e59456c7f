"""Every kind of adapter trains, and PEFT and the merge stage make the same model of what it leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import tiny  # noqa: E402
from tests.adapter_on_model import put_on  # noqa: E402
from tunesmith.errors import ModelError  # noqa: E402
from tunesmith.merge import stage as merge  # noqa: E402
from tunesmith.model.adapter_files import load_adapter  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.model.nf4 import round_trip  # noqa: E402
from tunesmith.recipe.schema import Recipe  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train import stage  # noqa: E402

PATTERNS = {"rank_pattern": {"q_proj": 3, "0.mlp.up_proj": 9}, "alpha_pattern": {"down_proj": 4.0}}
NORMS = ("input_layernorm", "model.norm")
CASES: dict[str, dict[str, Any]] = {
    "rslora": {"method": "lora", "lora": {"r": 6, "use_rslora": True}},
    "patterns": {"method": "dora", "lora": {"r": 6, **PATTERNS}},
    "norms": {"method": "lora", "lora": {"r": 4, "modules_to_save": NORMS}},
    "head in 16 bits": {"method": "dora", "dtype": "bfloat16", "lora": {"r": 4, "modules_to_save": ("lm_head",)}},
    "tied": {"method": "lora", "tied": True, "lora": {"r": 4, "modules_to_save": ("lm_head",)}},
    "tied in 16 bits": {
        "method": "lora", "tied": True, "dtype": "bfloat16", "lora": {"r": 4, "modules_to_save": ("embed_tokens",)},
    },
    "gpt2": {"method": "dora", "family": "gpt2", "lora": {"r": 4, "modules_to_save": ("ln_f", "wte", "1.mlp.c_fc")}},
    "four bits": {
        "method": "qlora", "dtype": "bfloat16",
        "lora": {"r": 4, "use_rslora": True, "modules_to_save": ("1.mlp.down_proj", "embed_tokens")},
    },
    "four bits, everything": {
        "method": "qdora",
        "lora": {"r": 4, "use_rslora": True, **PATTERNS, "modules_to_save": (*NORMS, "lm_head", "embed_tokens")},
    },
}  # fmt: skip


def prepared(path: Path, case: dict[str, Any]) -> tuple[Recipe, RunDir]:
    settings = dict(case)
    base = tiny.write_model(
        path / "base",
        settings.pop("family", "llama"),
        tied=settings.pop("tied", False),
        dtype=settings.get("dtype", "float32"),
    )
    run_dir = tiny.run_with_rows(path / "run", num_rows=16, num_held_out=4)
    return tiny.recipe_for(base, path, num_train_epochs=2.0, **settings), run_dir


def held_out_loss(model: Any, run_dir: RunDir) -> float:
    """Return the mean loss of the held-out rows' trained tokens, one row at a time."""
    shards = Shards(run_dir.validation_tokens)
    total, count = 0.0, 0
    for row in range(len(shards)):
        ids, trained = (torch.from_numpy(part.copy()) for part in shards.segment(row, 0))
        with torch.no_grad():
            logits = model(input_ids=ids.long()[None], use_cache=False).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:].long(), reduction="none")
        total, count = total + float(losses[trained[1:].bool()].sum()), count + int(trained[1:].sum())
    return total / count


def base_as_trained_on(recipe: Recipe, run_dir: RunDir) -> Any:
    """Return the base in the recipe's number format, with what 4 bits left of it."""
    path = Path(recipe.model.name_or_path)
    model = load_model(path, recipe.model, four_bit=False, device=torch.device("cpu"))
    layers, dtype = merge.quantised_layers(run_dir.trained)
    for name in layers:
        weight = model.get_submodule(name).weight
        weight.data = round_trip(weight.data.to(getattr(torch, dtype))).to(weight.dtype)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_it_trains_is_read_by_peft_and_merged(tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    if name.startswith("four bits"):
        pytest.importorskip("bitsandbytes")
    recipe, run_dir = prepared(tmp_path, CASES[name])
    record = stage.run(recipe, run_dir)
    run_dir.save(record)
    losses = [loss for _, loss in tiny.losses(run_dir)]
    assert sum(losses[-2:]) < 0.985 * sum(losses[:2])

    theirs = peft.PeftModel.from_pretrained(base_as_trained_on(recipe, run_dir), str(run_dir.trained)).eval()
    exact = recipe.model.dtype == "float32"
    assert held_out_loss(theirs, run_dir) == pytest.approx(record.validation_loss, rel=1e-5 if exact else 5e-3)
    ours = base_as_trained_on(recipe, run_dir)
    put_on(ours, load_adapter(run_dir.trained))
    ids = torch.randint(3, tiny.VOCAB_SIZE, (2, 13), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        mine, other = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
    assert (mine - other).abs().max() <= (1e-5 if exact else 3e-2) * mine.abs().max()
    trainable = peft.PeftModel.from_pretrained(
        base_as_trained_on(recipe, run_dir), str(run_dir.trained), is_trainable=True
    )
    assert record.num_trainable_parameters == sum(p.numel() for p in trainable.parameters() if p.requires_grad)

    weights = merge.run(recipe, run_dir)
    assert 0 <= weights.proof["max_difference"] <= weights.proof["tolerance"]
    config = json.loads((run_dir.merged / "config.json").read_text())
    assert config["tie_word_embeddings"] == (CASES[name].get("tied", False) or name == "gpt2")
    merged = load_model(run_dir.merged, recipe.model, four_bit=False, device=torch.device("cpu")).eval()
    assert held_out_loss(merged, run_dir) == pytest.approx(record.validation_loss, rel=1e-4 if exact else 2e-2)


def test_the_plan_counts_what_training_moves(tmp_path: Path) -> None:
    from tunesmith.planning import gather_facts
    from tunesmith.recipe.memory import num_trainable_parameters
    from tunesmith.train.optim import Moved

    for number, name in enumerate(["patterns", "norms", "tied", "tied in 16 bits", "gpt2", "four bits, everything"]):
        recipe, _ = prepared(tmp_path / str(number), CASES[name])
        model = load_model(Path(recipe.model.name_or_path), recipe.model, four_bit=False, device=torch.device("cpu"))
        attach(model, AdapterSettings.of(recipe.train.lora, recipe.train.method), seed=0)
        assert num_trainable_parameters(recipe, gather_facts(recipe)[1]) == Moved(model).num_parameters, name


def test_whole_modules_of_16_bits_move_in_float32(tmp_path: Path) -> None:
    """Steps far below bfloat16's resolution add up: what is written is the sum, rounded once."""
    recipe, run_dir = prepared(tmp_path, CASES["tied in 16 bits"])
    recipe = dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, learning_rate=2e-4, lr_scheduler_type="constant")
    )
    stage.run(recipe, run_dir)
    before = load_file(tmp_path / "base/model.safetensors")["model.embed_tokens.weight"]
    after = load_file(run_dir.trained / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert after.dtype == torch.bfloat16
    newest = max((run_dir.checkpoints).glob("step-*"))
    kept = {k: v for file in newest.glob("weights*.safetensors") for k, v in load_file(file).items()}
    master = next(tensor for name, tensor in kept.items() if name.endswith("model.embed_tokens.weight"))
    assert master.dtype == torch.float32
    assert torch.equal(master.to(torch.bfloat16), after)
    moved = (master - before.float()).abs()
    assert 0 < moved.max() < 1e-2
    stuck = (after == before) & (moved > 0)
    assert stuck.any(), "some moves are too small to be seen in 16 bits, and are kept in 32"


def test_the_reference_of_preferences_is_the_base(tmp_path: Path) -> None:
    """Whole modules cannot be switched off: rows are scored before they move, and the first loss is log 2."""
    base = tiny.write_model(tmp_path / "base", tied=True)
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=12, objective="dpo")
    lora = {"r": 4, "modules_to_save": ("embed_tokens", *NORMS)}
    recipe = tiny.recipe_for(base, tmp_path, objective="dpo", num_train_epochs=3.0, lora=lora)
    record = stage.run(recipe, run_dir)
    assert record.first_loss == pytest.approx(0.6931, abs=1e-4)
    assert record.final_loss < 0.6


@pytest.mark.parametrize(
    ("lora", "where", "hint"),
    [
        ({"rank_pattern": {"q_prj": 4}}, "train.lora.rank_pattern", "did you mean 'q_proj'"),
        ({"alpha_pattern": {r"layers\.7\..*": 4.0}}, "train.lora.alpha_pattern", "the layers with an adapter end in"),
        ({"rank_pattern": {"o_proj": 4}, "target_modules": ("q_proj",)}, "train.lora.rank_pattern", "end in q_proj"),
        ({"modules_to_save": ("embed_token",)}, "train.lora.modules_to_save", "did you mean 'embed_tokens'"),
        ({"modules_to_save": ("layers",)}, "train.lora.modules_to_save", "matched by their ends"),
        ({"modules_to_save": ("act_fn",)}, "train.lora.modules_to_save", "matched by their ends"),
        ({"target_modules": ("q_proj", "lm_head")}, "train.lora.target_modules", "modules_to_save"),
        ({"target_modules": ("q_proj", "embed_tokens")}, "train.lora.target_modules", "modules_to_save"),
        ({"target_modules": ".*"}, "train.lora.target_modules", "all-linear"),
    ],
)
def test_names_that_mean_nothing(tmp_path: Path, lora: dict[str, Any], where: str, hint: str) -> None:
    recipe, run_dir = prepared(tmp_path, {"lora": lora})
    with pytest.raises(ModelError) as caught:
        stage.run(recipe, run_dir)
    assert caught.value.where == where and caught.value.do is not None and hint in caught.value.do
