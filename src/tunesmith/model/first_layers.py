"""A model with its first layers only, for a look at how it is put together.

What such a look shows (the parts give the model's own logits; an attention kernel gives its numbers) hangs on the code
that runs and on its settings, not on the values of weights nor on how often the same layer follows itself. So it is
enough to see every kind of layer twice: the second time, because some compute with their own number.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_AT_LEAST = 6  # layers: patterns that a decoder keeps to itself repeat after at most so many (Gemma 3)
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


@contextlib.contextmanager
def first_layers(model: Any) -> Iterator[bool]:
    """Let a model run with fewer layers in this block; yield whether it does. Weights and names are as before after it.

    Only for models of transformers, whose layers follow its conventions. Layers of which nothing is known to repeat
    (an attribute differs, or an object of its own hangs on each) all stay.
    """
    decoder = model.get_decoder()
    config = model.config.get_text_config()
    place = _place_of_layers(decoder, getattr(config, "num_hidden_layers", None))
    if place is None or not type(model).__module__.startswith("transformers.models."):
        yield False
        return
    layers: nn.ModuleList = getattr(decoder, place)
    num_needed = _num_needed([_kind(layer, number, config) for number, layer in enumerate(layers)])
    if num_needed >= len(layers):
        yield False
        return
    setattr(decoder, place, nn.ModuleList(list(layers)[:num_needed]))
    try:
        yield True
    finally:
        setattr(decoder, place, layers)


def _place_of_layers(decoder: nn.Module, num_layers: int | None) -> str | None:
    """Return the name under which a decoder holds its layers."""
    lists = [name for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)]
    return lists[0] if len(lists) == 1 and len(getattr(decoder, lists[0])) == num_layers else None


def _num_needed(kinds: list[Any]) -> int:
    """Return after how many layers every kind has come twice, those apart that come once in all."""
    missing = {kind: min(2, count) for kind, count in Counter(kinds).items()}
    for number, kind in enumerate(kinds):
        missing[kind] -= 1
        if number + 1 >= _AT_LEAST and all(count <= 0 for count in missing.values()):
            return number + 1
    return len(kinds)


def _kind(layer: nn.Module, number: int, config: Any) -> Any:
    """Return all that tells layers apart, but for their number and the values of their weights."""
    of_config = tuple(
        _told(values[number])
        for values in vars(config).values()
        if isinstance(values, list | tuple) and len(values) == config.num_hidden_layers
    )
    return of_config, kind_of(layer, leaving_out="layer_idx")


def kind_of(module: nn.Module, *, leaving_out: str | None = None) -> Any:
    """Return what is equal for modules that run the same code with the same settings on weights of the same form."""
    return tuple(
        (name, type(inner), _attributes(inner, leaving_out), _shapes(inner)) for name, inner in module.named_modules()
    )


def _attributes(module: nn.Module, leaving_out: str | None) -> tuple[Any, ...]:
    own = sorted(vars(module).keys() - _OF_EVERY_MODULE - {leaving_out})
    return tuple((key, _told(vars(module)[key])) for key in own)


def _shapes(module: nn.Module) -> tuple[Any, ...]:
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return tuple((name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in named)


def _told(value: Any) -> Any:
    """Return a value that is equal for what is the same; objects are the same only as themselves."""
    if isinstance(value, list | tuple):
        return tuple(_told(one) for one in value)
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, partial):
        return id(value.func), _told(value.args), tuple((key, _told(one)) for key, one in value.keywords.items())
    if isinstance(value, MethodType):
        return id(value.__func__), type(value.__self__)
    plain = value is None or isinstance(value, bool | int | float | str | type | torch.dtype)
    return (type(value), value) if plain else id(value)
