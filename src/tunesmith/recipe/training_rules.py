"""Rules across fields about training; `check` holds them with all others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.targets import expression_of
from tunesmith.recipe.typed import KeyPath, Misfit

WORK_ON_SHARDS = ("adamw",)  # Adafactor's state belongs to whole matrices; bitsandbytes knows no shards


def stopping_early_has_measurements(recipe: Recipe) -> Iterator[Misfit]:
    train = recipe.train
    for key in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key) and not train.eval_steps:
            what = f"`train.{key}` needs validation losses, and `train.eval_steps` is not set"
            yield Misfit(("train", key), what, "set `train.eval_steps`, e.g. to 50")


def preference_rows_go_with_dpo(recipe: Recipe) -> Iterator[Misfit]:
    dpo = recipe.train.objective == "dpo"
    for index, source in enumerate(recipe.data.train):
        at: KeyPath = ("data", "train", index, "format")
        if dpo and source.format not in ("auto", "preference"):
            what = f"`train.objective: dpo` needs preference rows, and this source has `format: {source.format}`"
            yield Misfit(at, what, "use `format: preference`, or `train.objective: sft`")
        if not dpo and source.format == "preference":
            what = "`format: preference` rows are for `train.objective: dpo`"
            yield Misfit(at, what, "set `train.objective: dpo`")


def dpo_trains_completions(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.train.objective == "dpo" and recipe.data.train_on == "all":
        what = "`data.train_on: all` cannot be combined with `train.objective: dpo`"
        yield Misfit(("data", "train_on"), what, "leave it out: DPO compares the completions")


def smoothing_belongs_to_sigmoid(recipe: Recipe) -> Iterator[Misfit]:
    dpo = recipe.train.dpo
    if dpo.label_smoothing > 0 and dpo.loss_type != "sigmoid":
        what = f"`train.dpo.label_smoothing` has no meaning for `loss_type: {dpo.loss_type}`"
        yield Misfit(("train", "dpo", "label_smoothing"), what, "set it to 0 or use `loss_type: sigmoid`")


def warmup_is_given_once(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.train.warmup_ratio is not None and recipe.train.warmup_steps is not None:
        what = "`train.warmup_ratio` and `train.warmup_steps` are both given"
        yield Misfit(("train", "warmup_steps"), what, "keep one")


def warmup_is_shorter_than_training(recipe: Recipe) -> Iterator[Misfit]:
    steps, limit = recipe.train.warmup_steps, recipe.train.max_steps
    if steps is not None and limit is not None and steps > limit:
        what = f"`train.warmup_steps` ({steps}) is more than `train.max_steps` ({limit})"
        yield Misfit(("train", "warmup_steps"), what, "warm up for a few per cent of the steps")


def micro_batch_divides_global_batch(recipe: Recipe) -> Iterator[Misfit]:
    micro, total = recipe.train.per_device_train_batch_size, recipe.train.global_batch_size
    if isinstance(micro, int) and micro > total:
        what = f"`train.per_device_train_batch_size` ({micro}) is larger than `train.global_batch_size` ({total})"
        yield Misfit(("train", "per_device_train_batch_size"), what, "lower it, or use `auto`")


def target_modules_are_a_valid_expression(recipe: Recipe) -> Iterator[Misfit]:
    modules = recipe.train.lora.target_modules
    at: KeyPath = ("train", "lora", "target_modules")
    if isinstance(modules, tuple) and not modules:
        yield Misfit(at, "`train.lora.target_modules` is an empty list", "use `all-linear`")
    if isinstance(modules, str) and modules != "all-linear":
        try:
            re.compile(modules)
        except re.error as error:
            yield Misfit(at, f"`train.lora.target_modules` is not a regular expression: {error}", "use `all-linear`")


def patterns_are_valid_expressions(recipe: Recipe) -> Iterator[Misfit]:
    lora = recipe.train.lora
    patterns = {"rank_pattern": tuple(lora.rank_pattern), "alpha_pattern": tuple(lora.alpha_pattern)}
    for key, expressions in patterns.items():
        for expression in expressions:
            try:
                re.compile(expression_of(expression))
            except re.error as error:
                what = f"the key {expression!r} of `train.lora.{key}` is not a regular expression: {error.msg}"
                do = "write the end of a layer's name, such as `q_proj`"
                yield Misfit(("train", "lora", key, expression), what, do, on_key=True)


def modules_are_adapted_or_saved(recipe: Recipe) -> Iterator[Misfit]:
    lora = recipe.train.lora
    targets = lora.target_modules if isinstance(lora.target_modules, tuple) else ()
    for target in targets:
        if target.endswith(lora.modules_to_save):
            what = f"{target!r} is in `train.lora.target_modules` and in `train.lora.modules_to_save`"
            do = "keep one: an adapter, or the whole module"
            yield Misfit(("train", "lora", "modules_to_save"), what, do)


def whole_models_move_without_overflow(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.model.dtype == "float16" and recipe.train.method == "full":
        what = "`model.dtype: float16` with `train.method: full` overflows without loss scaling, which is not offered"
        yield Misfit(("model", "dtype"), what, "use bfloat16")


def shards_have_an_optimiser_that_works_on_them(recipe: Recipe) -> Iterator[Misfit]:
    train = recipe.train
    if train.parallelism == "fsdp2" and train.optim not in WORK_ON_SHARDS:
        what = f"`train.optim: {train.optim}` does not work on the shards of `train.parallelism: fsdp2`"
        do = "use `optim: adamw`, whose state is cut into shards too, or `parallelism: ddp`"
        yield Misfit(("train", "optim"), what, do)


TRAINING_RULES: tuple[Callable[[Recipe], Iterator[Misfit]], ...] = (
    stopping_early_has_measurements,
    preference_rows_go_with_dpo,
    dpo_trains_completions,
    smoothing_belongs_to_sigmoid,
    warmup_is_given_once,
    warmup_is_shorter_than_training,
    micro_batch_divides_global_batch,
    target_modules_are_a_valid_expression,
    patterns_are_valid_expressions,
    modules_are_adapted_or_saved,
    whole_models_move_without_overflow,
    shards_have_an_optimiser_that_works_on_them,
)
