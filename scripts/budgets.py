"""Hold the house's budgets: file and function length, parameters, fields of the recipe. Each exception has a reason."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7
# Evaluation has several benchmarks with protocols of their own, a judge, named sets: each key is documented in place.
RECIPE_FIELDS = 150

EXCEPTIONS = {
    "src/tunesmith/recipe/schema.py": "600 lines: one class per section, read top to bottom",
}


def problems() -> Iterator[str]:
    """Yield every place over a budget."""
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        num_lines = text.count("\n")
        limit = 600 if name in EXCEPTIONS else FILE_LINES
        if num_lines > limit:
            yield f"{name}: {num_lines} lines, at most {limit}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _function(name, node)
    num_fields = recipe_fields()
    if num_fields > RECIPE_FIELDS:
        yield f"the recipe has {num_fields} fields, at most {RECIPE_FIELDS}"


def _function(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if length > FUNCTION_LINES:
        yield f"{name}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    num = len([a for a in arguments if a.arg not in ("self", "cls")])
    if num > PARAMETERS:
        yield f"{name}:{node.lineno}: {node.name} has {num} parameters, at most {PARAMETERS}"


def recipe_fields() -> int:
    """Return the number of keys a recipe can have, sections not counted."""
    import dataclasses

    from tunesmith.recipe import schema
    from tunesmith.recipe.typed import dataclass_of, hints

    classes = [c for c in vars(schema).values() if isinstance(c, type) and c.__module__ == schema.__name__]
    return sum(dataclass_of(h) is None for c in classes if dataclasses.is_dataclass(c) for h in hints(c).values())


def main() -> int:
    found = list(problems())
    print("\n".join(found) if found else f"budgets hold; the recipe has {recipe_fields()} of {RECIPE_FIELDS} fields")
    return 1 if found else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(main())
