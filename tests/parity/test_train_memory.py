"""The memory formula against what autograd really keeps."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tunesmith.model.adapters import AdapterSettings, attach, linear_layers  # noqa: E402
from tunesmith.recipe.facts import Facts, Linear  # noqa: E402
from tunesmith.recipe.memory import activation_bytes_per_token  # noqa: E402
from tunesmith.recipe.schema import Data, Model, Recipe, Train  # noqa: E402
from tunesmith.train.optim import Moved  # noqa: E402

TOLERANCE = 0.2


def kept_bytes_per_token(model: Any) -> float:
    """Return the size of the distinct tensors that a forward pass keeps for the backward one."""
    weights = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    ids_BT = torch.randint(0, 500, (4, 128))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / ids_BT.numel()


@pytest.mark.parametrize("intermediate_size", [352, 700])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_activations(method: str, dtype: str, intermediate_size: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=500, intermediate_size=intermediate_size, **sizes))
    model.to(getattr(torch, dtype)).requires_grad_(False)
    linears = tuple(Linear(name, *layer.weight.shape) for name, layer in linear_layers(model).items())
    if method != "full":
        attach(model, AdapterSettings(8, 16.0, 0.0, "all-linear", method == "dora"), seed=0)
    Moved(model)
    train = Train(method=method, gradient_checkpointing=False)  # type: ignore[arg-type]
    recipe = Recipe("x", Model("m", dtype=dtype), Data(()), train=train)  # type: ignore[arg-type]
    expected = kept_bytes_per_token(model)
    found = activation_bytes_per_token(recipe, Facts(num_layers=3, hidden_size=128, linears=linears))
    assert abs(found / expected - 1) < TOLERANCE
