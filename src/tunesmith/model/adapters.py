"""LoRA and DoRA: the arithmetic once, for training and merging, in PEFT's file format.

    LoRA    (Hu et al. 2021)        W' = W + s·B·A                       s = alpha / r
    rsLoRA  (Kalajdzievski 2023)    the same                             s = alpha / √r
    DoRA    (Liu et al. 2024)       W' = m · (W + s·B·A) / ‖W + s·B·A‖    norm of each row (output), without a gradient

Shapes: x (…, in), A (r, in), B (out, r), W (out, in), m (out).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.errors import ModelError
from tunesmith.model.chosen import chosen_layers, refuse_idle_keys, whole_modules
from tunesmith.model.frozen_linear import FrozenLinear
from tunesmith.recipe.schema import Lora
from tunesmith.recipe.targets import value_for

PREFIX = "base_model.model."  # PEFT's names begin with the path through its two wrappers


def delta(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return s·B·A, (out, in)."""
    return (B @ A) * scaling


def row_norms(weight: Tensor) -> Tensor:
    """Return the length of each row, (out)."""
    return torch.linalg.norm(weight, dim=1)


@dataclass(frozen=True)
class Change:
    """What an adapter does to one matrix, in float32: A (r, in), B (out, r), and DoRA's magnitude (out)."""

    A: Tensor
    B: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.B.shape[0], self.A.shape[1]

    def of_rows(self, rows: slice) -> Change:
        """Return the change of some outputs."""
        magnitude = None if self.magnitude is None else self.magnitude[rows]
        return Change(self.A, self.B[rows], self.scaling, magnitude)

    def low(self, x: Tensor) -> Tensor:
        """Return s·x·Aᵀ, (…, r)."""
        return x @ self.A.T * self.scaling

    def turned(self) -> Change:
        """Return the change of the transposed matrix: (B·A)ᵀ = Aᵀ·Bᵀ."""
        assert self.magnitude is None
        return Change(self.B.T, self.A.T, self.scaling)


def fold_into(weight: Tensor, change: Change, *, as_peft: bool) -> None:
    """Turn W into W', (out, in), in place and in float32.

    Args:
        as_peft: take PEFT's order of operations, for results that are equal bit by bit. Otherwise W is added to by
            the product itself, which is faster and differs in the last bit of float32 where s is no power of two.
    """
    if as_peft:
        weight.add_(delta(change.A, change.B, change.scaling))
    else:
        weight.addmm_(change.B, change.A, alpha=change.scaling)
    if change.magnitude is not None:
        weight.mul_((change.magnitude / row_norms(weight)).view(-1, 1))


@dataclass(frozen=True)
class AdapterSettings:
    """What makes an adapter, apart from its numbers."""

    r: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]
    use_dora: bool
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()

    @classmethod
    def of(cls, lora: Lora, method: str) -> AdapterSettings:
        return cls(
            lora.r,
            lora.alpha,
            lora.dropout,
            lora.target_modules,
            use_dora=method in ("dora", "qdora"),
            use_rslora=lora.use_rslora,
            rank_pattern=lora.rank_pattern,
            alpha_pattern=lora.alpha_pattern,
            modules_to_save=lora.modules_to_save,
        )

    def at(self, layer: str) -> AdapterSettings:
        """Return the settings of one layer: with its own rank and alpha, and no patterns."""
        rank, alpha = value_for(layer, self.rank_pattern, self.r), value_for(layer, self.alpha_pattern, self.alpha)
        return dataclasses.replace(self, r=rank, alpha=alpha, rank_pattern={}, alpha_pattern={})

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with an adapter. Adapter weights are float32; products run in the input's format."""

    def __init__(self, inner: nn.Module, settings: AdapterSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = inner
        self.scaling = settings.scaling
        self.dropout = settings.dropout
        self.enabled = True
        num_outputs, num_inputs = weight_shape(inner)
        device = inner.device if isinstance(inner, FrozenLinear) else inner.weight.device
        # PEFT's start: A uniform as nn.Linear's own weight, B zero, so that the model begins as the base.
        bound = math.sqrt(3.0) * math.sqrt(2.0 / (1 + 5)) / math.sqrt(num_inputs)
        A = torch.empty(settings.r, num_inputs).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(A.to(device))
        self.lora_B = nn.Parameter(torch.zeros(num_outputs, settings.r, device=device))
        self.magnitude: nn.Parameter | None = None
        if settings.use_dora:
            self.magnitude = nn.Parameter(row_norms(base_weight(inner).float()))

    def forward(self, x: Tensor) -> Tensor:
        if self.enabled and self.magnitude is None and not self.dropout:
            adapted: Tensor = _AdaptedProduct.apply(x, self.lora_A, self.lora_B, self.inner, self.scaling)
            return adapted
        y: Tensor = self.inner(x)
        if not self.enabled:
            return y
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        # Scaled while it is r wide, and added by the product itself: nothing as wide as the output is made twice.
        inner_r = functional.linear(dropped, self.lora_A.to(x.dtype)) * self.scaling
        if self.magnitude is None:
            return _add_product(y, inner_r, self.lora_B.to(x.dtype))
        bias = getattr(self.inner, "bias", None)
        straight = y if bias is None else y - bias
        factor = (self.magnitude / self._moved_norms()).to(x.dtype)
        if dropped is x:
            turned = factor * _add_product(straight, inner_r, self.lora_B.to(x.dtype))
            return turned if bias is None else turned + bias
        seen = straight_product(self.inner, dropped)
        return y + (factor - 1) * seen + factor * functional.linear(inner_r, self.lora_B.to(x.dtype))

    @torch.no_grad()
    def _moved_norms(self) -> Tensor:
        """Return ‖W + s·B·A‖ of this moment.

        Not kept from one micro-batch to the next: fused optimisers change A and B without counting up their `_version`.
        """
        return row_norms(base_weight(self.inner).float() + delta(self.lora_A, self.lora_B, self.scaling))


class _AdaptedProduct(torch.autograd.Function):
    """x·Wᵀ + s·x·Aᵀ·Bᵀ, with every sum made in the memory of its first term, forward and backward.

    Only x and s·x·Aᵀ are kept. Nothing as wide as the output exists twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, inner: nn.Module, scaling: float) -> Tensor:
        y: Tensor = inner(x)
        low_Nr = functional.linear(x.flatten(0, -2), A.to(x.dtype)).mul_(scaling)
        y.flatten(0, -2).addmm_(low_Nr, B.to(x.dtype).T)
        ctx.save_for_backward(x, low_Nr, A, B)
        ctx.inner, ctx.scaling = inner, scaling
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, low_Nr, A, B = ctx.saved_tensors
        of_y = gradients[0].flatten(0, -2)
        of_low_Nr = (of_y @ B.to(of_y.dtype)).mul_(ctx.scaling)
        of_A, of_B = of_low_Nr.T @ x.flatten(0, -2), of_y.T @ low_Nr
        of_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            of_x = (of_y @ base_weight(ctx.inner).to(of_y.dtype)).addmm_(of_low_Nr, A.to(of_y.dtype)).view_as(x)
        return of_x, of_A.to(A.dtype), of_B.to(B.dtype), None, None


def _add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return y + x·weightᵀ."""
    return torch.addmm(y.flatten(0, -2), x.flatten(0, -2), weight.T).view_as(y)


def base_weight(linear: nn.Module) -> Tensor:
    """Return the frozen weight of a layer, (out, in), whatever it is stored as.

    To be used at once: the next weight that is asked for may take its memory.
    """
    if isinstance(linear, FrozenLinear):
        return linear.wide()
    weight: Tensor = linear.weight.data
    return weight.T if is_transposed(linear) else weight


def weight_shape(linear: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a linear layer."""
    if isinstance(linear, FrozenLinear):
        return linear.out_features, linear.in_features
    first, second = linear.weight.shape
    return (second, first) if is_transposed(linear) else (first, second)


def straight_product(linear: nn.Module, x: Tensor) -> Tensor:
    """Return x·Wᵀ, without the layer's bias."""
    if isinstance(linear, FrozenLinear):
        return linear.product(x)
    return functional.linear(x, base_weight(linear).to(x.dtype))


def is_transposed(linear: nn.Module) -> bool:
    """Return whether a layer stores (in, out), as GPT-2's `Conv1D` does."""
    return type(linear).__name__ == "Conv1D"


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return the layers that can carry an adapter, by name: every linear one but the output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear | FrozenLinear) or is_transposed(module)) and module is not head
    }


def attach(model: Any, settings: AdapterSettings, *, seed: int) -> dict[str, AdaptedLinear]:
    """Wrap the layers that `target_modules` names, in place, and let `modules_to_save` have gradients.

    Returns:
        The wrapped layers by name.

    Raises:
        ModelError: a key names nothing that it can stand for.
    """
    whole = whole_modules(model, settings.modules_to_save)
    chosen = chosen_layers(model, linear_layers(model), settings.target_modules, settings.modules_to_save)
    refuse_idle_keys("rank_pattern", settings.rank_pattern, chosen)
    refuse_idle_keys("alpha_pattern", settings.alpha_pattern, chosen)
    for name, module in whole.items():
        narrow = any(isinstance(part, FrozenLinear) for part in module.modules())
        assert not narrow, f"{name} cannot move; load_model(whole=...) keeps it out"
        module.requires_grad_(True)
    return attach_to(model, settings, chosen, seed=seed)


def attach_to(model: Any, settings: AdapterSettings, names: list[str], *, seed: int) -> dict[str, AdaptedLinear]:
    """Wrap the layers of these names, in place.

    Raises:
        ModelError: the model has no such linear layer.
    """
    layers = linear_layers(model)
    missing = [name for name in names if name not in layers]
    if missing:
        raise ModelError(f"the model has no linear layer {missing[0]!r}", do="is this the adapter's base model?")
    generator = torch.Generator().manual_seed(seed)
    adapted: dict[str, AdaptedLinear] = {}
    for name in names:
        module = layers[name]
        parent, _, attribute = name.rpartition(".")
        adapted[name] = AdaptedLinear(module, settings.at(name), generator)
        setattr(model.get_submodule(parent), attribute, adapted[name])
    return adapted


def adapters_of(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let the model compute as its base while the block runs; modules trained whole stay as they are at the moment."""
    layers = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
