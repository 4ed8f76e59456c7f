"""What the backward pass makes again because keeping it would cost more.

Norms and activation functions give most of what a layer keeps between forward and backward: their results are wide, and
they are the inputs of linear layers, whose weights or adapters need them for their gradients. Making them again takes a
few passes over memory, no product.

`recomputed` runs a function, keeps its inputs only, and remembers its result while it is about to be read.
`keeping_less` sees what autograd wants to keep (`saved_tensors_hooks`); where that is a remembered result, it keeps how
that is made in its place. So every reader profits, whatever it is: a linear layer, an adapter, a 4-bit product. What is
made again is bit for bit what it was: the same function of the same numbers.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

_READ_SOON = 4  # results remembered at a time: a layer's input norm, and norms of queries and keys made before values


class _Kept:
    """A tensor that is kept as it is.

    Without its graph: an operation that keeps its own result would hold itself, and after a pass that failed (memory
    ran out) nothing could let go of it. The count of changes is shared with the tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version


class _Pass:
    """What a forward pass keeps."""

    def __init__(self) -> None:
        # Held themselves, so that nothing else can lie at their addresses.
        self._results: deque[tuple[Tensor, _Again]] = deque(maxlen=_READ_SOON)
        self.noted: list[_Kept] | None = None

    def remember(self, result: Tensor, again: _Again) -> None:
        if result.is_contiguous():
            self._results.append((result.detach(), again))

    def forget(self) -> None:
        """Let go of the last results: every kept tensor's hooks hold this object until the backward pass."""
        self._results.clear()

    def pack(self, tensor: Tensor) -> _Kept | tuple[_Again, torch.Size]:
        """Return what is kept for a tensor: how it is made again, or itself."""
        for result, again in self._results:
            same = tensor.numel() == result.numel() and tensor.dtype == result.dtype and tensor.is_contiguous()
            if same and tensor.data_ptr() == result.data_ptr():
                return again, tensor.shape
        kept = _Kept(tensor)
        if self.noted is not None:
            self.noted.append(kept)
        return kept


_pass: ContextVar[_Pass | None] = ContextVar("pass", default=None)


@runtime_checkable
class Differentiated(Protocol):
    """A function that knows its gradients."""

    def __call__(self, *inputs: Tensor) -> Tensor: ...

    def gradients(self, of_result: Tensor, *inputs: Tensor) -> list[Tensor | None]:
        """Return those of the inputs and of the weights, None where none is wanted."""


class _Again:
    """A function with its inputs, made again once, for all that read its result in the backward pass."""

    def __init__(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]
    ) -> None:
        self._function, self._weights = function, weights
        self._inputs: tuple[Tensor, ...] | None = tuple(
            tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs
        )
        self._versions = [tensor._version for tensor in self._inputs]
        self._made: Tensor | None = None

    def result(self) -> Tensor:
        """Return the result, with its graph down to the inputs unless the function knows its own gradients."""
        if self._inputs is None:
            raise RuntimeError("the backward pass goes through a graph for the second time; it is kept for one only")
        if self._made is None:
            _refuse_changed(self._inputs, self._versions)
            with torch.set_grad_enabled(not isinstance(self._function, Differentiated)):
                self._made = self._function(*self._inputs)
        return self._made

    def gradients(self, of_result: Tensor) -> list[Tensor | None]:
        """Return the gradients of inputs and weights, None where none is wanted, and let everything go."""
        if isinstance(self._function, Differentiated):
            assert self._inputs is not None
            _refuse_changed(self._inputs, self._versions)
            gradients = self._function.gradients(of_result, *self._inputs)
            self._inputs = self._made = None
            return gradients
        made = self.result()
        assert self._inputs is not None
        every = (*self._inputs, *self._weights)
        wanted = [tensor for tensor in every if tensor.requires_grad]
        found = iter(torch.autograd.grad(made, wanted, of_result))
        self._inputs = self._made = None
        return [next(found) if tensor.requires_grad else None for tensor in every]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, again: _Again, function: Callable[..., Tensor], num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.again = again
        return function(*tensors[:num_inputs])

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *ctx.again.gradients(arriving[0])


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, weights: tuple[Tensor, ...] = ()) -> Tensor:
    """Return function(*inputs), of which only the inputs are kept.

    Args:
        function: gives the same numbers whenever it is called, and has no random part.
        weights: what it reads besides its inputs and may have gradients.
    """
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in inputs):
        return function(*inputs)
    again = _Again(function, inputs, weights)
    result: Tensor = _Recomputed.apply(again, function, len(inputs), *inputs, *weights)
    under_way = _pass.get()
    if under_way is not None:
        under_way.remember(result, again)
    return result


@contextlib.contextmanager
def keeping_less() -> Iterator[None]:
    """Let a forward pass in this block keep less."""
    if not torch.is_grad_enabled():
        yield
        return
    under_way = _Pass()
    token = _pass.set(under_way)
    try:
        with torch.autograd.graph.saved_tensors_hooks(under_way.pack, _unpack):
            yield
    finally:
        _pass.reset(token)
        under_way.forget()


@contextlib.contextmanager
def kept_elsewhere() -> Iterator[Callable[[Tensor, Tensor], None]]:
    """Give a function that is told (made, place): a tensor made in this block lies in that place too, number by number.

    What the backward pass needs of it is read there, and its own memory is free. Does nothing outside `keeping_less`.
    """
    under_way = _pass.get()
    noted: list[_Kept] = []

    def lies(made: Tensor, place: Tensor) -> None:
        for kept in noted:
            if kept.tensor.data_ptr() == made.data_ptr() and kept.tensor.shape == made.shape == place.shape:
                kept.tensor, kept.version = place.detach(), place._version

    if under_way is not None:
        under_way.noted = noted
    try:
        yield lies
    finally:
        if under_way is not None:
            under_way.noted = None


def _unpack(packed: _Kept | tuple[_Again, torch.Size]) -> Tensor:
    if isinstance(packed, _Kept):
        _refuse_changed((packed.tensor,), [packed.version])
        return packed.tensor
    again, shape = packed
    return again.result().detach().view(shape)


def _refuse_changed(tensors: tuple[Tensor, ...], versions: list[int]) -> None:
    """Raise what autograd raises by itself where there are no hooks."""
    if [tensor._version for tensor in tensors] != versions:
        raise RuntimeError("a tensor that the backward pass needs has been changed in place")
