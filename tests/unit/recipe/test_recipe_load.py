"""Loading: merging, settings, places, environment references, round trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import RecipeError, UsageError
from tunesmith.recipe.dump import dump_recipe
from tunesmith.recipe.environment import expand, redact
from tunesmith.recipe.load import load, parse_yaml

MINIMAL = "name: t\nmodel: m\ndata:\n  train: rows.jsonl\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_short_forms(tmp_path: Path) -> None:
    recipe = load(write(tmp_path / "r.yaml", MINIMAL + "track: [tensorboard, mlflow]\n")).recipe
    assert recipe.model.name_or_path == "m"
    assert recipe.data.train[0].path == "rows.jsonl"
    assert recipe.track.tensorboard and recipe.track.mlflow is not None and recipe.track.wandb is None


def test_numbers_follow_yaml_1_2(tmp_path: Path) -> None:
    text = MINIMAL + "train: {learning_rate: 1e-5}\nreport: {title: no}\n"
    recipe = load(write(tmp_path / "r.yaml", text)).recipe
    assert recipe.train.learning_rate == 1e-5
    assert recipe.report.title == "no"


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(
        tmp_path / "below.yaml",
        MINIMAL + "train: {learning_rate: 1e-4, lora: {r: 8, alpha: 4}}\ngate: [train.final_loss < 1]\n",
    )
    text = (
        "extends: below.yaml\nname: above\ntrain: {lora: {r: 32}}\ngate: [train.final_loss < 2, data.num_tokens > 1]\n"
    )
    recipe = load(write(tmp_path / "above.yaml", text)).recipe
    assert (recipe.name, recipe.train.learning_rate) == ("above", 1e-4)
    assert (recipe.train.lora.r, recipe.train.lora.alpha) == (32, 4.0)
    assert recipe.gate == ("train.final_loss < 2", "data.num_tokens > 1")


def test_errors_of_an_extended_recipe_point_into_its_file(tmp_path: Path) -> None:
    write(tmp_path / "below.yaml", MINIMAL + "train:\n  lerning_rate: 1\n")
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path / "above.yaml", "extends: below.yaml\n"))
    assert caught.value.problems[0].where == f"{tmp_path / 'below.yaml'}:6"


def test_settings_go_on_top(tmp_path: Path) -> None:
    settings = ["train.lora.r=32", "data.train[0].weight=2", "model.revision=abc", "gate=[train.final_loss < 3]"]
    text = MINIMAL.replace("rows.jsonl", "\n    - {path: rows.jsonl}")
    recipe = load(write(tmp_path / "r.yaml", text), settings).recipe
    assert recipe.train.lora.r == 32
    assert recipe.data.train[0].weight == 2.0
    assert (recipe.model.name_or_path, recipe.model.revision) == ("m", "abc")


@pytest.mark.parametrize("setting", ["train.lora.r", "=3", "name.first=x", "data.train[3].weight=1", "seed=[1"])
def test_settings_that_cannot_be_read(tmp_path: Path, setting: str) -> None:
    text = MINIMAL.replace("rows.jsonl", "\n    - {path: rows.jsonl}")
    with pytest.raises((UsageError, RecipeError)):
        load(write(tmp_path / "r.yaml", text), [setting])


def test_a_setting_that_does_not_fit_is_named_as_its_place(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path / "r.yaml", MINIMAL), ["train.learning_rate=fast"])
    assert caught.value.problems[0].where == "--set train.learning_rate"


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = MINIMAL + "trian: {}\ntrain: {learning_rate: fast, warmup_ratio: 0.1, warmup_steps: 3}\n"
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path / "r.yaml", text))
    told = [problem.what for problem in caught.value.problems]
    assert len(told) == 3 and any("both given" in what for what in told)


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    text = MINIMAL.replace("name: t", 'name: "1e5"') + "seed: 7\nreport: {title: 'yes'}\nbench: {concurrency: [1, 2]}\n"
    recipe = load(write(tmp_path / "r.yaml", text)).recipe
    assert load(write(tmp_path / "again.yaml", dump_recipe(recipe))).recipe == recipe


def test_environment_references_stay_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_TEST_SECRET", "sesame-open")
    text = MINIMAL + "track: {mlflow: {tracking_uri: 'http://u:${env:TUNESMITH_TEST_SECRET}@h'}}\n"
    recipe = load(write(tmp_path / "r.yaml", text)).recipe
    assert recipe.track.mlflow is not None and recipe.track.mlflow.tracking_uri is not None
    assert "sesame" not in dump_recipe(recipe)
    assert expand(recipe.track.mlflow.tracking_uri) == "http://u:sesame-open@h"
    assert redact("login sesame-open failed") == "login ${env:TUNESMITH_TEST_SECRET} failed"


def test_marks_name_every_key() -> None:
    _, marks = parse_yaml("a: 1\nb:\n  c: [1, 2]\n", "f.yaml")
    assert marks[("b", "c")] == "f.yaml:3" and marks[("b", "c", 1)] == "f.yaml:3"


def test_a_run_is_looked_at_without_the_variables_of_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: r\nmodel: m\ndata: {train: ['${env:NOT_SET_HERE}/rows.jsonl']}\n")
    with pytest.raises(RecipeError, match="NOT_SET_HERE is not set"):
        load(path)
    assert load(path, needs_variables=False).recipe.name == "r"
