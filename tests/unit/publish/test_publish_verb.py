"""`tunesmith publish`: to the recipe's places or others, for real or only listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.publish.publish_case import make_recipe, make_run
from tunesmith.cli.app import main
from tunesmith.recipe.dump import dump_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files


@pytest.fixture
def run(tmp_path: Path) -> str:
    return _run(tmp_path, make_recipe(local=str(tmp_path / "models")))


def _run(place: Path, recipe: Recipe, *, passed: bool = True) -> str:
    made = make_run(place / "run", passed=passed)
    files.write_text(made.resolved_recipe, dump_recipe(recipe))
    return str(made.path)


def test_places_of_the_recipe(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", run]) == 0
    assert f"✓ local  {tmp_path}/models/my-model  6 files, 2.1 MB" in capsys.readouterr().out
    assert main(["publish", run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["targets"][0]["unchanged"] is True
    assert not (Path(run) / "publish" / "artifact.json").exists()


def test_dry_run_lists_and_sends_nothing(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("boto3", reason="extra `s3`")
    places = ["--to", str(tmp_path / "other"), "--to", "s3://bucket/models/"]
    assert main(["publish", run, *places, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"would publish to local: {tmp_path}/other/my-model" in told
    assert "would publish to s3: s3://bucket/models/my-model" in told
    assert "model.safetensors        2,097,152 bytes" in told and "manifest.json" in told
    assert not (tmp_path / "other").exists() and not (tmp_path / "models").exists()
    assert main(["publish", run, *places, "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["files"]
    sizes = {file["name"]: file["bytes"] for file in listed}
    assert main(["publish", run, "--to", str(tmp_path / "other")]) == 0
    there = {p.relative_to(tmp_path / "other/my-model"): p for p in (tmp_path / "other").rglob("*") if p.is_file()}
    assert {name.as_posix(): path.stat().st_size for name, path in there.items()} == sizes
    assert {file["sha256"] for file in listed} == {files.sha256(path) for path in there.values()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "ftp://somewhere"], "no such kind of place"),
        (["--to", "s3://NotABucket"], "must be `s3://bucket/prefix`"),
        (["--to", "hf://just-a-name"], "must be `owner/name`"),
    ],
)
def test_mistakes_are_told(run: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", run, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_failed_gate_refuses_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(tmp_path, make_recipe(local=str(tmp_path / "models")), passed=False)
    assert main(["publish", run]) == 5
    assert "the gate failed: improved(evaluate.text.bleu)" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    assert main(["publish", run, "--even-if-gate-failed"]) == 0
    assert "**failed, and the model was published" in (tmp_path / "models/my-model/README.md").read_text()


def test_a_gate_that_has_not_decided_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    recipe = dataclasses.replace(make_recipe(local=str(tmp_path / "models")), gate=("train.final_loss < 1",))
    run = _run(tmp_path, recipe)
    assert main(["publish", run]) == 5  # it decided on another rule, before this one was written
    assert "has not decided yet on train.final_loss < 1" in capsys.readouterr().err
    (Path(run) / "gate" / "artifact.json").unlink()
    assert main(["publish", run]) == 5
    assert "has not decided yet" in capsys.readouterr().err
    assert main(["publish", run, "--even-if-gate-failed"]) == 0


def test_results_and_licence_stand_in_the_card(tmp_path: Path) -> None:
    base = tmp_path / "base"
    files.write_text(base / "README.md", "---\nlicense: apache-2.0\nlanguage: [en, it]\ntags: [x]\n---\n# Base\n")
    run = make_run(tmp_path / "run")
    state = run.read_run()
    state["lineage"]["model"]["path"] = str(base)
    run.write_run(state)
    files.write_text(run.resolved_recipe, dump_recipe(make_recipe(local=str(tmp_path / "models"))))
    assert main(["publish", str(run.path)]) == 0
    card = (tmp_path / "models/my-model/README.md").read_text()
    facts = yaml.safe_load(card.split("---")[1])
    assert (facts["license"], facts["language"], facts["tags"][0]) == ("apache-2.0", ["en", "it"], "tunesmith")
    (result,) = facts["model-index"][0]["results"]
    assert result["dataset"] == {"type": "text", "name": "text"}
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"exact_match": 0.91, "bleu": 91.0}
    card_data = pytest.importorskip("huggingface_hub", reason="extra `hub`").ModelCard(card).data
    assert [(r.task_type, r.metric_type, r.metric_value) for r in card_data.eval_results] == [
        ("text-generation", "exact_match", 0.91),
        ("text-generation", "bleu", 91.0),
    ]
