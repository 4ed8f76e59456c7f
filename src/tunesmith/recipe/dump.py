"""A recipe as YAML that `load` reads back equal."""

from __future__ import annotations

from typing import Any

import yaml

from tunesmith.recipe.load import core_resolvers
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.walk import plain


class _CoreDumper(yaml.SafeDumper):
    """Quotes exactly the texts that the loader's rules would read as something else."""

    yaml_implicit_resolvers = core_resolvers()


def dump_yaml(document: Any) -> str:
    """Return plain data as YAML, keys in their order."""
    return yaml.dump(document, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=110)


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe with every default written out. Environment references stay references."""
    return dump_yaml(plain(recipe))
