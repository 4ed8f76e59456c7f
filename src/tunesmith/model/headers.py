"""What a checkpoint holds, read from the heads of its files: no tensor is loaded and no ML library imported.

A safetensors file begins with 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape,
start and end in bytes after the header), then the data: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.frozen import frozen
from tunesmith.recipe.facts import Linear, Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_LARGEST_HEADER_BYTES = 100 << 20  # the limit of the safetensors library


@frozen
class TensorInfo:
    """Where a tensor lies. `start` and `end` count bytes from the beginning of `file`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@frozen
class ModelFacts:
    """What can be known of a model without loading it. 0 or None means that config.json does not say."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int | None
    dtype: str | None
    architecture: str
    tied: bool
    activation: str = ""
    transposed: bool = False
    linears: tuple[Linear, ...] = ()
    others: tuple[Tensor, ...] = ()


def read_config(path: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint directory.

    Raises:
        ModelError: the directory is no checkpoint.
    """
    file = path / "config.json"
    if not file.is_file():
        if (path / "adapter_config.json").is_file():
            do = "give the model it was trained on, or merge it first"
            raise ModelError("this is an adapter, not a whole model", where=str(path), do=do)
        do = "give a directory with config.json and *.safetensors, as save_pretrained writes it"
        raise ModelError("this directory is not a model checkpoint: it has no config.json", where=str(path), do=do)
    return _json(file)


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, those its index names or the single one.

    Raises:
        ModelError: there are none, or a shard that the index names is missing.
    """
    index = path / INDEX
    if index.is_file():
        names = _json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ModelError("the index has no weight_map", where=str(index), do="copy the checkpoint again")
        shards = sorted(set(map(str, names.values())))
        missing = [name for name in shards if not (path / name).is_file()]
        if missing:
            what = f"{len(missing)} of {len(shards)} weight files are missing, first {missing[0]}"
            raise ModelError(what, where=str(path), do="copy the checkpoint again")
        return [path / name for name in shards]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in path.glob(pattern))
    if others:
        do = "convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        raise ModelError(f"the weights are not in safetensors ({others[0]})", where=str(path), do=do)
    raise ModelError("the checkpoint has no weights (model.safetensors)", where=str(path), do="copy it again, wholly")


def read_headers(path: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a checkpoint directory by name.

    Raises:
        ModelError: a file is missing, cut short or damaged, or the index names tensors that no file holds.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        tensors |= read_header(file)
    index = path / INDEX
    if index.is_file():
        absent = sorted(set(_json(index)["weight_map"]) - set(tensors))
        if absent:
            what = f"{len(absent)} tensors of the index are in no file, first {absent[0]}"
            raise ModelError(what, where=str(index), do="copy the checkpoint again")
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return every tensor of one safetensors file by name.

    Raises:
        ModelError: the file is missing, cut short or damaged.
    """
    do = "copy the checkpoint again"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 2 <= length <= min(_LARGEST_HEADER_BYTES, size - 8):
                raise ModelError("the file is cut short or not safetensors", where=str(file), do=do)
            document = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error.strerror}", where=str(file), do=do) from None
    except ValueError:
        raise ModelError("the safetensors header is damaged", where=str(file), do=do) from None
    tensors = {}
    begin = 8 + length
    for name, entry in document.items():
        if name != "__metadata__":
            tensors[name] = _tensor(name, entry, file, begin)
    end = max((tensor.end for tensor in tensors.values()), default=begin)
    if end > size:
        raise ModelError(f"the file is cut short: it has {size:,} bytes of {end:,}", where=str(file), do=do)
    if end < size:
        raise ModelError(f"the file has {size:,} bytes, and its header speaks of {end:,}", where=str(file), do=do)
    _check_no_gaps(tensors, file, begin)
    return tensors


def _check_no_gaps(tensors: dict[str, TensorInfo], file: Path, begin: int) -> None:
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != begin:
            what = f"the safetensors header is damaged: {name!r} does not begin where the tensor before it ends"
            raise ModelError(what, where=str(file), do="copy the checkpoint again")
        begin = tensor.end


def _tensor(name: str, entry: Any, file: Path, begin: int) -> TensorInfo:
    try:
        start, end = (int(offset) for offset in entry["data_offsets"])
        info = TensorInfo(str(entry["dtype"]), tuple(map(int, entry["shape"])), file, begin + start, begin + end)
        fits = 0 <= start <= end and BITS[info.dtype] * info.num_elements == 8 * (end - start)
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ModelError(
            f"the safetensors header is damaged at {name!r}", where=str(file), do="copy the checkpoint again"
        )
    return info


def model_facts(path: Path) -> ModelFacts:
    """Return what config.json and the headers say about a model.

    Raises:
        ModelError: the directory is missing, no checkpoint, or damaged.
    """
    config = read_config(path)
    text = text_config(config)
    tensors = read_headers(path)
    floats = [tensor for tensor in tensors.values() if tensor.dtype in _NAMES]
    largest = max(floats, key=lambda tensor: tensor.num_elements, default=None)
    linears = tuple(linear_layers(tensors, config).values())
    matrices = {f"{linear.name}.weight" for linear in linears}
    architectures = config.get("architectures") or []
    dtype = config.get("dtype", config.get("torch_dtype", text.get("dtype")))
    return ModelFacts(
        num_parameters=sum(tensor.num_elements for tensor in floats),
        num_layers=_number(text, "num_hidden_layers", "n_layer", "num_layers"),
        hidden_size=_number(text, "hidden_size", "n_embd", "d_model"),
        vocab_size=_number(text, "vocab_size"),
        max_position_embeddings=_number(text, "max_position_embeddings", "n_positions") or None,
        dtype=_NAMES[largest.dtype] if largest else dtype if isinstance(dtype, str) else None,
        architecture=str(architectures[0]) if architectures else str(config.get("model_type", "unknown")),
        tied=not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in tensors),
        activation=_activation(text),
        transposed=config.get("model_type") in _TRANSPOSED,
        linears=linears,
        others=tuple(Tensor(name, info.num_elements) for name, info in tensors.items() if name not in matrices),
    )


_TRANSPOSED = ("gpt2", "openai-gpt")  # their linear layers (transformers' Conv1D) store (in, out)
_NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "norm", "conv1d", "router")


def linear_layers(tensors: dict[str, TensorInfo], config: dict[str, Any]) -> dict[str, Linear]:
    """Return what looks like a linear layer, by name: a matrix that is neither embedding nor head."""
    transposed = config.get("model_type") in _TRANSPOSED
    return {linear.name: linear for linear in _linears(tensors, transposed=transposed)}


def _linears(tensors: dict[str, TensorInfo], *, transposed: bool) -> Iterator[Linear]:
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module != name and len(tensor.shape) == 2 and not any(part in name for part in _NOT_LINEAR):
            num_outputs, num_inputs = reversed(tensor.shape) if transposed else tensor.shape
            yield Linear(module, num_outputs, num_inputs)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of config.json that describes the language model (of a model with several parts)."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _number(config: dict[str, Any], *names: str) -> int:
    found = (config[name] for name in names if isinstance(config.get(name), int))
    return next(found, 0)


def _activation(config: dict[str, Any]) -> str:
    found = (config[name] for name in ("hidden_act", "activation_function", "hidden_activation") if config.get(name))
    return str(next(found, ""))


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error.strerror}", where=str(file)) from None
    except ValueError as error:
        raise ModelError(
            f"the file is not valid JSON: {error}", where=str(file), do="copy the checkpoint again"
        ) from None
    if not isinstance(document, dict):
        raise ModelError("the file holds no JSON object", where=str(file), do="copy the checkpoint again")
    return document
