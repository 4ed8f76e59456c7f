"""Whether the keys of `train.lora` name layers of the model at hand, from names alone and before anything runs.

Only plain names are held against it. Expressions and paths are left to the training, which knows what the modules
themselves are called: a checkpoint's names may begin otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tunesmith.errors import nearest
from tunesmith.recipe.facts import Facts
from tunesmith.recipe.schema import Lora, Recipe
from tunesmith.recipe.targets import carries_adapter, idle_keys, is_target
from tunesmith.recipe.typed import Misfit

_PLAIN = re.compile(r"\w+")
_HERE = ("train", "lora")


def misnamed(recipe: Recipe, facts: Facts) -> Iterator[Misfit]:
    """Yield every name in `train.lora` that stands for nothing in the model."""
    if recipe.tuned is not None or recipe.train.method == "full" or not facts.linears:
        return
    lora = recipe.train.lora
    yield from _targets(lora, facts)
    carrying = [linear.name for linear in facts.linears if carries_adapter(linear.name, lora)]
    for key in ("rank_pattern", "alpha_pattern"):
        for name in _plain(idle_keys(getattr(lora, key), carrying) if carrying else ()):
            do = f"{_guess(name, carrying)}the layers with an adapter end in {_endings(carrying)}"
            yield Misfit((*_HERE, key, name), f"no layer with an adapter is called {name!r}", do)
    modules = {*_modules(facts)}
    for index, name in enumerate(lora.modules_to_save):
        # An output head that is tied to the embeddings is in no checkpoint, whatever it is called.
        if not facts.tied and _PLAIN.fullmatch(name) and not any(module.endswith(name) for module in modules):
            do = f"{_guess(name, modules)}names are matched by their ends"
            yield Misfit((*_HERE, "modules_to_save", index), f"the model has no module called {name!r}", do)


def _targets(lora: Lora, facts: Facts) -> Iterator[Misfit]:
    if isinstance(lora.target_modules, str):
        return
    names = [linear.name for linear in facts.linears]
    for index, target in enumerate(lora.target_modules):
        if not _PLAIN.fullmatch(target) or any(is_target(name, (target,)) for name in names):
            continue
        path = (*_HERE, "target_modules", index)
        if any(module.rpartition(".")[2] == target for module in _modules(facts)):
            do = "adapters go onto linear layers but the output head; train.lora.modules_to_save trains others whole"
            yield Misfit(path, f"{target!r} cannot carry an adapter", do)
        else:
            do = f"{_guess(target, names)}its linear layers end in {_endings(names)}; or use `all-linear`"
            yield Misfit(path, f"the model has no linear layer called {target!r}", do)


def _modules(facts: Facts) -> Iterator[str]:
    """Yield the name of every module that has weights, and of those it lies in."""
    tensors = [f"{linear.name}.weight" for linear in facts.linears] + [tensor.name for tensor in facts.others]
    for name in tensors:
        while name := name.rpartition(".")[0]:
            yield name


def _plain(names: Iterable[str]) -> list[str]:
    return [name for name in names if _PLAIN.fullmatch(name)]


def _endings(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _guess(name: str, known: Iterable[str]) -> str:
    near = nearest(name, sorted({module.rpartition(".")[2] for module in known}))
    return f"did you mean {near!r}? " if near else ""
