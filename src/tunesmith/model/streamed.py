"""A model of which no large matrix stays in memory: each is read from its file, some rows at a time, when it is needed.

For a handful of tokens that costs little more than reading the files once, and an 8 B model's logits need some hundred
megabytes. Computes in float32 on the CPU. The architecture is transformers' own; only linear layers and embeddings are
replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.adapters import Change, is_transposed, row_norms
from tunesmith.model.empty import empty_model, file_name_of
from tunesmith.model.headers import TensorInfo
from tunesmith.model.nf4 import round_trip
from tunesmith.model.scratch import Scratch
from tunesmith.model.weights import read_rows, read_tensor

_CHUNK_ELEMENTS = 1 << 21  # 8 MiB of float32


class NotStreamable(Exception):
    """The model has large weights in modules that are neither linear nor embeddings, or under other names."""


@dataclass(frozen=True)
class Aside:
    """More inputs of a linear layer, whose outputs are taken in the same pass over its file, and go nowhere.

    Attributes:
        x_nI: the inputs.
        take: is given the outputs (out, n), and the sum over all of Σ x²·w².
    """

    x_nI: Tensor
    take: Callable[[Tensor, float], None]


@dataclass(frozen=True)
class Part:
    """Where a tensor's numbers come from.

    Attributes:
        read_change: what adapters do to it; their product is added to the layer's output, nothing is folded.
        quantised_from: its values go through NF4 first, from this number format.
        watch: is shown the linear layer's inputs (tokens, in), and its outputs without bias (out, tokens): those of
            the weight alone, and those with what adapters do.
        aside: what else the weight is multiplied with.
    """

    info: TensorInfo
    read_change: Callable[[], Change] | None = None
    quantised_from: torch.dtype | None = None
    watch: Callable[[Tensor, Tensor, Tensor], None] | None = None
    aside: Aside | None = None


def streamed_model(directory: Path, parts: Mapping[str, Part], *, trust_remote_code: bool = False) -> Any:
    """Build a causal language model whose weights are read when they are needed.

    Args:
        directory: holds config.json.
        parts: by the names that the files have for them.

    Raises:
        NotStreamable: some weights would have to be in memory as a whole.
        EnvironmentProblem: transformers is not installed.
    """
    build = partial(empty_model, directory, trust_remote_code=trust_remote_code, needed_for="the proof of a merge")
    try:
        try:
            model = build(attention="sdpa")
        except ValueError:  # architectures that change the attention scores have no fused kernel
            model = build(attention="eager")
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise NotStreamable(f"transformers cannot build it without its weights: {error}") from None
    model.requires_grad_(False)
    model.eval()
    with torch.no_grad():
        _wire(model, parts)
    return model


def _wire(model: Any, parts: Mapping[str, Part]) -> None:
    """Let every weight come from its file."""
    names = dict(model.named_parameters(remove_duplicate=False))
    scratch = Scratch()
    found = {name: _part_of(name, parts, model.base_model_prefix) for name in names}
    by_identity = {id(names[name]): part for name, part in found.items() if part is not None}
    for name, parameter in names.items():
        part = found[name] or by_identity.get(id(parameter))
        if part is None:
            raise NotStreamable(f"the files have no {name!r}")
        module_name, _, attribute = name.rpartition(".")
        module = model.get_submodule(module_name)
        if attribute == "weight" and _is_linear(module):
            if found[name] is None and part.read_change is not None:  # an embedding that is the head, too
                part = dataclasses.replace(part, read_change=_turned(part.read_change))
            bias = names.get(f"{module_name}.bias")
            turned = is_transposed(module)
            streamed = StreamedLinear(part, transposed=turned, bias=bias, weight=parameter, scratch=scratch)
            _set(model, module_name, streamed)
        elif attribute == "weight" and isinstance(module, nn.Embedding):
            module.padding_idx = None  # rows are renumbered
            module.register_forward_pre_hook(_Rows(part))
        elif part.read_change is not None or part.quantised_from is not None or parameter.is_meta:
            raise NotStreamable(f"{name!r} is part of a {type(module).__name__}")
        elif tuple(parameter.shape) != part.info.shape:
            raise NotStreamable(f"{name!r} has the shape {tuple(parameter.shape)} in the model")
        else:
            parameter.data.copy_(read_tensor(part.info))
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise NotStreamable(f"the buffer {name!r} is large")
        part = parts.get(name)
        if part is not None and tuple(buffer.shape) == part.info.shape:
            buffer.copy_(read_tensor(part.info))


def _part_of(name: str, parts: Mapping[str, Part], prefix: str) -> Part | None:
    found = file_name_of(name, parts, prefix)
    return None if found is None else parts[found]


def _turned(read_change: Callable[[], Change]) -> Callable[[], Change]:
    return lambda: read_change().turned()


def _is_linear(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward or is_transposed(module)


def _set(model: Any, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


class StreamedLinear(nn.Module):
    """x·Wᵀ + bias of a weight in a file, and what adapters add to it.

    Shapes: N the layer's inputs, n those of an aside, M both, I features in, O out, r rank.
    """

    def __init__(
        self,
        part: Part,
        *,
        transposed: bool,
        bias: nn.Parameter | None = None,
        weight: nn.Parameter | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        super().__init__()
        self._part, self._is_transposed = part, transposed
        self._scratch = scratch or Scratch()
        self.bias = bias
        self.weight = weight  # some models ask for its number format; it may have no memory

    def forward(self, x: Tensor) -> Tensor:
        x_NI, aside = x.reshape(-1, x.shape[-1]), self._part.aside
        y_OM = self._products(x_NI if aside is None else torch.cat([x_NI, aside.x_nI]))
        y_NO = y_OM[:, : len(x_NI)].T.contiguous()
        if self.bias is not None:
            y_NO += self.bias
        return y_NO.view(*x.shape[:-1], y_NO.shape[1])

    def _products(self, x_MI: Tensor) -> Tensor:
        """Return W'·xᵀ, (out, M): that way round every part of W gives a part of the memory."""
        change, watch, aside = self._change(), self._part.watch, self._part.aside
        x_IM, low_rM = x_MI.T.contiguous(), change.low(x_MI).T if change else None
        squared_I = aside.x_nI.square().sum(0) if aside else None
        y_OM = torch.empty(self._shape()[0], len(x_MI))
        plain_OM = torch.empty_like(y_OM) if watch else None
        squares = 0.0
        for rows, weight in self._chunks():
            y = torch.mm(weight, x_IM, out=y_OM[rows])
            if plain_OM is not None:
                plain_OM[rows] = y
            if change is not None and low_rM is not None:
                _adapt(y, weight, low_rM, change.of_rows(rows))
            if squared_I is not None:
                squares += float(weight.square_().mv(squared_I).sum(dtype=torch.float64))
        if watch and plain_OM is not None:
            watch(x_MI, plain_OM, y_OM)
        if aside:
            aside.take(y_OM[:, len(x_MI) - len(aside.x_nI) :], squares)
        return y_OM

    def _change(self) -> Change | None:
        return self._part.read_change() if self._part.read_change else None

    def _shape(self) -> tuple[int, int]:
        first, second = self._part.info.shape
        return (second, first) if self._is_transposed else (first, second)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the weight, (out, in), some outputs at a time, in float32, and in memory that the next takes over."""
        num_outputs, num_inputs = self._shape()
        whole = self._whole() if self._is_transposed or self._part.quantised_from else None
        step = max(1, _CHUNK_ELEMENTS // max(1, num_inputs))
        for begin in range(0, num_outputs, step):
            end = min(begin + step, num_outputs)
            read = whole[begin:end] if whole is not None else read_rows(self._part.info, begin, end, self._scratch)
            weight = self._scratch.take("wide", read.numel(), torch.float32).view(read.shape)
            yield slice(begin, end), weight.copy_(read)

    def _whole(self) -> Tensor:
        weight = read_tensor(self._part.info)
        if self._part.quantised_from is not None:
            weight = round_trip(weight.to(self._part.quantised_from))
        return weight.T if self._is_transposed else weight


def _adapt(y: Tensor, weight: Tensor, low_rM: Tensor, change: Change) -> None:
    """Turn W·xᵀ into W'·xᵀ for some outputs, from s·A·xᵀ: nothing is folded. DoRA's norms take the weight's memory."""
    y.addmm_(change.B, low_rM)
    if change.magnitude is not None:
        moved = weight.addmm_(change.B, change.A, alpha=change.scaling)
        y *= (change.magnitude / row_norms(moved)).view(-1, 1)


class _Rows:
    """Gives an embedding the rows that it is asked for, under new numbers."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __call__(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        unique, local = args[0].unique(return_inverse=True)
        rows = [read_rows(self._part.info, row, row + 1) for row in unique.tolist()]
        weight = torch.cat(rows).to(torch.float32)
        if self._part.read_change is not None:
            change = self._part.read_change()  # A is (r, vocabulary)
            weight += change.A[:, unique].T @ change.B.T * change.scaling
        module.weight = nn.Parameter(weight, requires_grad=False)
        return (local, *args[1:])


def streamed_logits(model: Any, prompts: list[list[int]]) -> list[Tensor]:
    """Return the logits of each prompt, (tokens, vocabulary), float32. All pass through the model together."""
    longest = max(map(len, prompts))
    # Shorter ones get other tokens behind them, which attention to the past does not see.
    ids = torch.tensor([[*prompt, *[prompt[-1]] * (longest - len(prompt))] for prompt in prompts])
    with torch.no_grad():
        logits_BTV: Tensor = model(input_ids=ids, use_cache=False).logits
    return [logits_BTV[row, : len(prompt)] for row, prompt in enumerate(prompts)]
