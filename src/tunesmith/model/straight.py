"""A model read straight from its files, with linear layers as they are stored: no second copy, nothing made wide first.

transformers makes every weight of one format; here each goes where it stays. Only for checkpoints whose tensors are the
model's parameters by name and shape, which those of most decoders are. For others (renamed, fused or split on the way)
`read_straight` returns None, and the model is loaded as transformers does it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.empty import empty_model, file_name_of
from tunesmith.model.headers import TensorInfo
from tunesmith.model.scratch import Scratch
from tunesmith.model.stored import NARROW, StoredLinear, plain_linears, put
from tunesmith.model.weights import TORCH_DTYPES, read_into, read_tensor
from tunesmith.recipe.schema import Model


def read_straight(
    path: Path, tensors: dict[str, TensorInfo], settings: Model, attention: str, *, whole: tuple[str, ...]
) -> Any:
    """Load a causal language model in float32, but for linear layers that are stored in 16 bits; or return None.

    Args:
        tensors: what the files hold.
        attention: the implementation, by transformers' name.
        whole: endings of the names of modules that are to move, which are made wide.
    """
    model = empty_model(path, attention=attention, trust_remote_code=settings.trust_remote_code, needed_for="training")
    if _is_converted(model):
        return None
    found = _found(model, tensors)
    if found is None:
        return None
    kept = {
        name: found[id(module.weight)]
        for name, module in plain_linears(model, whole)
        if TORCH_DTYPES.get(found[id(module.weight)].dtype) in NARROW
    }
    narrow = {id(model.get_submodule(name).weight) for name in kept}
    with torch.no_grad():
        _fill(model, {key: info for key, info in found.items() if key not in narrow})
        _keep(model, kept)
    return model


def _is_converted(model: Any) -> bool:
    """Return whether transformers changes checkpoints of this kind when it reads them."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # before 5.0, or no longer there
        return True
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _found(model: Any, tensors: dict[str, TensorInfo]) -> dict[int, TensorInfo] | None:
    """Return where each parameter lies, by its identity; None where one cannot be told, or a buffer is in the files."""
    found: dict[int, TensorInfo] = {}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = file_name_of(name, tensors, model.base_model_prefix)
        names.setdefault(id(parameter), [])
        if known is not None:
            names[id(parameter)].append(known)
            found[id(parameter)] = tensors[known]
            if tensors[known].shape != tuple(parameter.shape) or tensors[known].dtype not in TORCH_DTYPES:
                return None
    buffers = dict(model.named_buffers())
    unusual = any(buffer.is_meta for buffer in buffers.values()) or any(
        file_name_of(name, tensors, model.base_model_prefix) for name in buffers
    )
    return None if unusual or any(len(known) != 1 for known in names.values()) else found


def _fill(model: Any, infos: dict[int, TensorInfo]) -> None:
    """Give parameters their numbers, in float32."""
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) in infos:
            if id(parameter) not in made:
                values = read_tensor(infos[id(parameter)]).to(torch.float32)
                made[id(parameter)] = nn.Parameter(values, requires_grad=False)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, made[id(parameter)])


def _keep(model: Any, infos: dict[str, TensorInfo]) -> None:
    """Put stored layers in the place of linear ones, their weights side by side in the order of the files."""
    scratch = Scratch(most_kept_bytes=None)
    names = sorted(infos, key=lambda name: (infos[name].file, infos[name].start))
    for name, content in zip(names, _read_together([infos[name] for name in names]), strict=True):
        put(model, name, StoredLinear(model.get_submodule(name), content, scratch))


def _read_together(infos: list[TensorInfo]) -> list[Tensor]:
    """Read tensors into one piece of memory.

    Not of huge pages: the kernel may have to move others' memory for them, which takes up to five times the reading.
    """
    block = torch.empty(sum(info.end - info.start for info in infos), dtype=torch.uint8)
    made, begin = [], 0
    for info in infos:
        content = block[begin : begin + info.end - info.start]
        with info.file.open("rb", buffering=0) as file:
            read_into(file.fileno(), memoryview(content.numpy()), info.start, info.file)
        made.append(content.view(TORCH_DTYPES[info.dtype]).view(info.shape))
        begin += info.end - info.start
    return made
