"""Adapters on disk in PEFT's format, so that PEFT, vLLM and everything that speaks it can load them.

https://github.com/huggingface/peft/blob/v0.21.0/src/peft/utils/save_and_load.py: `adapter_config.json` and
`adapter_model.safetensors` with `base_model.model.LAYER.lora_A.weight`, `….lora_B.weight`, `….lora_magnitude_vector`,
and modules trained whole under their own names (`base_model.model.lm_head.weight`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.model.adapters import (
    PREFIX,
    AdaptedLinear,
    AdapterSettings,
    adapters_of,
    is_transposed,
)
from tunesmith.model.chosen import tied_modules, whole_modules
from tunesmith.model.headers import TensorInfo, read_header
from tunesmith.model.weights import read_tensor
from tunesmith.recipe.targets import is_target, is_whole, matches_pattern, value_for
from tunesmith.store import files

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what an adapter trains under PEFT's names: its own numbers, and what else of the model has gradients.

    A matrix that two modules share is in it once, under the first one's name.
    """
    parameters = _lora_parameters(adapters_of(model))
    own = {id(parameter) for parameter in parameters.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            parameters[f"{PREFIX}{name}"] = parameter
    return parameters


def _lora_parameters(adapted: dict[str, AdaptedLinear]) -> dict[str, nn.Parameter]:
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in adapted.items():
        parameters[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A
        parameters[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B
        if layer.magnitude is not None:
            parameters[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude
    return parameters


# ── Write ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def save_adapter(
    directory: Path, model: Any, settings: AdapterSettings, base_model: str, given: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model's adapter into an existing directory. Modules trained whole keep the model's number format.

    Args:
        given: whole tensors by the names of `adapter_parameters`, of a model that holds only its share of them.
    """
    from safetensors.torch import save_file

    given = given or {}
    # What lies inside an adapted layer may have a name that ends like that of a whole module, and does not move.
    whole = {
        name: module
        for name, module in whole_modules(model, settings.modules_to_save).items()
        if any(parameter.requires_grad for parameter in module.parameters())
    }
    tensors = {name: given.get(name, parameter) for name, parameter in _lora_parameters(adapters_of(model)).items()}
    names = {id(parameter): name for name, parameter in adapter_parameters(model).items()}
    for name, module in whole.items():
        for key, value in module.state_dict(keep_vars=True).items():
            tensor = given.get(names.get(id(value), ""), value)
            # A copy of its own for each name: of tied modules PEFT wants both, and a file cannot hold one matrix twice.
            tensors[f"{PREFIX}{name}.{key}"] = tensor.detach().to(value.dtype).clone()
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, str(directory / WEIGHTS), metadata={"format": "pt"})
    files.write_json(directory / CONFIG, _config(model, list(whole), settings, base_model))


def _config(model: Any, whole: list[str], settings: AdapterSettings, base_model: str) -> dict[str, Any]:
    adapted = adapters_of(model)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": settings.r,
        "lora_alpha": _number(settings.alpha),
        "lora_dropout": settings.dropout,
        "target_modules": _target_names(model, list(adapted), whole),
        "use_dora": settings.use_dora,
        "use_rslora": settings.use_rslora,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(layer.inner) for layer in adapted.values()),
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": whole or None,
        "ensure_weight_tying": any(name in whole for name in tied_modules(model)),
        "rank_pattern": _in_any_order(settings.rank_pattern, list(adapted)),
        "alpha_pattern": _in_any_order(settings.alpha_pattern, list(adapted)),
    }


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _in_any_order(pattern: Mapping[str, float], layers: list[str]) -> dict[str, float]:
    """Return a pattern in which no layer matches two keys with different values: PEFT sorts the keys when it saves."""
    if any(len({value for key, value in pattern.items() if matches_pattern(key, layer)}) > 1 for layer in layers):
        values = {layer: value_for(layer, pattern, None) for layer in layers}
        pattern = {re.escape(layer): value for layer, value in values.items() if value is not None}
    return {key: _number(value) for key, value in pattern.items()}


def _target_names(model: Any, adapted: list[str], whole: list[str]) -> list[str]:
    """Return names that mean the adapted layers and nothing else, to any version of PEFT and of the model.

    The ends of names where they are enough; `all-linear` and expressions would be looked up anew, in all modules.
    """
    endings = tuple(sorted({name.rsplit(".", 1)[-1] for name in adapted}))
    inside = tuple(f"{name}." for name in adapted)
    meant = [
        name
        for name, _ in model.named_modules()
        if is_target(name, endings) and not name.startswith(inside) and not is_whole(name, tuple(whole))
    ]
    return list(endings) if set(meant) == set(adapted) else sorted(adapted)


# ── Read ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LayerAdapter:
    """Where one layer's share of an adapter lies."""

    parts: Mapping[str, TensorInfo]  # by `_PARTS`' names
    on_embedding: bool = False

    def read_a(self) -> Tensor:
        """Return A, (r, in), float32; of an embedding (r, vocabulary)."""
        return self._part("A")

    def read_b(self) -> Tensor:
        """Return B, (out, r), float32."""
        return self._part("B")

    def read_magnitude(self) -> Tensor | None:
        """Return DoRA's magnitude, (out), float32."""
        return self._part("magnitude").flatten() if "magnitude" in self.parts else None

    def _part(self, name: str) -> Tensor:
        return read_tensor(self.parts[name]).to(torch.float32)


@dataclass(frozen=True)
class Adapter:
    """An adapter as described by its files.

    Attributes:
        layers: by the base model's module name.
        whole: where the tensors of modules that were trained whole lie, by the base model's tensor name.
        keeps_ties: an embedding in `whole` is the output head, too, where they were one matrix in the base.
    """

    settings: AdapterSettings
    layers: dict[str, LayerAdapter]
    fan_in_fan_out: bool
    base_model: str
    whole: dict[str, TensorInfo] = field(default_factory=dict)
    keeps_ties: bool = False


def load_adapter(directory: Path) -> Adapter:
    """Read the description of an adapter in PEFT's format. Its numbers stay on the disk.

    Raises:
        ModelError: it is missing, damaged, or holds what is neither LoRA, DoRA nor a module of the base.
    """
    config = _read_config(directory)
    _refuse_the_unknown(config, directory)
    settings = AdapterSettings(
        r=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout", 0.0)),
        target_modules=_targets(config.get("target_modules") or ()),
        use_dora=bool(config.get("use_dora", False)),
        use_rslora=bool(config.get("use_rslora", False)),
        rank_pattern={str(key): int(rank) for key, rank in (config.get("rank_pattern") or {}).items()},
        alpha_pattern={str(key): float(alpha) for key, alpha in (config.get("alpha_pattern") or {}).items()},
        modules_to_save=tuple(map(str, config.get("modules_to_save") or ())),
    )
    keeps_ties = bool(config.get("ensure_weight_tying", False))
    biases = config.get("bias", "none") != "none"
    layers, whole = _parts(directory, settings, keeps_ties=keeps_ties, biases=biases)
    base, transposed = str(config.get("base_model_name_or_path") or ""), bool(config.get("fan_in_fan_out", False))
    return Adapter(settings, layers, transposed, base, whole, keeps_ties)


def _read_config(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).is_file():
        do = "give the directory that PEFT's save_pretrained wrote, or train/final of a run"
        raise ModelError(f"this directory is no adapter: it has no {CONFIG}", where=str(directory), do=do)
    if not (directory / WEIGHTS).is_file():
        do = "copy the adapter again"
        if (directory / "adapter_model.bin").is_file():
            do = "its weights are in a pickle, which is not opened here; let PEFT load it and save it again"
        raise ModelError(f"the adapter has no {WEIGHTS}", where=str(directory), do=do)
    try:
        config = json.loads((directory / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"the adapter cannot be read: {error}", where=str(directory / CONFIG)) from None
    missing = [key for key in ("r", "lora_alpha") if key not in config] if isinstance(config, dict) else ["r"]
    if missing and config.get("peft_type", "LORA") == "LORA":
        raise ModelError(f"the adapter's configuration has no {missing[0]!r}", where=str(directory / CONFIG))
    return dict(config)


def _targets(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(map(str, value))


_UNKNOWN = (
    "trainable_token_indices", "target_parameters", "layer_replication", "lora_bias", "alora_invocation_tokens",
    "arrow_config", "megatron_config",
)  # fmt: skip


def _refuse_the_unknown(config: dict[str, Any], directory: Path) -> None:
    unusual = [key for key in _UNKNOWN if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA":
        unusual = [f"peft_type {config.get('peft_type')}"]
    if unusual:
        what = f"the adapter uses {', '.join(unusual)}, which is not supported"
        raise ModelError(what, where=str(directory / CONFIG), do="merge it with PEFT")


# What PEFT has called the parts since 0.3, with the adapter's name behind it in files that other programs saved.
_PARTS = {
    "lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "magnitude",
    "lora_embedding_A": "A", "lora_embedding_B": "B",
}  # fmt: skip
_PART = re.compile(rf"(?P<layer>.+)\.(?P<part>{'|'.join(_PARTS)})(\.[^.]+)?(\.weight)?")
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)(?=\.)|^module(?=\.base_model\.)")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save\.[^.]+|original_module)(?=\.)")
_EMBEDDINGS = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|lm_head|embed_out)")


def _plain_name(name: str) -> str:
    """Return a tensor's name without what torch.compile, FSDP and PEFT put around the base model's own."""
    return _WRAPPERS.sub("", name).lstrip(".").removeprefix(PREFIX)


def _parts(
    directory: Path, settings: AdapterSettings, *, keeps_ties: bool, biases: bool
) -> tuple[dict[str, LayerAdapter], dict[str, TensorInfo]]:
    """Return the layers' shares, and where whole modules lie."""
    where = str(directory / WEIGHTS)
    by_layer: dict[str, dict[str, TensorInfo]] = {}
    embeddings: set[str] = set()
    whole: dict[str, TensorInfo] = {}
    for full_name, info in read_header(directory / WEIGHTS).items():
        name = _plain_name(full_name)
        found = _PART.fullmatch(name)
        if found:
            by_layer.setdefault(found["layer"], {})[_PARTS[found["part"]]] = info
            if "embedding" in found["part"]:
                embeddings.add(found["layer"])
            continue
        name = _WRAPPED.sub("", name)
        module = name.rpartition(".")[0]
        # Resized embeddings are saved without being named anywhere; of tied ones the list names one.
        known = is_whole(module, settings.modules_to_save) or _EMBEDDINGS.fullmatch(module) or keeps_ties
        if not known and not (biases and name.endswith(".bias")):
            raise ModelError(f"the adapter holds {full_name!r}, which is no part of LoRA", where=where)
        whole[name] = info
    for layer, parts in by_layer.items():
        _check_layer(layer, parts, settings, on_embedding=layer in embeddings, where=where)
    layers = {layer: LayerAdapter(parts, layer in embeddings) for layer, parts in by_layer.items()}
    if not layers and not whole:
        raise ModelError("the adapter holds no tensor", where=where)
    return layers, whole


def _check_layer(
    layer: str, parts: Mapping[str, TensorInfo], settings: AdapterSettings, *, on_embedding: bool, where: str
) -> None:
    if not {"A", "B"} <= set(parts) or settings.use_dora != ("magnitude" in parts):
        raise ModelError(f"the adapter of {layer!r} is incomplete", where=where)
    if on_embedding and settings.use_dora:
        raise ModelError(f"DoRA on an embedding ({layer!r}) is not supported", where=where, do="merge it with PEFT")
    rank, told = parts["A"].shape[0], settings.at(layer).r
    if rank != told or len(parts["B"].shape) != 2 or parts["B"].shape[1] != rank:
        raise ModelError(f"the adapter of {layer!r} has rank {rank}, and {CONFIG} says {told}", where=where)
