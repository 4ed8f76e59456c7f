"""Models that make cheap parts again in the backward pass beside the same models as transformers wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach  # noqa: E402
from tunesmith.model.cheap_parts import recompute_cheap_parts  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.model.recomputed import keeping_less, recomputed  # noqa: E402

# Every norm and every MLP of the tiny models of 3 layers (GPT-2: 2).
EXPECTED = {"llama": 10, "qwen3": 10, "gemma2": 16, "phi3": 10, "gpt2": 7, "gpt_neox": 10, "granite": 10}


def gradients(base: Path, tmp_path: Path, method: str, dtype: str, *, spared: bool) -> tuple[int, dict[str, Any]]:
    """Return how many parts are made again, and the gradients of what moves with the loss."""
    recipe = tiny.recipe_for(base, tmp_path, method=method, dtype=dtype, lora={"r": 4})
    model = load_model(base, recipe.model, four_bit=method.startswith("q"), device=torch.device("cpu"))
    if method == "full":
        model.requires_grad_(True)
    else:
        for layer in attach(model, AdapterSettings.of(recipe.train.lora, method), seed=3).values():
            torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(5))
    names = [name for name, _ in model.named_parameters()]
    found = recompute_cheap_parts(model) if spared else 0
    assert [name for name, _ in model.named_parameters()] == names
    ids = torch.arange(46).view(2, 23) * 7 % tiny.VOCAB_SIZE
    with keeping_less():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    moved = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return found, moved | {"loss": loss.detach()}


def worst(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - grad).abs().max() / grad.abs().max()) for name, grad in expected.items())


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", EXPECTED)
def test_families(tmp_path: Path, family: str, method: str) -> None:
    base = tiny.write_model(tmp_path / "model", family)
    _, expected = gradients(base, tmp_path, method, "float32", spared=False)
    found, ours = gradients(base, tmp_path, method, "float32", spared=True)
    assert found == EXPECTED[family] + (6 if family == "qwen3" and method == "full" else 0)  # and those of each head
    assert worst(ours, expected) < 1e-5


@pytest.mark.parametrize("method", ["full", "dora", "qlora"])
def test_bfloat16_is_equal_bit_for_bit(tmp_path: Path, method: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    base = tiny.write_model(tmp_path / "model", "llama", dtype="bfloat16")
    _, expected = gradients(base, tmp_path, method, "bfloat16", spared=False)
    _, ours = gradients(base, tmp_path, method, "bfloat16", spared=True)
    assert all(torch.equal(ours[name], grad) for name, grad in expected.items())


def test_a_second_backward_pass_is_refused() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    with keeping_less():
        loss = recomputed(torch.nn.functional.silu, x).square().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("which", ["its input", "another"])
def test_what_was_changed_in_place_is_noticed(which: str) -> None:
    x = torch.randn(5, 7, requires_grad=True) * 1.0
    with keeping_less():
        y = recomputed(torch.nn.functional.silu, x)
        other = y * 2.0
        loss = (other.square() + y).sum()
    with torch.no_grad():
        (x if which == "its input" else other).add_(1.0)
    with pytest.raises(RuntimeError, match="in place"):
        loss.backward()
