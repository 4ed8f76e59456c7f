"""The YAML head of a model card: what the Hub indexes, with results as `model-index`.

Keys and their values: https://huggingface.co/docs/hub/model-cards#model-card-metadata and, for `model-index`,
https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tunesmith.artifacts import Scores
from tunesmith.publish.naming import is_hub_id
from tunesmith.recipe.schema import Recipe

_INHERITED = ("license", "license_name", "license_link", "language")
_MAX_CARD_CHARACTERS = 1 << 20


def front_matter(recipe: Recipe, scores: Scores | None, from_base: dict[str, Any]) -> str:
    """Return the head with its fences. Metrics are those of the tuned model, on the scale they are recorded in."""
    facts: dict[str, Any] = {"license": "unknown"} | from_base
    facts |= {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", *([recipe.train.objective, recipe.train.method] if recipe.tuned is None else [])],
    }
    if is_hub_id(recipe.model.name_or_path):
        facts["base_model"] = recipe.model.name_or_path
        facts["base_model_relation"] = "finetune"
    data_sets = [source.path for source in recipe.data.train if is_hub_id(source.path)]
    if data_sets:
        facts["datasets"] = data_sets
    results = list(_results(scores)) if scores else []
    if results:
        facts["model-index"] = [{"name": recipe.name, "results": results}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def inherited(model_path: str) -> dict[str, Any]:
    """Return licence and languages from the base model's own card, where it has one beside its weights."""
    try:
        text = (Path(model_path) / "README.md").read_text(encoding="utf-8")[:_MAX_CARD_CHARACTERS]
        head = re.match(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL)
        facts = yaml.safe_load(head.group(1)) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return {key: facts[key] for key in _INHERITED if key in facts} if isinstance(facts, dict) else {}


def _results(scores: Scores) -> Iterator[dict[str, Any]]:
    for task, metrics in scores.tasks.items():
        values = [
            {"type": metric, "name": metric.replace("_", " "), "value": round(float(tuned), 6)}
            for metric, record in metrics.items()
            if isinstance(tuned := record.get("tuned"), int | float)
        ]
        if values:
            slug = re.sub(r"[^A-Za-z0-9]+", "-", task).strip("-").lower() or "task"
            yield {
                "task": {"type": "text-generation", "name": "Text generation"},
                "dataset": {"type": slug, "name": task.replace("_", " ").replace(".", " · ")},
                "metrics": values,
            }
