"""Linear layers that never move, whose weights are kept narrower than they are computed with.

    Nf4Linear      4 bits, of qlora and qdora (`model.nf4`)
    StoredLinear   the 16 bits of the checkpoint, on a CPU whose fast products are those of float32 (`model.stored`)

A weight is made wide at the moment of its product, in the forward pass and again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FrozenLinear(nn.Module):
    """x·Wᵀ + bias of a weight that `wide` makes.

    Attributes:
        dtype: of the wide weight, and of the bias.
    """

    def __init__(self, num_outputs: int, num_inputs: int, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = num_outputs, num_inputs
        self.bias, self.dtype = bias, dtype

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def wide(self) -> Tensor:
        """Return the weight, (out, in). It may be lost at the next call of any layer's `wide`: use it at once."""
        raise NotImplementedError

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x·Wᵀ + bias. Of the weight nothing but its narrow form lives until the backward pass."""
        y: Tensor = _Product.apply(x, self, bias)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.wide().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.wide().to(gradient.dtype), None, None
