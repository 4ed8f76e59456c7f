"""Publishing into a directory: whole, hashed, repeatable, and never over someone else's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.publish.publish_case import make_recipe, make_run
from tunesmith.artifacts import Release, Verdict
from tunesmith.errors import PublishError, StageError
from tunesmith.publish import stage
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

NAMES = {"README.md", "config.json", "manifest.json", "model.safetensors", "nested/extra.txt", "tokenizer.json"}


def tree(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_release_is_whole_and_hashed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    release = stage.run(make_recipe(local=str(tmp_path / "models")), run)
    target = tmp_path / "models" / "my-model"
    assert set(tree(target)) == NAMES
    manifest = json.loads((target / "manifest.json").read_text())
    assert set(manifest["files"]) == NAMES - {"manifest.json"}
    for name, facts in manifest["files"].items():
        assert facts == {"sha256": files.sha256(target / name), "bytes": (target / name).stat().st_size}
    assert release.manifest_sha256 == files.sha256(target / "manifest.json")
    (told,) = release.targets
    assert told["target"] == "local" and told["location"] == str(target) and told["num_files"] == 6
    assert told["num_bytes"] == sum(facts["bytes"] for facts in manifest["files"].values())
    run.save(release)
    assert run.load(Release) == release
    assert list((tmp_path / "models").iterdir()) == [target]  # nothing temporary left


def test_small_files_are_copies_and_weights_are_shared(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    stage.run(make_recipe(local=str(tmp_path / "models")), run)
    target = tmp_path / "models" / "my-model"
    assert not (target / "config.json").samefile(run.merged / "config.json")
    assert (target / "model.safetensors").samefile(run.merged / "model.safetensors")


def test_the_same_again_is_left_alone(tmp_path: Path) -> None:
    recipe, run = make_recipe(local=str(tmp_path / "models")), make_run(tmp_path / "run")
    first = stage.run(recipe, run)
    inode = (tmp_path / "models" / "my-model").stat().st_ino
    again = stage.run(recipe, run)
    assert (tmp_path / "models" / "my-model").stat().st_ino == inode
    assert again.targets[0]["unchanged"] is True and first.targets[0]["unchanged"] is False
    assert again.manifest_sha256 == first.manifest_sha256


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_release_is_replaced(tmp_path: Path, damage: str) -> None:
    recipe, run = make_recipe(local=str(tmp_path / "models")), make_run(tmp_path / "run")
    stage.run(recipe, run)
    target = tmp_path / "models" / "my-model"
    whole = tree(target)
    if damage == "changed":
        (target / "config.json").write_bytes(b'{"model_type": "LLAMA"}')
    elif damage == "missing":
        (target / "tokenizer.json").unlink()
    else:
        (target / "model-00001-of-00002.safetensors").write_bytes(b"old shard")
    assert stage.run(recipe, run).targets[0]["unchanged"] is False
    assert tree(target) == whole


def test_another_model_of_that_name_replaces_it(tmp_path: Path) -> None:
    recipe = make_recipe(local=str(tmp_path / "models"))
    stage.run(recipe, make_run(tmp_path / "one"))
    stage.run(recipe, make_run(tmp_path / "two", weights=b"other" * (1 << 19)))
    assert tree(tmp_path / "models" / "my-model")["model.safetensors"].startswith(b"other")
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_someone_elses_directory_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "models" / "my-model" / "thesis.txt"
    files.write_text(mine, "years of work")
    with pytest.raises(PublishError, match="something else is there"):
        stage.run(make_recipe(local=str(tmp_path / "models")), make_run(tmp_path / "run"))
    assert mine.read_text() == "years of work"


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "models" / "my-model").mkdir(parents=True)
    stage.run(make_recipe(local=str(tmp_path / "models")), make_run(tmp_path / "run"))
    assert set(tree(tmp_path / "models" / "my-model")) == NAMES


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(PublishError, match="cannot write"):
        stage.run(make_recipe(local=str(tmp_path / "models")), make_run(tmp_path / "run"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_weights_that_changed_after_the_merge_are_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    path = run.merged / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(PublishError, match=rf"{name} is not the file that the merge stage wrote"):
        stage.run(make_recipe(local=str(tmp_path / "models")), run)
    assert not (tmp_path / "models").exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.merged / "tokenizer.json").unlink()
    with pytest.raises(PublishError, match=r"tokenizer\.json is missing"):
        stage.run(make_recipe(local=str(tmp_path / "models")), run)
    (run.merged / "config.json").unlink()
    with pytest.raises(PublishError, match=r"lacks config\.json"):
        stage.run(make_recipe(local=str(tmp_path / "models")), run)
    with pytest.raises(StageError, match="merge has not run yet"):
        stage.run(make_recipe(local=str(tmp_path / "models")), RunDir(tmp_path / "none"))


def test_a_failed_gate_refuses(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", passed=False)
    with pytest.raises(PublishError, match=r"the gate failed: improved\(evaluate\.text\.bleu\)"):
        stage.run(make_recipe(local=str(tmp_path / "models")), run)
    assert not (tmp_path / "models").exists()
    stage.run(make_recipe(local=str(tmp_path / "models"), even_if_gate_failed=True), run)
    card = (tmp_path / "models" / "my-model" / "README.md").read_text()
    assert "**failed, and the model was published nevertheless.**" in card and "**no**" in card


def test_without_a_gate(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.artifact("gate").unlink()
    assert run.find(Verdict) is None
    stage.run(make_recipe(local=str(tmp_path / "models")), run)


def test_model_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_token")
    run = make_run(tmp_path / "run")
    state = run.read_run()
    state["lineage"]["packages"]["odd"] = "hf_very_secret_token"
    run.write_run(state)
    stage.run(make_recipe(local="${env:MODELS}"), run)
    card = (tmp_path / "models" / "my-model" / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    facts = yaml.safe_load(head)
    (results,) = facts.pop("model-index")
    assert results["name"] == "my-model" and len(results["results"]) == 1
    assert facts == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", "sft", "lora"],
        "base_model": "owner/base",
        "base_model_relation": "finetune",
        "datasets": ["owner/rows"],
    }
    assert (
        "| text: exact_match | 4.0 % (2.0 % – 8.0 %) | 91.0 % (86.0 % – 94.0 %) | +87.0 (+82.0 … +91.0) | improved"
        in body
    )
    assert "| text: bleu | 4.0 (2.0 – 8.0) | 91.0 (86.0 – 94.0) | +87.0 (+82.0 … +91.0) | improved | 200 |" in body
    assert "| training loss | 2.5000 → 0.4321, held out 0.5000 |" in body
    assert "`c0ffee` with uncommitted changes" in body and "ab" * 32 in body and "torch 2.13" in body
    assert "| c16 |" in body and "480.5" in body
    assert r"base 3 → tuned 41.5 \| so" in body
    assert "hf_very_secret_token" not in card and "/home/someone" not in card and str(tmp_path) not in card
    assert "vllm serve my-model" in body


def test_card_of_a_bare_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("evaluate", "bench", "gate", "data", "train"):
        run.artifact(name).unlink()
    run.run_json.unlink()
    stage.run(make_recipe(local=str(tmp_path / "models")), run)
    card = (tmp_path / "models" / "my-model" / "README.md").read_text()
    assert "## Evaluation" not in card and "## Use" in card
