"""Weights of linear layers laid out for products with few rows, on CPUs.

Generating for a few requests multiplies every weight matrix with a handful of rows. PyTorch's float32 `linear` goes to
MKL, which lays the matrix out anew at every call; oneDNN keeps it in the layout that its kernel wants. On two AVX2
cores the products of a 135 M Llama shape take 74 ms that way and 52 ms this way with 16 rows, 73 and 31 with 4, and no
more with one (docs/log.md).

The two operators are those that `torch.compile` writes for frozen float32 weights; they are not documented, so a layer
is checked against the plain product before any is replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TYPICAL_ROWS = 16  # a hint for choosing the layout; any number of rows works


class PackedLinear(nn.Module):
    """A linear layer without a plain weight.

    Args:
        weight_ON: outputs × inputs.
        bias_O: or None.
    """

    def __init__(self, weight_ON: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_ON.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_ON.detach().contiguous(), _TYPICAL_ROWS)
        self._bias_O = None if bias_O is None else bias_O.detach()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias_O, "none", [], "")
        return out


def pack(model: nn.Module) -> int:
    """Replace the model's float32 linear layers, one after the other; return how many.

    A head that shares its matrix with the embeddings gets a copy. Nothing is replaced on a GPU, in another precision,
    or where this PyTorch's operators do not give the plain product.
    """
    from transformers.pytorch_utils import Conv1D

    num_packed = 0
    with torch.no_grad():  # not inference mode: the packed layout needs a version counter
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                # Exactly these: a subclass does something else besides.
                if (
                    type(child) not in (nn.Linear, Conv1D)
                    or child.weight.dtype != torch.float32
                    or child.weight.is_meta
                ):
                    continue
                if child.weight.device.type != "cpu":
                    return 0
                weight_ON = child.weight if type(child) is nn.Linear else child.weight.t()
                replacement = _checked(child, weight_ON) if num_packed == 0 else PackedLinear(weight_ON, child.bias)
                if replacement is None:
                    return 0
                setattr(module, name, replacement)
                num_packed += 1
    return num_packed


def _checked(layer: Any, weight_ON: Tensor) -> PackedLinear | None:
    try:
        made = PackedLinear(weight_ON, layer.bias)
        x = torch.linspace(-1.0, 1.0, 3 * made.in_features).reshape(1, 3, made.in_features)
        return made if torch.allclose(made(x), layer(x), rtol=1e-3, atol=1e-4) else None
    except (AttributeError, NotImplementedError, RuntimeError):
        return None  # a PyTorch without oneDNN, or one whose operators have moved
