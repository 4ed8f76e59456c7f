"""Everything a recipe says of its adapter, as people read it: one wording for plan, page and model card."""

from __future__ import annotations

from tunesmith.recipe.schema import Lora


def adapter_facts(lora: Lora) -> list[tuple[str, str]]:
    """Return (name, value) of every key that is set; those left at "not asked for" are left out."""
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    facts = [
        ("rank", f"{lora.r}"),
        ("alpha", f"{lora.alpha:g}"),
        ("scale", f"{_scale(lora):.4g} (alpha / {'√rank, rsLoRA' if lora.use_rslora else 'rank'})"),
        ("dropout", f"{lora.dropout:g}"),
        ("on", targets),
    ]
    if lora.rank_pattern:
        facts.append(("ranks of some layers", _pattern(lora.rank_pattern)))
    if lora.alpha_pattern:
        facts.append(("alphas of some layers", _pattern(lora.alpha_pattern)))
    if lora.modules_to_save:
        facts.append(("trained whole", ", ".join(lora.modules_to_save)))
    return facts


def adapter_sentence(lora: Lora) -> str:
    """Return the same on one line: `rank 16, alpha 32, …`; what changes nothing is left out."""
    told = [f"{name} {value}" for name, value in adapter_facts(lora) if name != "scale" and value != "0"]
    if lora.use_rslora:
        told.insert(2, "rsLoRA")
    return ", ".join(told)


def _scale(lora: Lora) -> float:
    return lora.alpha / (lora.r**0.5 if lora.use_rslora else lora.r)


def _pattern(pattern: dict[str, int] | dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in pattern.items())
