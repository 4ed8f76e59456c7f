"""The JSON Schema says the same as the reader: what one takes, the other takes."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from tests.recipe_cases.expected import CASES
from tunesmith.recipe.json_schema import field_docs, json_schema
from tunesmith.recipe.load import load, read_yaml
from tunesmith.recipe.typed import all_key_paths

ROOT = Path(__file__).parent.parent.parent.parent
# Rules across fields, secrets, and YAML itself are beyond what a JSON Schema can say.
BY_SCHEMA = [
    name for name, (_, what, _) in CASES.items() if any(w in what for w in ("unknown key", "must be", "missing"))
]


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_fit_the_schema(path: Path) -> None:
    jsonschema.validate(read_yaml(path)[0], json_schema())


@pytest.mark.parametrize("name", BY_SCHEMA)
def test_broken_recipes_do_not_fit_the_schema(name: str) -> None:
    path = ROOT / "tests" / "recipe_cases" / f"{name}.yaml"
    document = read_yaml(path)[0]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())


def test_every_field_is_documented() -> None:
    assert [path for path in all_key_paths() if not _documented(path)] == []


def _documented(path: str) -> bool:
    name = path.split(".")[-1]
    sections = {"model", "data", "train", "merge", "serve", "evaluate", "bench", "report", "publish", "track"}
    nested = {"lora", "dpo", "text", "function_calls", "bfcl", "judge", "lm_eval", "targets", "hub", "mlflow", "wandb"}
    return name in sections | nested or any(field == name for _, field in field_docs())


def test_shipped_recipes_load() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        load(path)
