"""Time the tuned model under load, level by level, summed up and held against the targets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.artifacts import Serving, Speeds, Weights
from tunesmith.bench import made_up
from tunesmith.bench.client import Target
from tunesmith.bench.levels import Level, levels_of, measure, num_prompts, trace_level
from tunesmith.bench.outcome import CountTokens, speeds_of, write_requests
from tunesmith.bench.own_limits import own_limits
from tunesmith.bench.trace import read_trace
from tunesmith.bench.traffic import Asking, Prompt, choose, conversations_of
from tunesmith.errors import Interrupted
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Bench, Recipe
from tunesmith.rows.conversation import Conversation
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root
from tunesmith.tokens.chat import encode_prompt
from tunesmith.tokens.jinja import TemplateProblem
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.track.console import say, warn


def run(recipe: Recipe, run_dir: RunDir, serving: Serving) -> Speeds:
    """Run every level of `recipe.bench` against the tuned model.

    Raises:
        DataError: the rows for prompts cannot be read.
        BenchError: no row fits, or not one request was answered.
        Interrupted: a signal; what was measured is in `RunDir.partial_speeds`.
    """
    bench = recipe.bench
    assert bench is not None, "the recipe has no bench"
    model = run_dir.absolute(run_dir.load(Weights).path)
    prompts = row_prompts(recipe, model) if wants_rows(bench) else ()
    endpoint = serving.endpoint("tuned")
    speeds = load_test(
        recipe,
        target_of(bench, endpoint.url, endpoint.model),
        prompts,
        requests=run_dir.requests,
        count_tokens=token_counter(model),
    )
    if speeds.partial:
        files.write_json(run_dir.partial_speeds, speeds.to_json())
        do = "the same command measures again"
        raise Interrupted(f"stopped; what was measured is in {run_dir.partial_speeds}", do=do)
    run_dir.partial_speeds.unlink(missing_ok=True)
    _write_results(run_dir.stage("bench") / "results", recipe.name, speeds)
    return speeds


def refuse_unreadable(recipe: Recipe) -> None:
    """Raise what would keep requests from being made, before hours of work.

    Raises:
        DataError: rows or trace cannot be read.
    """
    bench = recipe.bench
    assert bench is not None, "the recipe has no bench"
    if wants_rows(bench):
        conversations_of(recipe)
    if bench.trace:
        read_trace(Path(bench.trace), limit=bench.num_requests)


def _write_results(directory: Path, name: str, speeds: Speeds) -> None:
    """Write a file for each level, `bench_RUN_c16.json`: its numbers and its targets."""
    for level, numbers in speeds.levels.items():
        targets = [verdict for verdict in speeds.targets if verdict["level"] == level]
        files.write_json(directory / f"bench_{name}_{level}.json", {"level": level, **numbers, "targets": targets})


def load_test(
    recipe: Recipe,
    target: Target,
    prompts: Sequence[Prompt],
    *,
    requests: Path,
    count_tokens: CountTokens | None = None,
) -> Speeds:
    """Measure any OpenAI-compatible endpoint as `recipe.bench` says, after the client itself; warn of what is odd.

    Args:
        recipe: its `bench`, `seed` and `output_dir` count.
        target: the endpoint.
        prompts: from rows; none when prompts are made up, or when a trace is all there is.
        requests: where every request's timings go; the record names the file.
        count_tokens: counts a text by the model's tokenizer.

    Raises:
        DataError: the trace cannot be read.
        BenchError: not one request was answered.
    """
    bench = recipe.bench
    assert bench is not None
    started = time.monotonic()
    limits = own_limits(cache_root(recipe.output_dir) / "load-generator.json")
    say(f"  load generator: {limits.sentence()}")
    levels = _levels(bench, target, prompts, seed=recipe.seed)
    results = measure(target, levels)
    write_requests(requests, results)
    speeds = speeds_of(
        results,
        bench.targets,
        limits,
        seconds=time.monotonic() - started,
        requests=f"{requests.parent.name}/{requests.name}",
        count_tokens=count_tokens,
    )
    for text in speeds.warnings:
        warn(text)
    return speeds


def wants_rows(bench: Bench) -> bool:
    """Return whether prompts come from rows."""
    return bench.prompt_tokens is None and num_prompts(bench) > 0


def row_prompts(recipe: Recipe, model: Path) -> list[Prompt]:
    """Return prompts from the recipe's rows, those whose prompt and answer fit into the server's length.

    Raises:
        DataError: the rows cannot be read.
        BenchError: no row fits.
    """
    assert recipe.bench is not None
    rows = conversations_of(recipe)
    prompts, num_unfit = choose(rows, num_prompts(recipe.bench), seed=recipe.seed, fits=_fits(recipe, model))
    if num_unfit:
        say(f"  bench: passed over {num_unfit} rows whose prompt and answer would not fit into {_room(recipe)} tokens")
    if (num_rows := len({prompt.name for prompt in prompts})) < len(prompts):
        say(f"  bench: {num_rows} rows make {len(prompts)} prompts: some are sent again, which a server may remember")
    return prompts


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


def token_counter(model: Path) -> CountTokens:
    """Return what counts a text as the model of a directory does."""
    tokenizer = load_tokenizer(model)
    return lambda text: len(tokenizer.encode(text))


def _levels(bench: Bench, target: Target, prompts: Sequence[Prompt], *, seed: int) -> list[Level]:
    extra = json.loads(bench.extra_body) if bench.extra_body else {}
    asking = Asking(target.model, bench.max_tokens, bench.api, extra)
    trace = read_trace(Path(bench.trace), limit=bench.num_requests) if bench.trace else []
    words = made_up.Measure()
    if bench.prompt_tokens is not None or any(not recorded.messages for recorded in trace):
        words = made_up.measure_words(target, asking)
    if bench.prompt_tokens is not None:
        prompts = made_up.prompts(bench.prompt_tokens, num_prompts(bench), words, seed=seed)
    levels = levels_of(bench, prompts, asking, seed=seed)
    return [*levels, trace_level(bench, trace, asking, words, seed=seed)] if trace else levels


def _fits(recipe: Recipe, model: Path) -> Callable[[Conversation], bool]:
    """Return whether prompt and answer of a conversation fit into the server's length."""
    tokenizer = load_tokenizer(model)
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
