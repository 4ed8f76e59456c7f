"""What is published: file names with where their content is, and a manifest with the hash and size of each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Weights
from tunesmith.errors import PublishError
from tunesmith.publish.card import model_card
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

MANIFEST = "manifest.json"
CARD = "README.md"


@dataclass(frozen=True)
class Package:
    """A model ready to be handed over. `files` maps names to where they lie, the manifest last."""

    name: str
    files: dict[str, Path]
    manifest: dict[str, Any]

    @property
    def manifest_sha256(self) -> str:
        return hashlib.sha256(manifest_bytes(self.manifest)).hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(file["bytes"] for file in self.manifest["files"].values())


def pack(recipe: Recipe, run_dir: RunDir) -> Package:
    """Gather the merged model's files, a model card and the manifest. Reads every file once, to hash it.

    Raises:
        PublishError: the merged model is incomplete, or a file differs from what the merge stage recorded.
    """
    weights = run_dir.load(Weights)
    directory = run_dir.absolute(weights.path)
    # Exactly what the merge stage wrote: a file that someone laid beside it is not the model.
    found = {name: directory / name for name in sorted(weights.files) if (directory / name).is_file()}
    if "config.json" not in found or not any(name.endswith(".safetensors") for name in found):
        do = "remove the merge stage's artifact.json and run the recipe again"
        raise PublishError("the merged model lacks config.json or its weights", where=str(directory), do=do)
    for name in (CARD, MANIFEST):
        found.pop(name, None)  # those of an earlier publication of the base model say nothing about this one
    hashes = {name: files.sha256(path) for name, path in found.items()}
    _check_against_record(weights, hashes, directory)
    card = run_dir.stage("publish") / CARD
    files.write_text(card, model_card(recipe, run_dir))
    found[CARD], hashes[CARD] = card, files.sha256(card)
    manifest = {
        "schema_version": 1,
        "name": recipe.name,
        "run": run_dir.path.resolve().name,
        "files": {name: {"sha256": hashes[name], "bytes": found[name].stat().st_size} for name in sorted(found)},
    }
    found[MANIFEST] = run_dir.stage("publish") / MANIFEST
    files.write_bytes(found[MANIFEST], manifest_bytes(manifest))
    return Package(recipe.name, found, manifest)


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Return the manifest as it is written."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()


def _check_against_record(weights: Weights, hashes: dict[str, str], directory: Path) -> None:
    for name, recorded in weights.files.items():
        if name in (CARD, MANIFEST):
            continue
        if hashes.get(name) != recorded:
            what = "is missing" if name not in hashes else "is not the file that the merge stage wrote"
            do = "remove the merge stage's artifact.json and run the recipe again"
            raise PublishError(f"{name} {what}", where=str(directory), do=do)
