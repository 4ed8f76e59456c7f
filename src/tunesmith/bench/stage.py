"""Time the tuned model under load, level by level, summed up and held against the targets."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable

from tunesmith.artifacts import Serving, Speeds, Weights
from tunesmith.bench.client import LevelRun, Target
from tunesmith.bench.levels import levels_of, measure, was_stopped
from tunesmith.bench.summary import judge, summarise
from tunesmith.bench.traffic import Asking, choose, conversations_of
from tunesmith.errors import Interrupted
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Bench, Recipe
from tunesmith.rows.conversation import Conversation
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.chat import encode_prompt
from tunesmith.tokens.jinja import TemplateProblem
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.track.console import say


def run(recipe: Recipe, run_dir: RunDir, serving: Serving) -> Speeds:
    """Run every level of `recipe.bench` against the tuned model.

    Raises:
        DataError: the rows for prompts cannot be read.
        BenchError: no row fits, or not one request was answered.
        Interrupted: a signal; what was measured is in `RunDir.partial_speeds`.
    """
    bench = recipe.bench
    assert bench is not None, "the recipe has no bench"
    started = time.monotonic()
    rows = conversations_of(recipe)
    prompts, num_unfit = choose(rows, bench.num_requests, seed=recipe.seed, fits=_fits(recipe, run_dir))
    if num_unfit:
        say(f"  bench: passed over {num_unfit} rows whose prompt and answer would not fit into {_room(recipe)} tokens")
    endpoint = serving.endpoint("tuned")
    asking = Asking(endpoint.model, bench.max_tokens, bench.api)
    levels = levels_of(bench, prompts, asking, seed=recipe.seed)
    results = measure(target_of(bench, endpoint.url, endpoint.model), levels, num_warmup=bench.num_warmup_requests)
    write_requests(run_dir, results)
    summaries = {name: summarise(result, bench.targets) for name, result in results.items()}
    speeds = Speeds(
        levels=summaries,
        requests=run_dir.relative(run_dir.requests),
        targets=tuple(judge(bench.targets, summaries)),
        seconds=round(time.monotonic() - started, 3),
        partial=was_stopped(results),
    )
    if speeds.partial:
        files.write_json(run_dir.partial_speeds, speeds.to_json())
        do = "the same command measures again"
        raise Interrupted(f"stopped; what was measured is in {run_dir.partial_speeds}", do=do)
    run_dir.partial_speeds.unlink(missing_ok=True)
    return speeds


def target_of(bench: Bench, url: str, model: str, api_key: str | None = None) -> Target:
    """Return an endpoint with the recipe's limits of time."""
    return Target(
        url,
        model,
        api_key,
        timeout_seconds=bench.request_timeout_seconds,
        stall_seconds=bench.stall_timeout_seconds,
        level_seconds=bench.level_timeout_seconds,
    )


def write_requests(run_dir: RunDir, results: dict[str, LevelRun]) -> None:
    """Write every request's timings, one JSON object per line."""
    lines = [
        json.dumps({"level": name} | dataclasses.asdict(timing), ensure_ascii=False)
        for name, result in results.items()
        for timing in result.timings
    ]
    files.write_text(run_dir.requests, "".join(f"{line}\n" for line in lines))


def _fits(recipe: Recipe, run_dir: RunDir) -> Callable[[Conversation], bool]:
    """Return whether prompt and answer of a conversation fit into the server's length."""
    tokenizer = load_tokenizer(run_dir.absolute(run_dir.load(Weights).path))
    template = template_for(tokenizer, expand(recipe.data.chat_template))
    room = _room(recipe)
    assert recipe.bench is not None
    longest = room - recipe.bench.max_tokens

    def fits(question: Conversation) -> bool:
        try:
            return len(encode_prompt(tokenizer, template, question.messages, question.tools)) <= longest
        except TemplateProblem:
            return False

    return fits


def _room(recipe: Recipe) -> int:
    room = recipe.serve.max_model_len
    assert room != "auto", "the recipe is not resolved"
    return room
