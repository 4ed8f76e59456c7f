"""Names of layers that a model does not have are found by `plan` and `run`, before anything is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.app import main
from tunesmith.recipe.adapter_fit import misnamed
from tunesmith.recipe.facts import Facts, Linear, Tensor
from tunesmith.recipe.schema import Lora, Model, Recipe, Train
from tunesmith.recipe.typed import key_path

ROOT = Path(__file__).parents[3]
LINEARS = tuple(
    Linear(f"model.layers.{layer}.{name}", 4, 6)
    for layer in (0, 1)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
)
OTHERS = (Tensor("model.embed_tokens.weight", 9), Tensor("model.norm.weight", 3), Tensor("lm_head.weight", 9))
FACTS = Facts(linears=LINEARS, others=OTHERS)


def problems(facts: Facts = FACTS, method: Any = "lora", **lora: Any) -> list[tuple[str, str]]:
    recipe = Recipe("r", Model("m"), train=Train(method=method, lora=Lora(**lora)))
    return [(key_path(misfit.path), f"{misfit.what}; {misfit.do}") for misfit in misnamed(recipe, facts)]


@pytest.mark.parametrize(
    ("settings", "key", "told"),
    [
        ({"target_modules": ("q_proj", "v_porj")}, "target_modules[1]", "called 'v_porj'; did you mean 'v_proj'?"),
        ({"target_modules": ("lm_head",)}, "target_modules[0]", "'lm_head' cannot carry an adapter"),
        ({"target_modules": ("mlp",)}, "target_modules[0]", "'mlp' cannot carry an adapter"),
        ({"rank_pattern": {"up_porj": 4}}, "rank_pattern.up_porj", "did you mean 'up_proj'?"),
        (
            {"target_modules": ("q_proj",), "alpha_pattern": {"v_proj": 4.0}},
            "alpha_pattern.v_proj",
            "the layers with an adapter end in q_proj",
        ),
        ({"modules_to_save": ("embed_token",)}, "modules_to_save[0]", "did you mean 'embed_tokens'?"),
    ],
)
def test_a_misspelt_name_is_told_at_its_key(settings: dict[str, Any], key: str, told: str) -> None:
    ((where, text),) = problems(**settings)
    assert where == f"train.lora.{key}" and told in text
    assert not problems(method="full", **settings), "there is no adapter"
    assert not problems(facts=Facts(), **settings), "nothing is known of the model"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ("q_proj", "mlp.up_proj", "layers.1.self_attn.v_proj")},
        {"target_modules": r"transformer\.h\..*"},  # modules may be called otherwise than the checkpoint's tensors
        {"target_modules": ("transformer.h.0.q_proj",)},
        {"rank_pattern": {r"layers\.9\.q_proj": 3, "up_proj": 3}},
        {"modules_to_save": ("embed_tokens", "lm_head", "norm", "mlp")},
    ],
)
def test_what_can_be_meant_is_let_through(settings: dict[str, Any]) -> None:
    assert problems(**settings) == []


def test_a_tied_output_head_is_in_no_checkpoint() -> None:
    tied = dataclasses.replace(FACTS, others=OTHERS[:2], tied=True)
    assert problems(facts=tied, modules_to_save=("lm_head",)) == []


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_nothing_is_begun(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting = ["--set", "train.lora.target_modules=[q_proj,v_porj]", "--set", f"output_dir={tmp_path}/out"]
    setting += ["--set", f"model.name_or_path={ROOT}/quickstart/base"]
    setting += ["--set", f"data.train=[{ROOT}/quickstart/data/train.jsonl]", "--set", "evaluate=null"]
    setting += ["--set", "bench=null", "--set", "gate=[]"]
    assert main([verb, str(ROOT / "recipes" / "quickstart.yaml"), *setting]) == 2
    told = capsys.readouterr().err
    assert "--set train.lora.target_modules: the model has no linear layer called 'v_porj'" in told
    assert not (tmp_path / "out" / "runs").exists()
