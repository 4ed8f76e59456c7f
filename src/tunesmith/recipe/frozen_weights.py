"""When frozen weights stay as the checkpoint stores them: in 16 bits, under products in float32."""

from __future__ import annotations

from tunesmith.recipe.facts import Facts
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.targets import is_whole


def may_stay_stored(recipe: Recipe, device: str) -> bool:
    """Return whether a recipe lets frozen linear layers keep 16 bits, if that is how they are stored.

    Not on GPUs, which multiply 16-bit matrices fast, nor in 16 bits, where there is nothing to be made wide. Compiled
    layers and shards have not been tried.
    """
    train = recipe.train
    sharded = train.parallelism == "fsdp2" and train.num_processes not in (1, "auto")
    narrow = device == "cpu" and recipe.model.dtype == "float32" and train.method in ("lora", "dora")
    return narrow and train.torch_compile is not True and not sharded


def stored_as(recipe: Recipe, facts: Facts) -> str | None:
    """Return the format in which frozen linear layers stay, when it is not the one they are computed in."""
    narrow = facts.checkpoint_dtype in ("bfloat16", "float16") and not facts.transposed
    return facts.checkpoint_dtype if narrow and may_stay_stored(recipe, facts.device) else None


def num_stored(recipe: Recipe, facts: Facts) -> int:
    """Return how many numbers stay as they are stored."""
    if stored_as(recipe, facts) is None:
        return 0
    whole = recipe.train.lora.modules_to_save
    return sum(n.num_outputs * n.num_inputs for n in facts.linears if not is_whole(n.name, whole))


def scratch_bytes(recipe: Recipe, facts: Facts) -> int:
    """Return the memory in which one of them at a time is made wide."""
    if stored_as(recipe, facts) is None:
        return 0
    return 4 * max((linear.num_outputs * linear.num_inputs for linear in facts.linears), default=0)


def notes(recipe: Recipe, facts: Facts) -> list[str]:
    """Return what a reader of a resolved recipe should know of its number formats, in sentences."""
    if recipe.tuned is not None or facts.device != "cpu":
        return []
    stored = stored_as(recipe, facts)
    if stored is not None:
        return [f"frozen linear layers stay in {stored}, as they are stored; products are made in float32"]
    if recipe.model.dtype == "bfloat16" and not facts.has_fast_bfloat16:
        slower = "this CPU multiplies in bfloat16 more slowly than in float32, up to ten times"
        narrow = recipe.train.method in ("lora", "dora") and facts.checkpoint_dtype in ("bfloat16", "float16")
        same = ", and frozen linear layers take the same memory" if narrow else ""
        return [f"{slower}; leave model.dtype out and it is float32{same}"]
    return []
