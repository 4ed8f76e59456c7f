"""What no single key can say: rules across fields. Each rule is one small function named after what it demands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields

from tunesmith.recipe.environment import referenced_variables
from tunesmith.recipe.gate_rules import Changed, RuleError, parse_rule
from tunesmith.recipe.harness_names import is_known_to_run_code
from tunesmith.recipe.lengths import parse_lengths
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.secrets import looks_like_a_secret
from tunesmith.recipe.serving_rules import an_unmerged_adapter_is_one_that_vllm_serves
from tunesmith.recipe.training_rules import TRAINING_RULES
from tunesmith.recipe.typed import KeyPath, Misfit
from tunesmith.recipe.walk import strings


def check(recipe: Recipe, *, needs_variables: bool = True) -> list[Misfit]:
    """Return every rule that the recipe breaks.

    Args:
        needs_variables: whether the environment variables it refers to have to be set here and now.
    """
    rules = [rule for rule in RULES if needs_variables or rule is not referenced_variables_are_set]
    return [misfit for rule in rules for misfit in rule(recipe)]


def data_has_a_source(recipe: Recipe) -> Iterator[Misfit]:
    if not recipe.data.train and recipe.tuned is None:
        do = "name a file, directory, glob or data set id (or give `tuned`, what was trained already)"
        yield Misfit(("data", "train"), "`data.train` has no source", do)


def what_was_trained_is_not_trained_again(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.tuned is not None and (recipe.data.train or recipe.data.validation):
        what = "`tuned` is what was trained already, and `data` asks for a training"
        do = "leave out the sources; to train a merged model further, name it (or `run:NAME`) under `model`"
        yield Misfit(("tuned",), what, do)


def held_out_rows_come_from_one_place(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.data.validation and recipe.data.validation_fraction > 0:
        what = "`data.validation` and `data.validation_fraction` are both given"
        yield Misfit(("data", "validation_fraction"), what, "keep one: own sources, or a share of `data.train`")


def fraction_leaves_rows_to_train_on(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.data.validation_fraction >= 1:
        what = "`data.validation_fraction` holds out every row"
        yield Misfit(("data", "validation_fraction"), what, "0.02 is usual")


def validation_loss_has_rows(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.train.eval_steps and not recipe.data.validation and recipe.data.validation_fraction == 0:
        what = "`train.eval_steps` asks for a validation loss, but no rows are held out"
        yield Misfit(("train", "eval_steps"), what, "set `data.validation_fraction: 0.02` or give `data.validation`")


def evaluation_has_a_task(recipe: Recipe) -> Iterator[Misfit]:
    evaluate = recipe.evaluate
    if evaluate is None:
        return
    tasks = (evaluate.text, evaluate.function_calls, evaluate.bfcl, evaluate.judge, evaluate.lm_eval)
    if not any(tasks):
        do = "add `text:`, `function_calls:`, `bfcl:`, `judge:` or `lm_eval:`, or remove the section"
        yield Misfit(("evaluate",), "`evaluate` has no task", do)


def forms_of_prompts_need_prompts(recipe: Recipe) -> Iterator[Misfit]:
    bfcl = recipe.evaluate.bfcl if recipe.evaluate else None
    if bfcl and "format_sensitivity" in bfcl.categories and bfcl.protocol != "prompt":
        what = f"`format_sensitivity` varies the prompt, and with `protocol: {bfcl.protocol}` there is none"
        yield Misfit(("evaluate", "bfcl", "protocol"), what, "use `protocol: prompt`, or leave the category out")


def a_judge_has_two_answers_to_compare(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.evaluate and recipe.evaluate.judge and not recipe.evaluate.base_model:
        what = "`evaluate.judge` compares with the base model, and `evaluate.base_model` is false"
        yield Misfit(("evaluate", "judge"), what, "set `evaluate.base_model: true`, or remove `judge`")


def set_names_can_stand_in_paths(recipe: Recipe) -> Iterator[Misfit]:
    text = recipe.evaluate.text if recipe.evaluate else None
    for name, files in text.sets.items() if text else ():
        at: KeyPath = ("evaluate", "text", "sets", name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            yield Misfit(at, f"a set cannot be called {name!r}", "use letters, digits, `-` and `_`", on_key=True)
        if not files:
            yield Misfit(at, f"the set `{name}` has no files", "name at least one file")


def a_key_is_not_written_down(recipe: Recipe) -> Iterator[Misfit]:
    judge = recipe.evaluate.judge if recipe.evaluate else None
    if judge and judge.api_key and not referenced_variables(judge.api_key):
        what = "`evaluate.judge.api_key` holds the key itself; recipes are copied into runs and reports"
        yield Misfit(("evaluate", "judge", "api_key"), what, "export it, and write `${env:NAME}`")


def made_up_load_needs_no_rows(recipe: Recipe) -> Iterator[Misfit]:
    bench = recipe.bench
    if recipe.tuned is not None and bench and not (bench.prompts or bench.prompt_tokens or bench.trace):
        what = "`bench` takes its prompts from the rows of training, and with `tuned` there are none"
        yield Misfit(("bench",), what, "name rows in `bench.prompts`, or give `bench.prompt_tokens: 256`")


def lists_are_not_empty(recipe: Recipe) -> Iterator[Misfit]:
    evaluate = recipe.evaluate
    if evaluate and evaluate.text and not evaluate.text.files and not evaluate.text.sets:
        at: KeyPath = ("evaluate", "text", "files")
        yield Misfit(at, "`evaluate.text` names no file", "name at least one in `files`, or a set in `sets`")
    if evaluate and evaluate.text and not evaluate.text.metrics:
        yield Misfit(("evaluate", "text", "metrics"), "`evaluate.text.metrics` is empty", "leave it out for all four")
    if evaluate and evaluate.function_calls and not evaluate.function_calls.files:
        at = ("evaluate", "function_calls", "files")
        yield Misfit(at, "`evaluate.function_calls.files` is empty", "name at least one file")
    if evaluate and evaluate.bfcl and not evaluate.bfcl.categories:
        at = ("evaluate", "bfcl", "categories")
        yield Misfit(at, "`evaluate.bfcl.categories` is empty", "name one: [simple_python]")
    if evaluate and evaluate.lm_eval and not evaluate.lm_eval.tasks:
        yield Misfit(("evaluate", "lm_eval", "tasks"), "`evaluate.lm_eval.tasks` is empty", "name a task: [gsm8k]")
    if evaluate and evaluate.judge and not evaluate.judge.files:
        yield Misfit(("evaluate", "judge", "files"), "`evaluate.judge.files` is empty", "name at least one file")
    if recipe.bench and not (recipe.bench.concurrency or recipe.bench.rates or recipe.bench.trace):
        what = "`bench.concurrency` is empty, and there are neither `bench.rates` nor a `bench.trace`"
        yield Misfit(("bench", "concurrency"), what, "e.g. [16, 32]")


def programs_are_run_only_when_allowed(recipe: Recipe) -> Iterator[Misfit]:
    harness = recipe.evaluate.lm_eval if recipe.evaluate else None
    for index, task in enumerate(harness.tasks if harness and not harness.allow_code_execution else ()):
        if is_known_to_run_code(task):
            what = f"the task {task!r} runs programs that the model writes, and `allow_code_execution` is false"
            do = "read docs/lm-eval.md on what the sandbox holds, then set `allow_code_execution: true`"
            yield Misfit(("evaluate", "lm_eval", "tasks", index), what, do)


_OURS_IN_THE_HARNESS = {
    "model": "`evaluate.lm_eval.backend`",
    "model_args": "`model` and `serve`",
    "device": "what the machine has",
    "output_path": "the run directory",
    "use_cache": "the run directory",
    "log_samples": "nothing: samples are always kept",
    "confirm_run_unsafe_code": "`evaluate.lm_eval.allow_code_execution`",
    "trust_remote_code": "`model.trust_remote_code`",
}


def harness_settings_have_one_place(recipe: Recipe) -> Iterator[Misfit]:
    harness = recipe.evaluate.lm_eval if recipe.evaluate else None
    own = {f.name: f"`evaluate.lm_eval.{f.name}`" for f in fields(harness)} if harness else {}
    for key in harness.extra if harness else ():
        if key in own or key in _OURS_IN_THE_HARNESS:
            what = f"`evaluate.lm_eval.extra.{key}` has a place of its own"
            do = f"it follows from {own.get(key) or _OURS_IN_THE_HARNESS[key]}; leave it out here"
            yield Misfit(("evaluate", "lm_eval", "extra", key), what, do, on_key=True)


def levels_of_load_differ(recipe: Recipe) -> Iterator[Misfit]:
    for key in ("concurrency", "rates"):
        levels = getattr(recipe.bench, key) if recipe.bench else ()
        if len({f"{level:g}" for level in levels}) < len(levels):
            yield Misfit(("bench", key), f"`bench.{key}` names a level twice", "remove the repetition")


def load_test_reaches_its_level(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.bench and recipe.bench.concurrency and recipe.bench.num_requests < max(recipe.bench.concurrency):
        top = max(recipe.bench.concurrency)
        what = f"`bench.num_requests` ({recipe.bench.num_requests}) never fills the concurrency of {top}"
        yield Misfit(("bench", "num_requests"), what, f"use at least {top}")


def bench_lengths_can_be_read(recipe: Recipe) -> Iterator[Misfit]:
    for key in ("prompt_tokens", "output_tokens"):
        written = getattr(recipe.bench, key) if recipe.bench else None
        if written is not None:
            try:
                parse_lengths(written)
            except ValueError as error:
                yield Misfit(("bench", key), f"`bench.{key}`: {error}", "e.g. 256-1024")


def bench_extra_body_is_json(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.bench and recipe.bench.extra_body is not None:
        try:
            is_object = isinstance(json.loads(recipe.bench.extra_body), dict)
        except ValueError:
            is_object = False
        if not is_object:
            what = "`bench.extra_body` is not a JSON object"
            yield Misfit(
                ("bench", "extra_body"), what, """e.g. '{"chat_template_kwargs": {"enable_thinking": false}}'"""
            )


def load_test_has_one_source_of_prompts(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.bench and recipe.bench.prompts and recipe.bench.prompt_tokens is not None:
        what = "`bench.prompts` and `bench.prompt_tokens` are both given"
        yield Misfit(("bench", "prompt_tokens"), what, "keep one: rows, or prompts that are made up")


def gate_rules_can_be_read(recipe: Recipe) -> Iterator[Misfit]:
    for index, text in enumerate(recipe.gate):
        try:
            rule = parse_rule(text)
        except RuleError as error:
            yield Misfit(("gate", index), f"gate rule {text!r}: {error}", "see docs/recipe.md, section gate")
            continue
        read = {path.split(".")[0] for path in rule.paths}
        for section in ("evaluate", "bench"):
            if section in read and getattr(recipe, section) is None:
                what = f"gate rule {text!r} reads `{section}`, and the recipe has no such section"
                yield Misfit(("gate", index), what, f"add `{section}:` or remove the rule")
        if isinstance(rule, Changed) and recipe.evaluate is not None and not recipe.evaluate.base_model:
            what = f"gate rule {text!r} compares with the base model, and `evaluate.base_model` is false"
            yield Misfit(("gate", index), what, "set `evaluate.base_model: true`")


def publish_has_a_target(recipe: Recipe) -> Iterator[Misfit]:
    publish = recipe.publish
    if publish and not (publish.local or publish.hub or publish.s3):
        do = "add `local: DIRECTORY`, `hub: {repo_id: owner/name}` or `s3: s3://bucket/prefix`"
        yield Misfit(("publish",), "`publish` has no target", do)


def s3_target_is_a_bucket(recipe: Recipe) -> Iterator[Misfit]:
    s3 = recipe.publish.s3 if recipe.publish else None
    if s3 and not re.match(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|\$\{env:\w+\})(/|$)", s3.url):
        what = f"`publish.s3` must be `s3://bucket/prefix`, found {s3.url!r}"
        yield Misfit(("publish", "s3"), what, "bucket names are 3 to 63 lower-case letters, digits, dots and hyphens")


def hub_repository_has_an_owner(recipe: Recipe) -> Iterator[Misfit]:
    hub = recipe.publish.hub if recipe.publish else None
    if hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", hub.repo_id) and "${env:" not in hub.repo_id:
        what = f"`publish.hub.repo_id` must be `owner/name`, found {hub.repo_id!r}"
        yield Misfit(("publish", "hub", "repo_id"), what, "write the owner too")


def referenced_variables_are_set(recipe: Recipe) -> Iterator[Misfit]:
    for path, text in strings(recipe):
        for variable in referenced_variables(text):
            if variable not in os.environ:
                what = f"the environment variable {variable} is not set"
                yield Misfit(path, what, f"export {variable}=… before the command")


def secrets_stay_out_of_the_recipe(recipe: Recipe) -> Iterator[Misfit]:
    for path, text in strings(recipe):
        if looks_like_a_secret(text):
            what = "this value looks like a secret, and recipes are copied into every run directory"
            yield Misfit(path, what, "put it into an environment variable and write ${env:NAME}")


RULES: tuple[Callable[[Recipe], Iterator[Misfit]], ...] = (
    an_unmerged_adapter_is_one_that_vllm_serves,
    data_has_a_source,
    what_was_trained_is_not_trained_again,
    held_out_rows_come_from_one_place,
    fraction_leaves_rows_to_train_on,
    validation_loss_has_rows,
    *TRAINING_RULES,
    evaluation_has_a_task,
    forms_of_prompts_need_prompts,
    a_judge_has_two_answers_to_compare,
    set_names_can_stand_in_paths,
    a_key_is_not_written_down,
    made_up_load_needs_no_rows,
    lists_are_not_empty,
    levels_of_load_differ,
    programs_are_run_only_when_allowed,
    harness_settings_have_one_place,
    load_test_reaches_its_level,
    bench_lengths_can_be_read,
    bench_extra_body_is_json,
    load_test_has_one_source_of_prompts,
    gate_rules_can_be_read,
    publish_has_a_target,
    hub_repository_has_an_owner,
    s3_target_is_a_bucket,
    referenced_variables_are_set,
    secrets_stay_out_of_the_recipe,
)
