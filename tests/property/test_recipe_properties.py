"""Recipes survive being written and read, whatever is in them; broken documents give problems, never crashes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe.dump import dump_recipe, dump_yaml
from tunesmith.recipe.load import load
from tunesmith.recipe.typed import all_key_paths

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda t: "${env:" not in t
)
SCALARS = st.none() | st.booleans() | st.integers(-5, 500) | st.floats(allow_nan=False, width=32) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
OPTIONS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def loaded(text: str) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path).recipe


@OPTIONS
@given(TEXT, TEXT, st.floats(1e-9, 1.0), st.integers(1, 512), st.lists(TEXT, min_size=1, max_size=3))
def test_round_trip(model: str, title: str, rate: float, rank: int, paths: list[str]) -> None:
    document = {
        "name": "t",
        "model": {"name_or_path": model},
        "data": {"train": paths},
        "train": {"learning_rate": rate, "lora": {"r": rank}},
        "report": {"title": title},
    }
    try:
        recipe = loaded(dump_yaml(document))
    except RecipeError as error:  # a text that looks like a credential
        assert "secret" in str(error)
        return
    assert loaded(dump_recipe(recipe)) == recipe
    assert recipe.train.learning_rate == rate and recipe.report.title == title


@OPTIONS
@given(st.dictionaries(st.sampled_from(all_key_paths()), VALUES, min_size=1, max_size=4))
def test_any_value_anywhere_gives_a_recipe_or_problems(changes: dict[str, Any]) -> None:
    document: dict[str, Any] = {"name": "t", "model": "m", "data": {"train": "rows.jsonl"}}
    for path, value in changes.items():
        node: Any = document
        *above, last = path.split(".")
        for part in above:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[last] = value
    try:
        loaded(dump_yaml(document))
    except RecipeError as error:
        assert error.problems and all(problem.what for problem in error.problems)
