"""What happens to each tensor, from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import MergeError, nearest
from tunesmith.model.adapter_mix import Mix, Share
from tunesmith.model.headers import TensorInfo
from tunesmith.model.weights import FLOATS, Planned

SHORT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight")
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")
_TRANSPOSED_TYPES = ("gpt2", "openai-gpt")  # their linear layers store (in, out)
_DO = "is this the base model that the adapter was trained on?"


@dataclass(frozen=True)
class Operation:
    """What happens to one tensor: read from `source`'s file, taken through NF4, changed, and cast.

    Attributes:
        shares: what adapters add; empty for none.
        is_transposed: the matrix is stored (in, out), or is an embedding: (vocabulary, out).
    """

    planned: Planned
    source: TensorInfo
    shares: tuple[Share, ...] = ()
    is_transposed: bool = False
    is_quantised: bool = False

    @property
    def is_copy(self) -> bool:
        return not self.shares and not self.is_quantised and self.planned.dtype == self.source.dtype


@dataclass(frozen=True)
class Plan:
    """Every tensor that is written, by name, in the order of the base's files, and what changes in config.json."""

    operations: dict[str, Operation]
    is_untied: bool = False
    vocab_size: int | None = None  # of resized embeddings


def plan(
    tensors: Mapping[str, TensorInfo],
    mix: Mix | None,
    *,
    dtype: str,
    model_type: str = "",
    quantised: tuple[str, ...] = (),
) -> Plan:
    """Work out the operation for every tensor.

    Args:
        tensors: of the base, or of a model that was trained whole (without a mix).
        dtype: `model` keeps each tensor's own.
        quantised: modules that go through NF4 first.

    Raises:
        MergeError: the adapter has a tensor for which the base has none, or of another shape.
    """
    sources = dict(tensors)
    untied = _untie(sources, mix) if mix else False
    if mix:
        _replace(sources, mix, may_untie=untied)
    shares = {
        _weight_of(layer, sources): found
        for layer, found in (mix.layers.items() if mix else ())
        if not (mix and mix.keeps_ties and _HEAD.fullmatch(f"{layer}.weight") and f"{layer}.weight" not in sources)
    }
    four_bit = {_weight_of(layer, sources) for layer in quantised}
    operations = {}
    for name, info in sources.items():
        kept = dtype == "model" or info.dtype not in FLOATS
        # What an adapter holds whole takes the format of the base's tensor.
        own = tensors.get(name, info).dtype
        planned = Planned(name, own if kept else SHORT_NAMES[dtype], info.shape)
        operation = Operation(planned, info, shares.get(name, ()), is_quantised=name in four_bit)
        operations[name] = _oriented(operation, mix, model_type)
    return Plan(operations, untied, _new_vocabulary(tensors, sources))


def _oriented(operation: Operation, mix: Mix | None, model_type: str) -> Operation:
    """Say which way round the matrix is stored.

    Raises:
        MergeError: the adapter does not fit it.
    """
    if not operation.shares or mix is None:
        return operation
    name = operation.planned.name
    layer = operation.shares[0].layer
    outer = (layer.parts["B"].shape[0], layer.parts["A"].shape[1])
    may_turn = layer.on_embedding or mix.fan_in_fan_out or model_type in _TRANSPOSED_TYPES
    turned = may_turn and not _HEAD.fullmatch(name)
    stored = operation.planned.shape
    if len(stored) != 2 or tuple(stored) != (outer[::-1] if turned else outer):
        what = f"{name!r} is {tuple(stored[::-1] if turned else stored)} in the base and {outer} in the adapter"
        raise MergeError(what, do=_DO)
    return Operation(operation.planned, operation.source, operation.shares, turned, operation.is_quantised)


# ── Names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _weight_of(layer: str, tensors: Mapping[str, TensorInfo]) -> str:
    found = _tensor_of(f"{layer}.weight", tensors)
    if found is None:
        near = nearest(f"{layer}.weight", list(tensors))
        do = f"{_DO} Its nearest tensor is {near}" if near else _DO
        raise MergeError(f"the base model has no weight for the adapted layer {layer!r}", do=do)
    return found


def _tensor_of(name: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return what a file calls a tensor. Files of some families leave out, or add, the first part of a name."""
    if name in tensors:
        return name
    endings = [other for other in tensors if other.endswith(f".{name}") or name.endswith(f".{other}")]
    return endings[0] if len(endings) == 1 else None


# ── Whole modules, ties, sizes ───────────────────────────────────────────────────────────────────────────────────────


def _untie(sources: dict[str, TensorInfo], mix: Mix) -> bool:
    """Give the output head a tensor of its own where the base's embedding is it, too, and the adapter parts them."""
    embedding = next((name for name in sources if _EMBEDDING.fullmatch(name)), None)
    if embedding is None or any(_HEAD.fullmatch(name) for name in sources):
        return False
    adapted = [f"{layer}.weight" for layer in mix.layers]
    touched = [name for name in (*mix.whole, *adapted) if _HEAD.fullmatch(name) or _EMBEDDING.fullmatch(name)]
    if not touched or mix.keeps_ties:
        return False
    head = next((name for name in touched if _HEAD.fullmatch(name)), "lm_head.weight")
    if not any(name in adapted for name in touched) and _are_equal(mix, head):
        return False
    # PEFT saves the matrix below an adapted embedding with it; the head is that matrix, without the adapter.
    below = next((mix.whole[name] for name in mix.whole if _EMBEDDING.fullmatch(name) and name in adapted), None)
    sources[head] = below or sources[embedding]
    return True


def _are_equal(mix: Mix, head: str) -> bool:
    """Return whether an adapter holds one matrix as embedding and as head: PEFT saves tied ones twice."""
    embedding = next((info for name, info in mix.whole.items() if _EMBEDDING.fullmatch(name)), None)
    other = mix.whole.get(head)
    if embedding is None or other is None or (embedding.shape, embedding.dtype) != (other.shape, other.dtype):
        return False
    from tunesmith.model.weights import read_rows

    step = max(1, (8 << 20) // max(1, embedding.shape[1]))
    places = range(0, embedding.shape[0], step)
    pairs = ((begin, min(begin + step, embedding.shape[0])) for begin in places)
    return all(read_rows(embedding, *pair).equal(read_rows(other, *pair)) for pair in pairs)


def _replace(sources: dict[str, TensorInfo], mix: Mix, *, may_untie: bool) -> None:
    """Let the tensors of modules that were trained whole take the place of the base's."""
    has_head = any(_HEAD.fullmatch(name) for name in sources)
    for name, info in mix.whole.items():
        own = _tensor_of(name, sources)
        if own is None and _HEAD.fullmatch(name) and not has_head and not may_untie:
            continue  # of tied modules the base's files hold one, the adapter's both
        resized = own is not None and (_EMBEDDING.fullmatch(own) or _HEAD.fullmatch(own))
        fits = own is not None and sources[own].shape[1 if resized else 0 :] == info.shape[1 if resized else 0 :]
        if own is None or not fits:
            raise MergeError(f"the base model has no tensor {name!r} of the shape {info.shape}", do=_DO)
        sources[own] = info


def _new_vocabulary(before: Mapping[str, TensorInfo], after: Mapping[str, TensorInfo]) -> int | None:
    """Return the number of rows of resized embeddings, None when they are as before.

    Raises:
        MergeError: embedding and head have different numbers of rows now.
    """
    sizes = {name: info.shape[0] for name, info in after.items() if _EMBEDDING.fullmatch(name) or _HEAD.fullmatch(name)}
    if all(before[name].shape[0] == size for name, size in sizes.items() if name in before):
        return None
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size:,}" for name, size in sizes.items())
        raise MergeError(f"embedding and output head differ in their rows: {told}", do="save the adapter with both")
    return next(iter(sizes.values()))


def config_after(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return config.json for the merged weights: their number format, size of vocabulary, and tie."""
    merged = {k: v for k, v in config.items() if k not in ("torch_dtype", "quantization_config")}
    formats = {operation.planned.dtype for operation in plan.operations.values()}
    dtype = next((name for name, short in SHORT_NAMES.items() if short in formats), None)
    if isinstance(merged.get("text_config"), dict):
        merged["text_config"] = dict(merged["text_config"])
    for part in (merged, merged.get("text_config")):
        if not isinstance(part, dict):
            continue
        if dtype:
            part["dtype"] = dtype
        if plan.vocab_size is not None and "vocab_size" in part:
            part["vocab_size"] = plan.vocab_size
        if plan.is_untied:
            part["tie_word_embeddings"] = False
    return merged
