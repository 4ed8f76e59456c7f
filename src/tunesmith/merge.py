"""Fold the adapter into the base weights: plan from names alone, stream tensor by tensor, then prove it.

Modules that were trained whole take the place of the base's.

An adapter that was trained on a 4-bit base is folded onto what was left of the weights after NF4, not onto the original
ones: that is the model whose loss went down. `train/final/quantised.json` names the layers.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.artifacts import Checkpoint, Dataset, Weights
from tunesmith.errors import MergeError
from tunesmith.hardware import probe
from tunesmith.model.headers import INDEX, TensorInfo, read_config, read_headers, weight_files
from tunesmith.model.locate import locate
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir
from tunesmith.track.console import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.model.adapter_files import Adapter
    from tunesmith.model.weights import Planned

MANIFEST = "manifest.json"
_QUANTISED = "quantised.json"
_SHORT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def run(recipe: Recipe, run_dir: RunDir) -> Weights:
    """Make `merge/model`, a whole model in Hugging Face's layout.

    Raises:
        MergeError: adapter and base do not fit, or the merged model does not compute what base and adapter do.
        ModelError: a file is missing or damaged.
    """
    from tunesmith.model.companions import copy_companions
    from tunesmith.tokens.fingerprint import check_probes, probes_of

    checkpoint = run_dir.load(Checkpoint)
    base, trained = locate(recipe.model, recipe.output_dir), run_dir.absolute(checkpoint.path)
    key = _key(recipe, trained, base)
    done = _finished(run_dir, checkpoint, key)
    if done is not None:
        return done
    for leftover in run_dir.stage("merge").glob(f".{run_dir.merged.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with files.writing_directory(run_dir.merged) as directory:
        digests = _write_weights(recipe, checkpoint, base, trained, directory)
        copy_companions(trained, directory)
        template = check_probes(probes_of(directory, "model"), trained, stage="merge", where=directory)
        source = trained if checkpoint.method == "full" else base
        files.write_json(directory / "config.json", _config(source, directory))
        proof = prove(recipe, run_dir, checkpoint, base, directory)
        others = [path for path in sorted(directory.iterdir()) if path.is_file() and path.name not in digests]
        digests |= {path.name: files.sha256(path) for path in others}
        num_bytes = sum(path.stat().st_size for path in directory.iterdir())
        manifest = {"key": key, "files": digests, "num_bytes": num_bytes, "proof": proof}
        manifest |= {"template_fingerprint": template}
        files.write_json(directory / MANIFEST, manifest)
    return _record(run_dir, checkpoint, manifest)


def _key(recipe: Recipe, trained: Path, base: Path) -> str:
    """Return the hash of what decides the merged weights."""
    described = [trained / "adapter_config.json", trained / _QUANTISED]  # scale, patterns, what was in 4 bits
    moved = [*sorted(trained.glob("*.safetensors")), *(path for path in described if path.is_file())]
    hashes = [[path.name, files.sha256(path)] for path in moved]
    still = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weight_files(base)]
    return files.fingerprint([hashes, still, recipe.merge.dtype, recipe.merge.max_shard_gib, recipe.model.dtype])


def _finished(run_dir: RunDir, checkpoint: Checkpoint, key: str) -> Weights | None:
    """Return the record of a merge that came to its end but was not taken up."""
    try:
        manifest = json.loads((run_dir.merged / MANIFEST).read_text())
        if manifest["key"] != key:
            return None
        for name, digest in manifest["files"].items():
            if files.sha256(run_dir.merged / name) != digest:
                return None
        return _record(run_dir, checkpoint, manifest)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(run_dir: RunDir, checkpoint: Checkpoint, manifest: dict[str, Any]) -> Weights:
    return Weights(
        path=run_dir.relative(run_dir.merged),
        base_model=checkpoint.base_model,
        files=manifest["files"],
        num_bytes=manifest["num_bytes"],
        proof=manifest["proof"],
        template_fingerprint=manifest["template_fingerprint"],
    )


def _config(source: Path, merged: Path) -> dict[str, Any]:
    """Return config.json with the number format that the weights have now."""
    config = {k: v for k, v in read_config(source).items() if k not in ("torch_dtype", "quantization_config")}
    formats = {info.dtype for info in read_headers(merged).values()}
    dtype = next((name for name, short in _SHORT_NAMES.items() if short in formats), None)
    parts = [config, *(part for key, part in config.items() if key == "text_config" and isinstance(part, dict))]
    for part in parts if dtype else []:
        part["dtype"] = dtype
    return config


# ── Plan and write ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Operation:
    """What happens to one tensor: read from `info`'s file, folded when `layer` names its adapter, and cast."""

    planned: Planned
    info: TensorInfo
    layer: str | None = None
    quantised: bool = False


def plan(
    tensors: dict[str, TensorInfo], adapter: Adapter | None, quantised: list[str], dtype: str
) -> dict[str, Operation]:
    """Return the operation for every tensor of the base, from names and shapes alone.

    Args:
        quantised: modules that were in NF4 during training.
        dtype: `model` keeps each tensor's own.

    Raises:
        MergeError: the adapter has a tensor for which the base has none.
    """
    from tunesmith.model.weights import FLOATS, Planned

    adapted = {_weight_of(layer, tensors): layer for layer in adapter.layers} if adapter else {}
    four_bit = {_weight_of(layer, tensors) for layer in quantised}
    whole = _whole(tensors, adapter) if adapter else {}
    operations = {}
    for name, info in tensors.items():
        kept = dtype == "model" or info.dtype not in FLOATS
        planned = Planned(name, info.dtype if kept else _SHORT_NAMES[dtype], info.shape)
        operations[name] = Operation(planned, whole.get(name, info), adapted.get(name), name in four_bit)
    return operations


def _weight_of(layer: str, tensors: dict[str, TensorInfo]) -> str:
    found = _tensor_of(f"{layer}.weight", tensors)
    if found is None:
        do = "is this the base model that the adapter was trained on? Tied and fused layers cannot be folded"
        raise MergeError(f"the base model has no weight for the adapted layer {layer!r}", do=do)
    return found


def _tensor_of(name: str, tensors: dict[str, TensorInfo]) -> str | None:
    """Return what a file calls a tensor. Files of some families leave out, or add, the first part of a name."""
    if name in tensors:
        return name
    endings = [other for other in tensors if other.endswith(f".{name}") or name.endswith(f".{other}")]
    return endings[0] if len(endings) == 1 else None


def _whole(tensors: dict[str, TensorInfo], adapter: Adapter) -> dict[str, TensorInfo]:
    """Return where the tensors of modules that were trained whole lie, by the name that the base has for them."""
    found = {}
    for name, info in adapter.whole.items():
        own = _tensor_of(name, tensors)
        if own is None and adapter.keeps_ties:
            continue  # of tied modules the base's files hold one, the adapter's both
        if own is None or tensors[own].shape != info.shape:
            do = "is this the base model that the adapter was trained on?"
            raise MergeError(f"the base model has no tensor {name!r} of the shape {info.shape}", do=do)
        found[own] = info
    return found


def _write_weights(
    recipe: Recipe, checkpoint: Checkpoint, base: Path, trained: Path, directory: Path
) -> dict[str, str]:
    from tunesmith.model.adapter_files import load_adapter
    from tunesmith.model.weights import plan_shards, write_shards

    if checkpoint.method == "full":
        source = read_headers(trained)
        dtype = _full_dtype(recipe, base, source)
        if {info.dtype for info in source.values()} <= {_SHORT_NAMES[dtype]}:
            return _link(trained, directory)
        adapter, operations, cast = None, plan(source, None, [], dtype), "float32"
    else:
        adapter = load_adapter(trained)
        quantised, cast = quantised_layers(trained)
        operations = plan(read_headers(base), adapter, quantised, recipe.merge.dtype)
    shards = plan_shards((o.planned for o in operations.values()), int(recipe.merge.max_shard_gib * 2**30))
    with Progress("merge", len(operations), "tensors") as progress:

        def make(planned: Planned) -> Tensor:
            progress.advance()
            return apply(operations[planned.name], adapter, cast)

        return write_shards(directory, shards, make)


def _full_dtype(recipe: Recipe, base: Path, source: dict[str, TensorInfo]) -> str:
    """Return the number format of a model that was trained as a whole."""
    if recipe.merge.dtype != "model":
        return recipe.merge.dtype
    sizes: dict[str, int] = {}
    for info in read_headers(base).values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.num_elements
    most = max(sizes, key=lambda name: sizes[name])
    return next((name for name, short in _SHORT_NAMES.items() if short == most), "float32")


def _link(trained: Path, directory: Path) -> dict[str, str]:
    for path in [*weight_files(trained), *trained.glob(INDEX)]:
        files.link_or_copy(path, directory / path.name)
    return {path.name: files.sha256(path) for path in directory.iterdir()}


def quantised_layers(trained: Path) -> tuple[list[str], str]:
    """Return the layers that were in NF4 during training, and the number format they were quantised from."""
    path = trained / _QUANTISED
    if not path.is_file():
        return [], "float32"
    document = json.loads(path.read_text())
    return list(document["layers"]), str(document["dtype"])


def apply(operation: Operation, adapter: Adapter | None, quantised_from: str) -> Tensor:
    """Return the merged values of one tensor: folded in float32, rounded once."""
    from tunesmith.model.adapters import fold
    from tunesmith.model.load import DTYPES
    from tunesmith.model.nf4 import round_trip
    from tunesmith.model.weights import TORCH_DTYPES, read_tensor

    weight = read_tensor(operation.info)
    if operation.quantised:
        weight = round_trip(weight.to(DTYPES[quantised_from]))
    if operation.layer is not None and adapter is not None:
        parts = adapter.layers[operation.layer]
        outer = weight.T if adapter.fan_in_fan_out else weight
        if outer.shape != (parts.B.shape[0], parts.A.shape[1]):
            what = f"{operation.layer!r} is {tuple(outer.shape)} in the base and "
            raise MergeError(f"{what}{(parts.B.shape[0], parts.A.shape[1])} in the adapter")
        scaling = adapter.settings.at(operation.layer).scaling
        folded = fold(outer, parts.A, parts.B, scaling, parts.magnitude)
        weight = folded.T if adapter.fan_in_fan_out else folded
    return weight.to(TORCH_DTYPES[operation.planned.dtype])


# ── Prove ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_NUM_PROBES = 4
_PROBE_TOKENS = 64
# Largest difference allowed, as a share of the logits' range. Rounding each weight of a layer to n bits moves its
# output by about 2^-n, and depth multiplies that by a small factor.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}


def prove(recipe: Recipe, run_dir: RunDir, checkpoint: Checkpoint, base: Path, merged: Path) -> dict[str, Any]:
    """Compare the logits of what was trained with those of the merged model on a few rows.

    Raises:
        MergeError: they differ by more than rounding does.
    """
    import dataclasses

    import torch

    from tunesmith.model.adapter_files import load_adapter

    trained = run_dir.absolute(checkpoint.path)
    probes = list(_probes(run_dir))
    merged_dtype = str(read_config(merged).get("dtype", recipe.model.dtype))
    compute = _compute_dtype(recipe, merged)
    settings = dataclasses.replace(recipe.model, dtype=compute)
    adapter = None if checkpoint.method == "full" else load_adapter(trained)
    quantised = quantised_layers(trained)
    before = _logits(base if adapter else trained, settings, probes, adapter=adapter, quantised=quantised)
    after = _logits(merged, settings, probes)
    differences = torch.cat([(a - b).abs().flatten() for a, b in zip(before, after, strict=True)])
    spread = max(float(a.max() - a.min()) for a in before)
    agreement = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(before, after, strict=True)]).float().mean()
    tolerance = max(TOLERANCES[merged_dtype], TOLERANCES[compute])
    largest, allowed = float(differences.max()), tolerance * spread
    proof = {
        "max_difference": largest,
        "mean_difference": float(differences.mean()),
        "logit_range": spread,
        "tolerance": allowed,
        "top1_agreement": float(agreement),
        "num_prompts": len(probes),
        "num_tokens": sum(len(ids) for ids in probes),
        "compute_dtype": compute,
        "merged_dtype": merged_dtype,
        "folded_onto": "the weights after NF4" if quantised[0] else "the base weights",
    }
    if not largest <= allowed:  # also when it is NaN
        what = (
            f"the merged model differs from base + adapter by {largest:.3g} in its logits; "
            f"rounding explains at most {allowed:.3g}"
        )
        raise MergeError(what, where=str(merged), do="nothing was written; please report this with the recipe")
    return proof


def _compute_dtype(recipe: Recipe, merged: Path) -> Any:
    """Return float32 where it fits: rounding in the forward pass would blur what rounding in the weights does."""
    needed = 4 * sum(info.num_elements for info in read_headers(merged).values())
    return "float32" if 2 * needed < probe().device_memory_bytes else recipe.model.dtype


def _probes(run_dir: RunDir) -> Iterator[list[int]]:
    """Yield the beginnings of a few real rows, held-out ones when there are any."""
    from tunesmith.tokens.shards import Shards

    dataset = run_dir.load(Dataset)
    shards = Shards(run_dir.absolute(dataset.validation or dataset.train))
    if not len(shards):
        shards = Shards(run_dir.absolute(dataset.train))
    for row in range(min(_NUM_PROBES, len(shards))):
        ids: list[int] = []
        for segment in range(min(2, shards.num_segments)):
            ids += shards.segment(row, segment)[0].tolist()
        yield ids[:_PROBE_TOKENS]


def _logits(
    path: Path,
    settings: Any,
    probes: list[list[int]],
    *,
    adapter: Adapter | None = None,
    quantised: tuple[list[str], str] = ([], ""),
) -> list[Tensor]:
    """Load a model (with an adapter over it), compute the logits of each prompt, and let go of it."""
    import torch

    from tunesmith.model.adapter_files import put_on
    from tunesmith.model.load import DTYPES, load_model, pick_device
    from tunesmith.model.nf4 import round_trip

    device = pick_device()
    model = load_model(path, settings, four_bit=False, device=device)
    for name in quantised[0]:
        weight = model.get_submodule(name).weight
        weight.data = round_trip(weight.data.to(DTYPES[quantised[1]])).to(weight.dtype)
    if adapter is not None:
        put_on(model, adapter)
    model.eval()
    with torch.no_grad():
        found = [
            model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()
            for ids in probes
        ]
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found
