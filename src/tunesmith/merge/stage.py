"""The pipeline's merge: what training left becomes a whole model in Hugging Face's layout.

An adapter that was trained on a 4-bit base saw the weights after NF4. Whether it is folded onto those or onto the
original ones is measured on rows of the run. `train/final/quantised.json` names the layers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.artifacts import Checkpoint, Dataset, Weights
from tunesmith.merge.job import Job, largest_format, merge, quantised_layers
from tunesmith.merge.standalone import probes_for
from tunesmith.model.headers import read_headers
from tunesmith.model.locate import locate
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root

if TYPE_CHECKING:
    from tunesmith.merge.proof import Probe


def run(recipe: Recipe, run_dir: RunDir) -> Weights:
    """Make `merge/model`, a whole model in Hugging Face's layout.

    Raises:
        MergeError: adapter and base do not fit, or the merged model does not compute what base and adapter do.
        ModelError: a file is missing or damaged.
        StageError: the merged model would read other tokens than in training.
    """
    checkpoint = run_dir.load(Checkpoint)
    for leftover in run_dir.stage("merge").glob(f".{run_dir.merged.name}.*.*"):  # of a merge that was killed at its end
        shutil.rmtree(leftover, ignore_errors=True)
    merged = merge(_job(recipe, run_dir, checkpoint))
    return Weights(
        path=run_dir.relative(run_dir.merged),
        base_model=checkpoint.base_model,
        files=merged.files,
        num_bytes=merged.num_bytes,
        proof=merged.proof,
        template_fingerprint=merged.template_fingerprint,
    )


def _job(recipe: Recipe, run_dir: RunDir, checkpoint: Checkpoint) -> Job:
    base, trained = locate(recipe.model, recipe.output_dir), run_dir.absolute(checkpoint.path)
    is_whole = checkpoint.method == "full"
    layers, quantised_from = quantised_layers(trained)
    return Job(
        source=trained if is_whole else base,
        target=run_dir.merged,
        adapters=() if is_whole else (trained,),
        companions=(trained,),
        make_probes=lambda merged, num_tokens: _probes(run_dir, merged, num_tokens),
        dtype=_dtype(recipe, base, trained) if is_whole else recipe.merge.dtype,
        max_shard_bytes=int(recipe.merge.max_shard_gib * 2**30),
        fold_onto=recipe.merge.fold_onto,
        quantised_layers=layers,
        quantised_from=quantised_from,
        trust_remote_code=recipe.model.trust_remote_code,
        probes_key=dataset.key if (dataset := run_dir.find(Dataset)) else "",
        remembered=files.HashCache(cache_root(recipe.output_dir) / "hashes.json").known,
    )


def _dtype(recipe: Recipe, base: Path, trained: Path) -> str:
    """Return the number format of a model that was trained whole: the base's, unless the recipe says another."""
    from tunesmith.merge.plan import SHORT_NAMES

    if recipe.merge.dtype != "model":
        return recipe.merge.dtype
    most = largest_format(read_headers(base))
    dtype = next((name for name, short in SHORT_NAMES.items() if short == most), "float32")
    return "model" if {info.dtype for info in read_headers(trained).values()} <= {SHORT_NAMES[dtype]} else dtype


def _probes(run_dir: RunDir, merged: Path, num_tokens: int) -> list[Probe]:
    """Return a few real rows, or the fixed conversations where nothing was trained here."""
    dataset = run_dir.find(Dataset)
    if dataset is None:
        return probes_for(merged, num_tokens, None)
    return list(_rows(run_dir, dataset, num_tokens))


def _rows(run_dir: RunDir, dataset: Dataset, num_tokens: int) -> Iterator[Probe]:
    """Yield the ends of a few rows, held-out ones when there are any."""
    from tunesmith.merge.proof import NUM_PROBES, Probe
    from tunesmith.tokens.shards import Shards

    shards = Shards(run_dir.absolute(dataset.validation or dataset.train))
    if not len(shards):
        shards = Shards(run_dir.absolute(dataset.train))
    for row in range(min(NUM_PROBES, len(shards))):
        ids: list[int] = []
        trained: list[bool] = []
        for segment in range(min(2, shards.num_segments)):
            found = shards.segment(row, segment)
            ids += found[0].tolist()
            trained += found[1].tolist()
        # Of long rows the last tokens that have a loss: the answer is what the adapter was trained on.
        end = max((place for place, flag in enumerate(trained) if flag), default=len(ids) - 1) + 1
        begin = max(0, end - num_tokens)
        yield Probe(ids[begin:end], [bool(flag) for flag in trained[begin:end]])
