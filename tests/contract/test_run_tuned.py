"""A recipe that begins with an adapter that PEFT wrote: the real command, from merging to the gate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from tests import tiny  # noqa: E402
from tests.commands import ROOT, environment  # noqa: E402
from tunesmith.recipe.dump import dump_yaml  # noqa: E402


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("tuned")
    base = tiny.write_model(place / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=5, lora_alpha=12, target_modules="all-linear"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(place / "adapter")
    model.merge_and_unload().save_pretrained(place / "expected")
    document = {
        "name": "brought",
        "model": {"name_or_path": str(base), "dtype": "float32"},
        "tuned": str(place / "adapter"),
        "output_dir": str(place / "outputs"),
        "gate": ["merge.proof.top1_agreement >= 0.99", "train.num_trainable_parameters < 1"],
    }
    (place / "recipe.yaml").write_text(dump_yaml(document))
    return place / "recipe.yaml"


def run(recipe: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "tunesmith", "run", str(recipe), "--json", *more]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_merged_as_peft_would_and_told_in_one_document(recipe: Path) -> None:
    from safetensors.torch import load_file

    code, told, errors = run(recipe)
    assert code == 6, errors
    assert (told["ok"], told["exit_code"]) == (False, 6)
    assert "train.num_trainable_parameters < 1" in told["problems"][0]["what"]
    assert "error: " in errors and "Traceback" not in errors
    assert [rule["passed"] for rule in told["records"]["verdict"]["rules"]] == [True, False]
    assert "dataset" not in told["records"] and told["records"]["checkpoint"]["num_steps"] == 0
    run_dir = Path(told["run"])
    found = load_file(run_dir / "merge/model/model.safetensors")
    expected = load_file(recipe.parent / "expected/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    page = (run_dir / "report/report.html").read_text()
    assert "elsewhere" in page and "adapter" in page

    again, same, _ = run(recipe, "--set", "gate=[train.num_trainable_parameters > 1]")
    assert (again, same["ok"], same["run"]) == (0, True, told["run"]), "another gate is no other run"
    assert same["records"]["weights"] == told["records"]["weights"]
