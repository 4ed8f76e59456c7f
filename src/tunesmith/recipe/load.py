"""A recipe file and what the command line adds to it, read into a `Recipe`, with every problem at its line.

`load` is the door. YAML is read by the 1.2 core rules (`1e-5` is a number, `no` is text); a key given twice is an
error. `extends:` names one other recipe, relative to the file it stands in; mappings are merged, all else is replaced.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import RecipeError, TunesmithError, UsageError
from tunesmith.frozen import frozen
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.typed import KeyPath, Misfit, key_path, read

Marks = dict[KeyPath, str]  # key path -> file:line


@frozen
class Loaded:
    """A recipe, the text it came from and where each key stands."""

    recipe: Recipe
    document: dict[str, Any]  # merged, after `extends` and `--set`, short forms kept
    marks: Marks
    path: Path

    def where(self, path: KeyPath) -> str:
        return _where(self.marks, path, self.path)

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Give mistakes that are found later, by those who know key paths only, the line they stand at."""
        try:
            yield
        except RecipeError as error:
            problems: list[TunesmithError] = []
            for problem in error.problems:
                parts = re.findall(r"[^.\[\]]+", problem.where)
                path = tuple(int(part) if part.isdigit() else part for part in parts)
                problems.append(TunesmithError(problem.what, where=self.where(path), do=problem.do))
            raise RecipeError(problems) from None


class _CoreLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.2 core schema for scalars: PyYAML's own 1.1 rules read `1e-5` as text and `no` as false."""


_CoreLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+."),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def core_resolvers() -> dict[str, Any]:
    """Return the scalar rules by which recipes are read, for the writer to follow."""
    resolvers: dict[str, Any] = _CoreLoader.yaml_implicit_resolvers
    return resolvers


def load(path: str | Path, settings: list[str] | None = None, *, needs_variables: bool = True) -> Loaded:
    """Read a recipe file, what it extends, and `key=value` settings; check it against the schema and across fields.

    Args:
        needs_variables: refuse references to environment variables that are not set; a recipe that is only looked at
            does without them.

    Raises:
        RecipeError: with every problem found, each at `file:line` (or `--set`), with the nearest valid key.
    """
    path = Path(path)
    document, marks = _read_with_parents(path, ())
    for setting in settings or []:
        _apply_setting(document, marks, setting)
    return _checked(document, marks, path, needs_variables=needs_variables)


def load_document(document: dict[str, Any], settings: list[str], *, named: str) -> Loaded:
    """Like `load`, for a recipe that is no file; problems are said to be in `named`.

    Raises:
        RecipeError: with every problem found.
    """
    marks: Marks = {}
    for setting in settings:
        _apply_setting(document, marks, setting)
    return _checked(document, marks, Path(named), needs_variables=True)


def _checked(document: dict[str, Any], marks: Marks, path: Path, *, needs_variables: bool) -> Loaded:
    """Read a document into a recipe, or raise every problem that it has."""
    from tunesmith.recipe.check import check

    misfits: list[Misfit] = []
    recipe: Recipe | None = read(Recipe, document, misfits)
    if recipe is None:
        # Rules across fields are checked on what is left without the misfits, so that one run shows every problem.
        recipe = read(Recipe, _without(document, [misfit.path for misfit in misfits]), [])
        wrong = {misfit.path for misfit in misfits}
        misfits += [
            m for m in (check(recipe, needs_variables=needs_variables) if recipe else []) if m.path not in wrong
        ]
        recipe = None
    else:
        misfits += check(recipe, needs_variables=needs_variables)
    if misfits:
        raise RecipeError([TunesmithError(m.what, where=_where(marks, m.path, path), do=m.do) for m in misfits])
    assert recipe is not None
    return Loaded(recipe, document, marks, path)


def _without(value: Any, paths: list[KeyPath], here: KeyPath = ()) -> Any:
    """Return a copy of a document without the values at some paths."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if (*here, str(key)) not in paths}
        return {key: _without(item, paths, (*here, str(key))) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without(item, paths, (*here, i)) for i, item in enumerate(value) if (*here, i) not in paths]
    return value


def _where(marks: Marks, path: KeyPath, file: Path) -> str:
    """Return `file:line` of the key, or of the nearest key above it that stands in a file."""
    while path and path not in marks:
        path = path[:-1]
    return marks.get(path, str(file))


def _read_with_parents(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Marks]:
    if path.resolve() in seen:
        chain = " → ".join(str(p) for p in (*seen, path.resolve()))
        raise RecipeError([TunesmithError(f"recipes extend each other in a circle: {chain}", where=str(path))])
    document, marks = read_yaml(path)
    if "extends" not in document:
        return document, marks
    parent = document.pop("extends")
    if not isinstance(parent, str):
        what = "`extends` must be the path of one recipe"
        raise RecipeError([TunesmithError(what, where=_where(marks, ("extends",), path), do="extends: other.yaml")])
    parent_path = path.parent / parent
    if not parent_path.is_file():
        what = f"`extends` names {parent!r}, and there is no file {parent_path}"
        raise RecipeError([TunesmithError(what, where=_where(marks, ("extends",), path), do="correct the path")])
    below, below_marks = _read_with_parents(parent_path, (*seen, path.resolve()))
    return _merge(below, document), below_marks | marks


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def read_yaml(path: Path) -> tuple[dict[str, Any], Marks]:
    """Return a YAML mapping and the place of each of its keys.

    Raises:
        RecipeError: no such file, not UTF-8, not YAML, a key twice, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = "is a directory" if path.is_dir() else "does not exist" if not path.exists() else str(error.strerror)
        do = "`tunesmith init` writes a first recipe"
        raise RecipeError([TunesmithError(f"the recipe {path} {reason}", do=do)]) from None
    except UnicodeDecodeError:
        raise RecipeError([TunesmithError("is not UTF-8 text", where=str(path))]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> tuple[dict[str, Any], Marks]:
    """Like `read_yaml`, for a text whose file is called `name` in messages."""
    loader = _CoreLoader(text)
    try:
        node = loader.get_single_node()
        marks: Marks = {(): f"{name}:1"}
        problems: list[TunesmithError] = []
        if node is not None:
            _mark(node, (), name, marks, problems)
        if problems:
            raise RecipeError(problems)
        document = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        what = f"not valid YAML: {error.problem or error.context}"
        do = "check indentation and quotes around this line"
        raise RecipeError([TunesmithError(what, where=where, do=do)]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = "not valid YAML: " + " ".join(str(error).split())[:200]
        raise RecipeError([TunesmithError(what, where=name, do="write plain text in UTF-8")]) from None
    finally:
        loader.dispose()
    if not isinstance(document, dict):
        what = "is empty" if document is None else "is not a mapping of keys to values"
        do = "start with `name:`, `model:` and `data:`; `tunesmith init` writes an example"
        raise RecipeError([TunesmithError(f"the recipe {what}", where=name, do=do)])
    return document, marks


def _mark(node: yaml.Node, path: KeyPath, name: str, marks: Marks, problems: list[TunesmithError]) -> None:
    """Note the line of every key below the node, and complain of keys that stand twice."""
    if len(path) > 40:
        raise yaml.YAMLError("nested deeper than any recipe")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            below = (*path, key)
            if key in seen:
                what = f"the key `{key_path(below)}` stands twice (first on line {seen[key]})"
                problems.append(TunesmithError(what, where=f"{name}:{line}", do="keep one of the two"))
            seen.setdefault(key, line)
            marks[below] = f"{name}:{line}"
            _mark(value_node, below, name, marks, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            marks[(*path, index)] = f"{name}:{item.start_mark.line + 1}"
            _mark(item, (*path, index), name, marks, problems)


def _apply_setting(document: dict[str, Any], marks: Marks, setting: str) -> None:
    """Put `train.lora.r=32` into the document; the value is read as YAML.

    Raises:
        UsageError: the setting is not of the form `key=value`, or leads through a value that is not a mapping.
    """
    key, equals, text = setting.partition("=")
    parts = re.findall(r"[^.\[\]]+", key)
    if not equals or not parts:
        raise UsageError(f"--set {setting!r} is not of the form key=value", do="e.g. --set train.learning_rate=1e-4")
    try:
        value = yaml.load(text, Loader=_CoreLoader)
    except yaml.YAMLError:
        raise UsageError(f"--set {setting!r}: the value is not valid YAML", do="quote it for the shell") from None
    node: Any = document
    path: KeyPath = ()
    for part in parts[:-1]:
        node, path = _step_into(node, part, path, setting)
    last: str | int = int(parts[-1]) if isinstance(node, list) and parts[-1].isdigit() else parts[-1]
    if isinstance(last, int) and not last < len(node):
        raise UsageError(f"--set {setting!r}: `{key_path(path)}` has {len(node)} entries", do="count from 0")
    node[last] = value
    place = (*path, last)
    for replaced in [mark for mark in marks if mark[: len(place)] == place]:
        del marks[replaced]
    marks[place] = f"--set {key}"


def _step_into(node: Any, part: str, path: KeyPath, setting: str) -> tuple[Any, KeyPath]:
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)], (*path, int(part))
    if isinstance(node, dict):
        child = node.get(part)
        if isinstance(child, dict | list):
            return child, (*path, part)
        if child is None:
            node[part] = {}
            return node[part], (*path, part)
        if isinstance(child, str) and part == "model" and not path:
            # The short form `model: DIR` becomes its long form when a key below it is set.
            node[part] = {"name_or_path": child}
            return node[part], (*path, part)
    raise UsageError(f"--set {setting!r}: `{key_path((*path, part))}` is not a mapping", do="see `tunesmith schema`")
