"""Which modules the keys of `train.lora` name: PEFT's rules, from names alone.

https://github.com/huggingface/peft/tree/v0.21.0/src/peft: tuners/tuners_utils.py (check_target_module_exists),
utils/other.py (get_pattern_key, _set_trainable).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tunesmith.recipe.schema import Lora

T = TypeVar("T")
D = TypeVar("D")


def is_target(name: str, target_modules: str | tuple[str, ...]) -> bool:
    """Return whether a linear layer (never the output head) gets an adapter.

    A list holds whole names or endings after a dot; a string other than `all-linear` must match the whole name.
    """
    if target_modules == "all-linear":
        return True
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in target_modules)


def is_whole(name: str, modules_to_save: tuple[str, ...]) -> bool:
    """Return whether a module, or one that it lies in, is trained whole.

    Names are endings without regard to dots, as in PEFT: `norm` stands for `input_layernorm`, too.
    """
    while name:
        if name.endswith(modules_to_save):
            return True
        name = name.rpartition(".")[0]
    return False


def carries_adapter(name: str, lora: Lora) -> bool:
    """Return whether a linear layer gets an adapter: it is a target and not trained whole."""
    return is_target(name, lora.target_modules) and not is_whole(name, lora.modules_to_save)


def expression_of(key: str) -> str:
    """Return the regular expression that a key of `rank_pattern` or `alpha_pattern` stands for."""
    return rf"(.*\.)?({key})$"


def matches_pattern(key: str, name: str) -> bool:
    """Return whether a key of `rank_pattern` or `alpha_pattern` speaks of a layer."""
    return re.match(expression_of(key), name) is not None


def value_for(name: str, pattern: Mapping[str, T], default: D) -> T | D:
    """Return what the first matching key of a pattern says of a layer, or the default."""
    return next((value for key, value in pattern.items() if matches_pattern(key, name)), default)


def idle_keys(pattern: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the keys of a pattern that speak of none of these layers."""
    known = list(names)
    return [key for key in pattern if not any(matches_pattern(key, name) for name in known)]
