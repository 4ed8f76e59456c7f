"""Merging that was stopped, that does not fit, or that would be wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests import tiny  # noqa: E402
from tunesmith.errors import MergeError, ModelError, StageError  # noqa: E402
from tunesmith.evaluate import stage as evaluate_stage  # noqa: E402
from tunesmith.merge import stage as merge  # noqa: E402
from tunesmith.recipe.schema import Recipe  # noqa: E402
from tunesmith.serve.stage import Servers  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402
from tunesmith.train import stage  # noqa: E402


def trained(path: Path, *, method: str = "lora", dtype: str = "float32") -> tuple[Recipe, RunDir]:
    base = tiny.write_model(path / "base", tied=True, dtype=dtype)
    run_dir = tiny.run_with_rows(path / "run", num_rows=8, num_held_out=3)
    recipe = tiny.recipe_for(base, path, method=method)
    run_dir.save(stage.run(recipe, run_dir))
    return recipe, run_dir


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunDir]:
    return trained(tmp_path_factory.mktemp("lora"))


def test_a_finished_merge_is_not_repeated_and_a_damaged_one_is(lora: tuple[Recipe, RunDir]) -> None:
    recipe, run_dir = lora
    first = merge.run(recipe, run_dir)
    weights = run_dir.merged / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert merge.run(recipe, run_dir) == first and weights.stat().st_mtime_ns == written
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert merge.run(recipe, run_dir) == first
    assert first.files["model.safetensors"] == merge.files.sha256(weights)
    leftover = run_dir.stage("merge") / ".model.abc.tmp"
    leftover.mkdir()
    weights.unlink()
    merge.run(recipe, run_dir)
    assert not leftover.exists()


def test_a_template_that_changed_since_training_stops_merge_serve_and_evaluate(
    lora: tuple[Recipe, RunDir], tmp_path: Path
) -> None:
    recipe, run_dir = lora
    weights = merge.run(recipe, run_dir)
    assert (
        weights.template_fingerprint
        == json.loads((run_dir.trained / "training.json").read_text())["record"]["template_fingerprint"]
    )
    run_dir.save(weights)
    template = run_dir.trained / "chat_template.jinja"
    text = template.read_text()
    changed = tmp_path / "changed.jinja"
    changed.write_text(text.replace("<|im_end|>\n", "<|im_end|>"))
    try:
        template.write_text(changed.read_text())
        (run_dir.merged / "manifest.json").unlink()
        with pytest.raises(StageError, match=r"stage merge than in training[^§]*in training\n[^§]*in merge\n"):
            merge.run(recipe, run_dir)
    finally:
        template.write_text(text)
    data = dataclasses.replace(recipe.data, chat_template=str(changed))
    other = dataclasses.replace(recipe, data=data, serve=tiny.schema.Serve(engine="embedded", port=0, max_model_len=64))
    with Servers(other, run_dir) as servers, pytest.raises(StageError, match="stage serve than in training"):
        servers.endpoint("tuned")
    other = dataclasses.replace(other, evaluate=tiny.schema.Evaluate())
    with Servers(other, run_dir) as servers, pytest.raises(StageError, match="stage evaluate than in training"):
        evaluate_stage.run(other, run_dir, servers)


def test_number_format(lora: tuple[Recipe, RunDir]) -> None:
    recipe, run_dir = lora
    recipe = dataclasses.replace(recipe, merge=tiny.schema.Merge(dtype="bfloat16"))
    weights = merge.run(recipe, run_dir)
    assert {t.dtype for t in load_file(run_dir.merged / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((run_dir.merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert weights.proof["merged_dtype"] == "bfloat16" and weights.proof["compute_dtype"] == "float32"
    assert 0 < weights.proof["max_difference"] < weights.proof["tolerance"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_models_are_linked_or_cast(tmp_path: Path, dtype: str) -> None:
    recipe, run_dir = trained(tmp_path, method="full", dtype=dtype)
    merge.run(recipe, run_dir)
    file = run_dir.merged / "model.safetensors"
    assert file.samefile(run_dir.trained / "model.safetensors") == (dtype == "float32")
    assert {t.dtype for t in load_file(file).values()} == {getattr(torch, dtype)}
    assert "lm_head.weight" not in load_file(file), "tied weights are written once"


def test_a_wrong_result_is_not_written(
    lora: tuple[Recipe, RunDir], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One layer folded with half its scale is beyond rounding."""
    from tunesmith.merge import fold

    recipe, run_dir = lora
    right = fold.fold_into

    def wrong(weight: Any, change: Any, *, as_peft: bool) -> None:
        halved = dataclasses.replace(change, scaling=change.scaling / 2)
        right(weight, halved if change.A.shape[1] == 80 else change, as_peft=as_peft)

    monkeypatch.setattr(fold, "fold_into", wrong)
    changed = dataclasses.replace(recipe, merge=tiny.schema.Merge(max_shard_gib=1.0))
    with pytest.raises(MergeError, match="rounding explains at most"):
        merge.run(changed, run_dir)
    monkeypatch.undo()
    assert not list(run_dir.stage("merge").glob(".model*"))


@pytest.mark.parametrize("forgotten", ["one layer", "all layers"])
def test_a_small_change_that_got_lost_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    """In bfloat16 the logits alone would pass: the adapter moves them by less than their tolerance."""
    from tunesmith.merge import fold, proof

    recipe, run_dir = trained(tmp_path)
    recipe = dataclasses.replace(recipe, merge=tiny.schema.Merge(dtype="bfloat16"))
    right = fold.fold_into

    def wrong(weight: Any, change: Any, *, as_peft: bool) -> None:
        if forgotten == "one layer" and change.A.shape[1] != 80:
            right(weight, change, as_peft=as_peft)

    monkeypatch.setattr(fold, "fold_into", wrong)
    monkeypatch.setattr(proof, "TOLERANCES", {"bfloat16": 1.0})
    with pytest.raises(
        MergeError, match=r"the merged layer '.*' differs from base \+ adapter by .* times what rounding"
    ):
        merge.run(recipe, run_dir)
    monkeypatch.undo()
    found = merge.run(recipe, run_dir).proof
    assert 0.2 < found["worst_layer_in_roundings"] < 0.8 and 0 < found["rounded_share_of_change"] < 0.5


def test_adapter_of_another_model(lora: tuple[Recipe, RunDir], tmp_path: Path) -> None:
    recipe, run_dir = lora
    other = tiny.write_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(MergeError, match="no weight for the adapted layer"):
        merge.run(dataclasses.replace(recipe, model=tiny.schema.Model(str(other), dtype="float32")), run_dir)


def test_adapter_with_other_shapes(tmp_path: Path) -> None:
    recipe, run_dir = trained(tmp_path)
    file = run_dir.trained / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    save_file(tensors | {name: torch.zeros(7, tensors[name].shape[1])}, file)
    with pytest.raises(MergeError, match="in the adapter"):
        merge.run(recipe, run_dir)


def test_damaged_base(tmp_path: Path) -> None:
    recipe, run_dir = trained(tmp_path)
    file = Path(recipe.model.name_or_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cut short"):
        merge.run(recipe, run_dir)
    assert not run_dir.merged.exists()
