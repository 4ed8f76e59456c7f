"""What is said when a model cannot be loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402
from tunesmith.errors import ModelError  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach, base_weight, linear_layers  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.model.locate import locate  # noqa: E402
from tunesmith.recipe.schema import Model  # noqa: E402

CPU = torch.device("cpu")


def load(path: Path, *, dtype: Any = "float32", four_bit: bool = False) -> Any:
    return load_model(path, Model(str(path), dtype=dtype, attn_implementation="sdpa"), four_bit=four_bit, device=CPU)


def changed(path: Path, **entries: Any) -> Path:
    tiny.write_model(path)
    config = json.loads((path / "config.json").read_text()) | entries
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised already \(awq\)"),
        ({"model_type": "no_such_model"}, "cannot be loaded"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}, "own Python code"),
        ({"hidden_size": 52}, "cannot be loaded"),
    ],
    ids=["quantised", "unknown", "own code", "sizes"],
)
def test_models_that_cannot_be_loaded(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(changed(tmp_path / "model", **entries))
    assert caught.value.do


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.write_model(tmp_path / "model")
    capfd.readouterr()
    load(tmp_path / "model", dtype="bfloat16")
    assert capfd.readouterr() == ("", "")


def test_a_hub_id_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="no such directory, and the Hub cannot be reached"):
        locate(Model("someone/no-such-model-here"), "outputs")


def test_four_bit_layers_survive_a_forward_without_gradients(tmp_path: Path) -> None:
    """bitsandbytes' own layer repacks its weight then, and everything that reads it later reads noise."""
    pytest.importorskip("bitsandbytes")
    model = load(tiny.write_model(tmp_path / "model"), dtype="bfloat16", four_bit=True)
    layers = {name: base_weight(layer).clone() for name, layer in linear_layers(model).items()}
    assert len(layers) == 21 and "lm_head" not in layers
    ids = torch.arange(5, 25).view(1, -1)
    attach(model, AdapterSettings(4, 8.0, 0.0, "all-linear", True), seed=0)
    first = model(input_ids=ids).logits
    with torch.inference_mode():
        model.eval()(input_ids=ids)
    for name, weight in layers.items():
        assert torch.equal(base_weight(model.get_submodule(name).inner), weight), name
    assert torch.equal(model.train()(input_ids=ids).logits, first)


def test_what_transformers_takes_along_is_left_out_and_stays_importable() -> None:
    program = (
        "import gc, sys\n"
        "from tunesmith.model.imports import import_libraries\n"
        "import_libraries()\n"
        "assert {'torch', 'transformers'} <= set(sys.modules) and not {'scipy', 'accelerate'} & set(sys.modules)\n"
        "assert gc.isenabled()\n"
        "import scipy, accelerate, transformers.models.llama.modeling_llama"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
