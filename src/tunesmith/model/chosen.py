"""Which modules of a model the keys of `train.lora` name, and what is said when they name none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from tunesmith.errors import ModelError, nearest
from tunesmith.recipe.targets import idle_keys, is_target, is_whole

_LISTS = (nn.ModuleList, nn.ModuleDict)  # they hold modules and compute nothing: PEFT refuses them, too


def chosen_layers(
    model: Any, linears: Iterable[str], target_modules: str | tuple[str, ...], modules_to_save: tuple[str, ...]
) -> list[str]:
    """Return which of the model's linear layers get an adapter.

    Raises:
        ModelError: none does, or a target is a module that cannot carry one.
    """
    names = list(linears)
    _refuse_other_modules(model, names, target_modules)
    chosen = [name for name in names if is_target(name, target_modules) and not is_whole(name, modules_to_save)]
    if chosen:
        return chosen
    endings = sorted({_ending(name) for name in names})
    asked = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    do = f"{_guess(asked, endings)}this model's linear layers end in {', '.join(endings)}; or use `all-linear`"
    raise ModelError(f"no linear layer matches {', '.join(asked)!r}", where="train.lora.target_modules", do=do)


def _refuse_other_modules(model: Any, linears: list[str], target_modules: str | tuple[str, ...]) -> None:
    """Raise for what PEFT would adapt, or fail at, and this program would pass over."""
    if target_modules == "all-linear":
        return
    where = "train.lora.target_modules"
    others = {name: module for name, module in model.named_modules() if name and name not in linears}
    if isinstance(target_modules, str):
        heads = [name for name, module in others.items() if module is model.get_output_embeddings()]
        if any(is_target(name, target_modules) for name in heads):
            do = "let the expression leave it out, or use `all-linear`; train.lora.modules_to_save trains it whole"
            raise ModelError(f"{target_modules!r} matches the output head {heads[0]!r}", where=where, do=do)
        return
    for target in target_modules:
        if any(is_target(name, (target,)) for name in others) and not any(is_target(n, (target,)) for n in linears):
            do = "adapters go onto linear layers but the output head; train.lora.modules_to_save trains others whole"
            raise ModelError(f"{target!r} cannot carry an adapter", where=where, do=do)


def refuse_idle_keys(key: str, pattern: Mapping[str, Any], layers: list[str]) -> None:
    """Raise when a pattern speaks of a layer that has no adapter.

    Args:
        key: `rank_pattern` or `alpha_pattern`.

    Raises:
        ModelError: see above.
    """
    idle = idle_keys(pattern, layers)
    if idle:
        endings = sorted({_ending(name) for name in layers})
        do = f"{_guess(idle[:1], endings)}the layers with an adapter end in {', '.join(endings)}"
        raise ModelError(f"no layer with an adapter matches {idle[0]!r}", where=f"train.lora.{key}", do=do)


def whole_modules(model: Any, modules_to_save: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the modules that are trained whole, by name, none inside another.

    When embedding and output head share their matrix, naming one means both.

    Raises:
        ModelError: a name stands for no module with weights.
    """
    named = {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(module, _LISTS) and next(module.parameters(), None) is not None
    }
    for target in modules_to_save:
        if not any(name.endswith(target) for name in named):
            do = f"{_guess([target], sorted({_ending(name) for name in named}))}names are matched by their ends"
            what = f"no module with weights is called {target!r}"
            raise ModelError(what, where="train.lora.modules_to_save", do=do)
    matching = {name: module for name, module in named.items() if name.endswith(modules_to_save)}
    found = {name: m for name, m in matching.items() if not is_whole(name.rpartition(".")[0], tuple(matching))}
    pair = tied_modules(model)
    if any(name in found for name in pair):
        found |= {name: model.get_submodule(name) for name in pair}
    return found


def tied_modules(model: Any) -> tuple[str, ...]:
    """Return the names of embedding and output head when they share their matrix; nothing when they do not."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is not embedding.weight:
        return ()
    return tuple(name for name, module in model.named_modules() if module is embedding or module is head)


def _ending(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _guess(asked: Iterable[str], endings: list[str]) -> str:
    near = [nearest(_ending(word), endings) for word in asked]
    return next((f"did you mean {word!r}? " for word in near if word), "")
