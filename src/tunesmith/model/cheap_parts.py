"""Which parts of a model are made again in the backward pass: its norms, and what its MLPs do between their products.

Nothing here knows a family. A module is taken for what it is shown to be: its linear layers and its activation
function, put together in one of three known ways, must give the module's own numbers, bit for bit. What does not stays
as it is.

    gated   writer(act(a(x)) · b(x))                   Llama, Qwen, Mistral, Gemma, …
    fused   writer(act(half of r(x)) · other half)     Phi-3, GLM, …
    plain   writer(act(r(x)))                          GPT-2, GPT-NeoX, …
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.adapters import AdaptedLinear, is_transposed, weight_shape
from tunesmith.model.first_layers import kind_of
from tunesmith.model.frozen_linear import FrozenLinear
from tunesmith.model.recomputed import recomputed


def recompute_cheap_parts(model: Any) -> int:
    """Let norms and MLPs keep less for the backward pass, in place; return how many of them do.

    To be called when adapters are attached and it is settled which weights move. Names of weights stay as they are.
    """
    width = int(model.config.get_text_config().hidden_size)
    found = 0
    shown: Shown = {}
    for module in list(model.modules()):
        forward = _norm(module, width) or _mlp(module, width, shown)
        if forward is not None:
            # On the object, as `nn.Module.compile` does: another module in its place would change the weights' names.
            module.forward = forward
            found += 1
    return found


# ── Norms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _norm(module: nn.Module, width: int) -> Callable[[Tensor], Tensor] | None:
    """Return the forward of a norm whose result linear layers read, or whose weight moves; None for other modules.

    A frozen norm of queries and keys keeps its input only as it is.
    """
    weights = tuple(module.parameters())
    if "norm" not in type(module).__name__.lower() or next(module.children(), None) or not weights:
        return None
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or any(weight.ndim != 1 for weight in weights):
        return None
    if weights[0].numel() != width and not any(weight.requires_grad for weight in weights):
        return None
    return partial(_recomputed_norm, module.forward, _rms_norm(module, weights), weights)


def _recomputed_norm(
    forward: Callable[..., Tensor], rms: _RmsNorm | None, weights: tuple[Tensor, ...], x: Tensor, *more: Any
) -> Tensor:
    if more:  # a norm with a gate, or some other one that this file does not know
        return forward(x, *more)
    return recomputed(rms if rms and x.dtype == torch.float32 else forward, x, weights=weights)


class _RmsNorm:
    """x · weight / √(mean x² + ε) (Zhang & Sennrich 2019) in float32, with few passes over memory.

    Args:
        module: its `weight` is read whenever it is needed: shards put another tensor in its place.
        offset: what is added to the weight.
    """

    def __init__(self, module: Any, epsilon: float, offset: float) -> None:
        self._module, self._epsilon, self._offset = module, epsilon, offset

    def __call__(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return (x * self._factor(x)).mul_(self._weight())

    def gradients(self, of_result: Tensor, *inputs: Tensor) -> list[Tensor | None]:
        """Return those of the input and of the weight."""
        (x,) = inputs
        factor = self._factor(x)
        of_weight: Tensor | None = None
        if self._module.weight.requires_grad:
            of_weight = (of_result * x).mul_(factor).flatten(0, -2).sum(0)
        if not x.requires_grad:
            return [None, of_weight]
        of_normed = of_result * self._weight()
        along = (of_normed * x).sum(-1, keepdim=True).mul_(factor.pow(3)).div_(-x.shape[-1])
        return [of_normed.mul_(factor).addcmul_(x, along), of_weight]

    def _factor(self, x: Tensor) -> Tensor:
        return x.square().mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()

    def _weight(self) -> Tensor:
        weight: Tensor = self._module.weight.detach()
        return weight + self._offset if self._offset else weight


def _rms_norm(module: Any, weights: tuple[Tensor, ...]) -> _RmsNorm | None:
    """Return what computes a norm faster, when it gives the norm's own numbers."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(epsilon, float) or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    x = _probe(weights[0].numel(), weights[0]).float()
    for offset in (0.0, 1.0):
        ours = _RmsNorm(module, epsilon, offset)
        with torch.no_grad(), contextlib.suppress(RuntimeError, TypeError, ValueError, AttributeError):
            if weights[0].dtype == torch.float32 and torch.equal(module(x), ours(x)):
                return ours
    return None


# ── MLPs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


Shown = dict[Any, int | None]  # of a kind of MLP: the number of its form, None when it has none of them


def _mlp(module: nn.Module, width: int, shown: Shown) -> Callable[[Tensor], Tensor] | None:
    """Return the forward of an MLP in one of the known forms; None for other modules.

    Args:
        shown: what is known of kinds already; the first MLP of each is held against its own numbers.
    """
    children = list(module.children())
    linears = [child for child in children if _is_linear(child)]
    others = [child for child in children if not _is_linear(child) and not _does_nothing(child)]
    if len(others) != 1 or next(others[0].parameters(), None) is not None or len(linears) not in (2, 3):
        return None
    readers, writers = linears[:-1], linears[-1:]  # as they are registered, in the order of their use
    changes_input = isinstance(others[0], nn.Dropout) or getattr(others[0], "inplace", False)
    if weight_shape(_inner(writers[0]))[0] != width or changes_input:
        return None
    forms = [
        partial(_recomputed_mlp, between, tuple(order), writers[0])
        for between in _forms(others[0], len(readers))
        for order in (readers, readers[::-1])
    ]
    kind = kind_of(module)
    if kind not in shown:
        same = (number for number, form in enumerate(forms) if _same(module.forward, form, readers[0]))
        shown[kind] = next(same, None)
    number = shown[kind]
    return None if number is None else forms[number]


def _recomputed_mlp(
    between: Callable[..., Tensor], readers: tuple[nn.Module, ...], writer: nn.Module, x: Tensor
) -> Tensor:
    made: Tensor = writer(recomputed(between, *(reader(x) for reader in readers)))
    return made


def _forms(activation: nn.Module, num_readers: int) -> Iterator[Callable[..., Tensor]]:
    if num_readers == 2:
        yield partial(_gated, activation)
    else:
        yield from (partial(_fused, activation), activation)


def _gated(activation: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    active: Tensor = activation(gate)
    return active * up if torch.is_grad_enabled() or active is gate else active.mul_(up)


def _fused(activation: nn.Module, both: Tensor) -> Tensor:
    return _gated(activation, *both.chunk(2, dim=-1))


def _same(own: Callable[..., Tensor], ours: Callable[..., Tensor], reader: nn.Module) -> bool:
    """Return whether both give the same numbers, for inputs on both sides of zero."""
    linear = _inner(reader)
    like = (
        torch.empty(0, dtype=linear.dtype, device=linear.device) if isinstance(linear, FrozenLinear) else linear.weight
    )
    x = _probe(weight_shape(linear)[1], like)
    try:
        with torch.no_grad():
            return bool(torch.equal(own(x), ours(x)))
    except (RuntimeError, TypeError, ValueError, AttributeError):  # takes or gives something else, or does not fit
        return False


def _probe(width: int, like: Tensor) -> Tensor:
    return torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0)).to(like)


def _inner(module: nn.Module) -> nn.Module:
    return module.inner if isinstance(module, AdaptedLinear) else module


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | FrozenLinear | AdaptedLinear) or is_transposed(module)


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)
