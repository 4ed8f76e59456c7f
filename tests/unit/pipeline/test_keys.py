"""Which stages a change of the recipe, of the rows or of the model runs again: those that read it, and no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.fakes import harness_python
from tunesmith import keys
from tunesmith.recipe.load import load
from tunesmith.recipe.schema import Recipe

ROOT = Path(__file__).parent.parent.parent.parent
STAGES = tuple(keys.VERSIONS)


def quickstart(*settings: str) -> Recipe:
    # Resolved far enough: what `auto` becomes plays no part here.
    return load(ROOT / "recipes" / "quickstart.yaml", [*settings, "model.dtype=float32"]).recipe


def stage_keys(recipe: Recipe, inputs: keys.Inputs) -> dict[str, str]:
    return {stage: keys.stage_key(stage, recipe, inputs, []) for stage in STAGES}


@pytest.fixture
def inputs() -> keys.Inputs:
    model = {"weights": "w", "rest": "r"}
    return keys.Inputs(model, {"data": {"rows.jsonl": "1"}, "evaluate": {"held.jsonl": "2"}, "bench": {"p.jsonl": "3"}})


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("bench.num_requests=25", {"bench"}),
        ("evaluate.function_calls.limit=3", {"evaluate"}),
        ("gate=[train.final_loss < 1]", {"gate"}),
        ("merge.dtype=float32", {"merge"}),
        ("publish.local=elsewhere", {"publish"}),
        ("train.learning_rate=1e-4", {"train"}),
        ("data.max_length=100", {"data"}),
        ("data.packing=true", {"data", "train"}),
        ("seed=7", set(STAGES)),
        ("report.title=other", set()),
        ("train.save_steps=7", set()),
        ("train.per_device_train_batch_size=2", set()),
        ("serve.port=1234", set()),
        ("evaluate.concurrency=3", set()),
        ("serve.max_model_len=99", {"evaluate", "bench"}),
        ("track=[mlflow]", set()),
    ],
)
def test_a_setting_touches_the_stages_that_read_it(setting: str, changed: set[str], inputs: keys.Inputs) -> None:
    before, after = stage_keys(quickstart(), inputs), stage_keys(quickstart(setting), inputs)
    # The page shows the whole recipe, so it is always made again.
    assert {stage for stage in STAGES if before[stage] != after[stage]} == changed | {"report"}


def test_inputs_touch_the_stages_that_open_them(inputs: keys.Inputs) -> None:
    recipe = quickstart()
    before = stage_keys(recipe, inputs)
    for stage in ("data", "evaluate", "bench"):
        other = dataclasses.replace(inputs, files=inputs.files | {stage: {"x": "new"}})
        after = stage_keys(recipe, other)
        assert {name for name in STAGES if before[name] != after[name]} == {stage}
    reweighted = dataclasses.replace(inputs, model={"weights": "other", "rest": "r"})
    after = stage_keys(recipe, reweighted)
    assert {name for name in STAGES if before[name] != after[name]} == {"train", "merge", "evaluate", "bench"}


def test_identity_is_what_is_trained_on_what(inputs: keys.Inputs) -> None:
    identity = keys.identity(quickstart(), inputs)
    assert keys.identity(quickstart("bench.num_requests=25", "gate=[]", "train.save_steps=9"), inputs) == identity
    for setting in ("train.lora.r=8", "data.train_on=all", "seed=1"):
        assert keys.identity(quickstart(setting), inputs) != identity


def test_data_that_a_harness_task_names_is_an_input_of_the_evaluation(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("1")
    python = harness_python.write(tmp_path / "fake", data_file=data)
    settings = ["evaluate.lm_eval.tasks=[fake_local]", f"evaluate.lm_eval.python={python}", f"output_dir={tmp_path}"]
    recipe = quickstart(*settings)
    model = ROOT / "quickstart" / "base"
    before = keys.gather(recipe, model).files["evaluate"]
    assert str(data) in before and before["lm_eval"] == "0.4.13"
    data.write_text("2")
    assert keys.gather(recipe, model).files["evaluate"] != before
