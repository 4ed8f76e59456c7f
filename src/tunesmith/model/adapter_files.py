"""Adapters on disk in PEFT's format, so that PEFT, vLLM and everything that speaks it can load them.

https://github.com/huggingface/peft/blob/v0.18.0/src/peft/utils/save_and_load.py: `adapter_config.json` and
`adapter_model.safetensors` with `base_model.model.LAYER.lora_A.weight`, `….lora_B.weight`, `….lora_magnitude_vector`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.model.adapters import PREFIX, AdaptedLinear, AdapterSettings, is_transposed
from tunesmith.store import files

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def adapter_parameters(adapted: dict[str, AdaptedLinear]) -> dict[str, nn.Parameter]:
    """Return the adapter's numbers under PEFT's names."""
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in adapted.items():
        parameters[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A
        parameters[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B
        if layer.magnitude is not None:
            parameters[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude
    return parameters


def save_adapter(
    directory: Path, adapted: dict[str, AdaptedLinear], settings: AdapterSettings, base_model: str
) -> None:
    """Write an adapter into an existing directory."""
    from safetensors.torch import save_file

    parameters = adapter_parameters(adapted)
    tensors = {name: parameter.detach().to("cpu").contiguous() for name, parameter in parameters.items()}
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    files.write_json(directory / CONFIG, _config(adapted, settings, base_model))


def _config(adapted: dict[str, AdaptedLinear], settings: AdapterSettings, base_model: str) -> dict[str, Any]:
    targets = settings.target_modules
    if targets == "all-linear":
        # Names, not the word: what else is linear in a later version of the model must not be looked for.
        targets = tuple(sorted({name.rsplit(".", 1)[-1] for name in adapted}))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": settings.r,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_dora": settings.use_dora,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(layer.inner) for layer in adapted.values()),
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


@dataclass(frozen=True)
class LayerAdapter:
    """One layer's share of an adapter, in float32."""

    A: Tensor
    B: Tensor
    magnitude: Tensor | None


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from disk: `layers` by the base model's module name."""

    settings: AdapterSettings
    layers: dict[str, LayerAdapter]
    fan_in_fan_out: bool
    base_model: str


def load_adapter(directory: Path) -> Adapter:
    """Read an adapter in PEFT's format.

    Raises:
        ModelError: it is missing, damaged, or uses what this program does not fold (`modules_to_save`, patterns, …).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((directory / CONFIG).read_text())
        tensors = load_file(str(directory / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter cannot be read: {error}", where=str(directory)) from None
    _refuse_the_unknown(config, directory)
    settings = AdapterSettings(
        r=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout", 0.0)),
        target_modules=_targets(config["target_modules"]),
        use_dora=bool(config.get("use_dora", False)),
    )
    base = str(config.get("base_model_name_or_path", ""))
    return Adapter(settings, _layers(tensors, directory), bool(config.get("fan_in_fan_out", False)), base)


def _targets(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(map(str, value))


def _refuse_the_unknown(config: dict[str, Any], directory: Path) -> None:
    unusual = [key for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "use_rslora") if config.get(key)]
    if config.get("peft_type") != "LORA":
        unusual = [f"peft_type {config.get('peft_type')}"]
    if unusual or config.get("bias", "none") != "none":
        what = f"the adapter uses {', '.join(unusual) or 'bias'}, which is not supported"
        raise ModelError(what, where=str(directory / CONFIG), do="merge it with PEFT")


def _layers(tensors: dict[str, Tensor], directory: Path) -> dict[str, LayerAdapter]:
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
            layer, found, _ = name.partition(f".{part}")
            if found:
                by_layer.setdefault(layer.removeprefix(PREFIX), {})[part] = tensor.to(torch.float32)
                break
        else:
            raise ModelError(f"the adapter holds {name!r}, which is no part of LoRA", where=str(directory / WEIGHTS))
    for layer, parts in by_layer.items():
        if not {"lora_A", "lora_B"} <= set(parts):
            raise ModelError(f"the adapter of {layer!r} is incomplete", where=str(directory / WEIGHTS))
    return {
        layer: LayerAdapter(parts["lora_A"], parts["lora_B"], parts.get("lora_magnitude_vector"))
        for layer, parts in by_layer.items()
    }


def fill(adapted: dict[str, AdaptedLinear], adapter: Adapter) -> None:
    """Put an adapter's numbers into a model's adapted layers.

    Raises:
        ModelError: they do not fit each other.
    """
    if set(adapted) != set(adapter.layers):
        different = sorted(set(adapted) ^ set(adapter.layers))
        raise ModelError(f"adapter and model do not fit: {len(different)} layers differ, first {different[0]!r}")
    with torch.no_grad():
        for name, layer in adapted.items():
            parts = adapter.layers[name]
            if layer.lora_A.shape != parts.A.shape or layer.lora_B.shape != parts.B.shape:
                raise ModelError(f"adapter and model do not fit: shapes of {name!r} differ")
            layer.lora_A.copy_(parts.A)
            layer.lora_B.copy_(parts.B)
            if layer.magnitude is not None and parts.magnitude is not None:
                layer.magnitude.copy_(parts.magnitude)
