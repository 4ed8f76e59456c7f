"""A base model with an adapter from its files on top: what merged models and PEFT's are compared with."""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.model.adapter_files import Adapter
from tunesmith.model.adapters import attach_to
from tunesmith.model.weights import read_tensor


def put_on(model: Any, adapter: Adapter) -> None:
    """Wrap a model's layers, in place, and take over the adapter's numbers and its whole modules."""
    state = model.state_dict()
    with torch.no_grad():
        for name, layer in attach_to(model, adapter.settings, sorted(adapter.layers), seed=0).items():
            parts = adapter.layers[name]
            found = (parts.read_a(), parts.read_b(), parts.read_magnitude())
            for parameter, numbers in zip((layer.lora_A, layer.lora_B, layer.magnitude), found, strict=True):
                assert (parameter is None) == (numbers is None)
                if parameter is not None and numbers is not None:
                    assert parameter.shape == numbers.shape
                    parameter.copy_(numbers)
        for name, info in adapter.whole.items():
            assert tuple(state[name].shape) == info.shape
            state[name].copy_(read_tensor(info))
