"""Rules across fields about serving; `check` holds them with all others."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.typed import KeyPath, Misfit


def an_unmerged_adapter_is_one_that_vllm_serves(recipe: Recipe) -> Iterator[Misfit]:
    if not recipe.serve.unmerged_adapter:
        return
    at: KeyPath = ("serve", "unmerged_adapter")
    if recipe.serve.engine == "embedded":
        yield Misfit(at, "the embedded server serves merged models only", "set `serve.engine: vllm`, or leave it out")
    if recipe.tuned is None and recipe.train.method not in ("lora", "qlora"):
        what = f"vLLM serves LoRA adapters, and `train.method` is {recipe.train.method}"
        yield Misfit(at, what, "leave it out: the merged model is served")
    if recipe.train.lora.modules_to_save:
        what = "vLLM cannot serve an adapter with the whole modules of `train.lora.modules_to_save`"
        yield Misfit(at, what, "leave it out: the merged model is served")
