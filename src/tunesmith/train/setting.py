"""What a training is about: known before PyTorch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.artifacts import Dataset
from tunesmith.recipe.schema import Recipe
from tunesmith.store.run_dir import RunDir


@dataclass(frozen=True)
class Setting:
    """The recipe, and where everything lies.

    Attributes:
        base: directory of the model that training starts from.
        identity: hash of what decides the result.
    """

    recipe: Recipe
    run_dir: RunDir
    dataset: Dataset
    base: Path
    identity: str
