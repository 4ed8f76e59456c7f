"""Linear layers in NF4 with double quantisation (Dettmers et al. 2023), for qlora and qdora.

The kernels are bitsandbytes'. Its `Linear4bit` is not used: on CPUs with AVX512-BF16 its first forward without
gradients repacks the weight in place into a layout that nothing else can read, and validation and DPO's reference are
such forwards. Here the stored weight never changes.
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/nn/modules.py (Linear4bit.forward)
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import missing_extra
from tunesmith.model.frozen_linear import FrozenLinear
from tunesmith.recipe.targets import is_whole


def bitsandbytes(part: str, *, needed_for: str) -> Any:
    """Import a module of bitsandbytes without what it says on import.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    import importlib
    import logging

    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(f"bitsandbytes.{part}")
    except ImportError:
        raise missing_extra("bitsandbytes", "qlora", needed_for=needed_for) from None
    finally:
        logger.setLevel(level)


def _kernels() -> Any:
    return bitsandbytes("functional", needed_for="a 4-bit base (qlora, qdora)")


def quantise(weight: Tensor) -> tuple[Tensor, Any]:
    """Return a weight in NF4 and what `dequantise` needs to read it."""
    packed, state = _kernels().quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    return packed, state


def dequantise(packed: Tensor, state: Any) -> Tensor:
    """Return the weight that training computes with, in the format it had before."""
    weight: Tensor = _kernels().dequantize_4bit(packed, state)
    return weight


def round_trip(weight: Tensor) -> Tensor:
    """Return what is left of a weight after NF4: what the adapter was trained on."""
    return dequantise(*quantise(weight))


class Nf4Linear(FrozenLinear):
    """A frozen linear layer in NF4."""

    def __init__(self, linear: nn.Linear) -> None:
        num_outputs, num_inputs = linear.weight.shape
        super().__init__(num_outputs, num_inputs, linear.bias, linear.weight.dtype)
        packed, self.state = quantise(linear.weight.data)
        self.register_buffer("packed", packed, persistent=False)

    def wide(self) -> Tensor:
        """Return the weight, (out, in)."""
        return dequantise(self.packed, self.state)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias


def quantise_linears(model: Any, device: torch.device, *, whole: tuple[str, ...] = ()) -> None:
    """Replace every linear layer but the output head by its NF4 form on a device, one at a time.

    Args:
        whole: endings of the names of modules that stay as they are, by the rule of `modules_to_save`.
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head and not is_whole(name, whole):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, Nf4Linear(module.to(device)))
