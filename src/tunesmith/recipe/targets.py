"""Which linear layers `train.lora.target_modules` names: PEFT's rules, from names alone."""

from __future__ import annotations

import re


def is_target(name: str, target_modules: str | tuple[str, ...]) -> bool:
    """Return whether a linear layer (never the output head) gets an adapter.

    A list holds whole names or endings after a dot; a string other than `all-linear` must match the whole name.
    https://github.com/huggingface/peft/blob/v0.18.0/src/peft/tuners/tuners_utils.py (check_target_module_exists)
    """
    if target_modules == "all-linear":
        return True
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in target_modules)
