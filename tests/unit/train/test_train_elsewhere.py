"""What was trained elsewhere takes the place of a training: PEFT's adapters, whole models, another run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from tests import tiny  # noqa: E402
from tunesmith import keys  # noqa: E402
from tunesmith.artifacts import Checkpoint  # noqa: E402
from tunesmith.errors import ModelError, RecipeError, UsageError  # noqa: E402
from tunesmith.recipe.load import load  # noqa: E402
from tunesmith.recipe.schema import Data, Recipe  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402
from tunesmith.train import elsewhere  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, an adapter that PEFT trained nothing into but noise, and a whole model."""
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("elsewhere")
    base = tiny.write_model(place / "base")
    tiny.write_model(place / "whole", seed=3)
    for name, settings in {"adapter": {"r": 5}, "dora": {"r": 3, "use_dora": True}}.items():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", **settings))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.05)
        model.save_pretrained(place / name)
    return place


def recipe_for(place: Path, tuned: str, out: Path) -> Recipe:
    recipe = tiny.recipe_for(place / "base", out)
    return dataclasses.replace(recipe, tuned=tuned, data=Data())


@pytest.mark.parametrize(("name", "method"), [("adapter", "lora"), ("dora", "dora")])
def test_an_adapter_of_peft_becomes_a_checkpoint_with_the_base_models_companions(
    place: Path, tmp_path: Path, name: str, method: str
) -> None:
    run_dir = RunDir(tmp_path / "run")
    record = elsewhere.run(recipe_for(place, str(place / name), tmp_path), run_dir)
    weights = "adapter_model.safetensors"
    assert (run_dir.trained / weights).read_bytes() == (place / name / weights).read_bytes()
    assert (run_dir.trained / "tokenizer.json").read_bytes() == (place / "base/tokenizer.json").read_bytes()
    assert (run_dir.trained / "chat_template.jinja").read_text() == tiny.TEMPLATE
    assert (record.method, record.num_steps, record.first_loss) == (method, 0, None)
    loaded = peft.load_peft_weights(str(run_dir.trained))
    assert record.num_trainable_parameters == sum(tensor.numel() for tensor in loaded.values())
    assert record.template_fingerprint
    assert Checkpoint.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_whole_model_is_linked(place: Path, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    record = elsewhere.run(recipe_for(place, str(place / "whole"), tmp_path), run_dir)
    assert record.method == "full"
    weights = "model.safetensors"
    assert (run_dir.trained / weights).samefile(place / "whole" / weights)
    assert (run_dir.trained / "config.json").is_file()


def test_the_template_beside_an_adapter_is_the_one_it_was_trained_with(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for file in (place / "adapter").iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    tiny.write_tokenizer(own)
    (own / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    run_dir = RunDir(tmp_path / "run")
    found = elsewhere.run(recipe_for(place, str(own), tmp_path), run_dir)
    assert (run_dir.trained / "chat_template.jinja").read_text() == "{{ messages[-1]['content'] }}"
    plain = elsewhere.run(recipe_for(place, str(place / "adapter"), tmp_path), RunDir(tmp_path / "other"))
    assert found.template_fingerprint != plain.template_fingerprint


def test_a_run_of_the_same_name_is_told_by_what_is_in_the_directory(place: Path, tmp_path: Path) -> None:
    recipe = recipe_for(place, str(place / "adapter"), tmp_path)
    before = keys.identity(recipe, keys.gather(recipe, place / "base"))
    assert before == keys.identity(recipe, keys.gather(recipe, place / "base"))
    other = dataclasses.replace(recipe, tuned=str(place / "dora"))
    assert before != keys.identity(other, keys.gather(other, place / "base"))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "no such directory"),
        (lambda path: path.mkdir(), "neither adapter_config.json nor config.json"),
        (lambda path: _write(path, "adapter_config.json", "{}"), "has no adapter_model.safetensors"),
        (lambda path: _write(path, "adapter_model.bin", "", "adapter_config.json"), "pickle"),
        (lambda path: _adapter(path, '{"peft_type": "IA3"}'), "of type IA3"),
        (lambda path: _adapter(path, "{"), "cannot be read"),
    ],
)
def test_what_cannot_be_brought_in_is_refused_by_name(place: Path, tmp_path: Path, make: Any, what: str) -> None:
    path = tmp_path / "given"
    make(path)
    with pytest.raises(ModelError, match=what) as caught:
        elsewhere.run(recipe_for(place, str(path), tmp_path), RunDir(tmp_path / "run"))
    assert "given" in str(caught.value.where)
    assert not (tmp_path / "run/train/final").exists()


def _write(path: Path, name: str, text: str, *others: str) -> None:
    path.mkdir()
    for file in (name, *others):
        (path / file).write_text(text)


def _adapter(path: Path, config: str) -> None:
    from safetensors.torch import save_file

    _write(path, "adapter_config.json", config)
    save_file({"x": torch.zeros(2)}, str(path / "adapter_model.safetensors"))


def test_a_run_that_has_trained_nothing_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        elsewhere.find("run:nowhere", str(tmp_path))
    run = tmp_path / "runs/20260101-000000-early"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="trained nothing yet"):
        elsewhere.find("run:early", str(tmp_path))


def test_a_recipe_trains_or_names_what_was_trained(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\nmodel: base\ntuned: adapter\ndata: {train: rows.jsonl}\n")
    with pytest.raises(RecipeError, match="`tuned` is what was trained already"):
        load(recipe)
    recipe.write_text("name: x\nmodel: base\n")
    with pytest.raises(RecipeError, match=r"`data\.train` has no source"):
        load(recipe)
    recipe.write_text("name: x\nmodel: base\ntuned: adapter\n")
    assert load(recipe).recipe.tuned == "adapter"
