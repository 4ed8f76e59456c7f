"""A model as transformers builds it, without memory for its large tensors: what fills it decides where they lie."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tunesmith.errors import missing_extra

_LARGE_ELEMENTS = 1 << 16
_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)
# Of tensors and of `torch.nn.init`, which transformers replaces while it builds a model: known by their names.
_FILLS = {
    "normal_", "uniform_", "zero_", "fill_", "zeros_", "ones_", "constant_", "trunc_normal_", "kaiming_uniform_",
}  # fmt: skip


class _LargeNowhere(TorchFunctionMode):
    """Large tensors that are made while this is on have a shape and no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES and kwargs.get("device") is None:
            size = kwargs.get("size", args[0] if args else ())
            sizes = size if isinstance(size, list | tuple) else [a for a in args if isinstance(a, int)]
            if prod(sizes) >= _LARGE_ELEMENTS:
                kwargs["device"] = "meta"
        if getattr(func, "__name__", "") in _FILLS:
            target = args[0] if args else kwargs["tensor"]
            if target.is_meta:  # PyTorch takes 1 ms to fill nothing, and imports half a second's worth for it
                return target
        return func(*args, **kwargs)


def empty_model(directory: Path, *, attention: str, trust_remote_code: bool, needed_for: str) -> Any:
    """Build a causal language model in float32. Tensors of less than 2^16 numbers are real, and random.

    Args:
        directory: holds config.json.
        attention: the implementation, by transformers' name.

    Raises:
        EnvironmentProblem: transformers is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise missing_extra("transformers", "train", needed_for=needed_for) from None
    logging.set_verbosity_error()
    trust = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(str(directory), local_files_only=True, **trust)
    with _LargeNowhere():
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32, **trust)


def file_name_of(name: str, known: Any, prefix: str) -> str | None:
    """Return a parameter's name in the files, which may have the decoder's name before it or lack it."""
    for other in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        if other in known:
            return other
    return None
