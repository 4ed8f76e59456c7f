"""Time the tuned model under load: one closed loop per concurrency level, summed up and held against the targets."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.artifacts import Serving, Speeds, Weights
from tunesmith.bench.client import LevelRun, Target, Timing, run_level
from tunesmith.bench.summary import LevelSummary, judge, summarise
from tunesmith.bench.traffic import Prompt, choose, conversations_of
from tunesmith.errors import BenchError
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Recipe
from tunesmith.rows.conversation import Conversation
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.chat import encode_prompt
from tunesmith.tokens.jinja import TemplateProblem
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.track.console import Progress, say, warn

_BUSY_CPU_FRACTION = 0.7


@dataclass(frozen=True)
class Load:
    """How much is asked, and how."""

    concurrency: tuple[int, ...]
    num_requests: int  # per level
    max_tokens: int
    num_warmup_requests: int = 0  # per level, before its clock starts


def run(recipe: Recipe, run_dir: RunDir, serving: Serving, *, timeout_seconds: float = 600.0) -> Speeds:
    """Run every concurrency level of `recipe.bench` against the tuned model.

    Raises:
        DataError: the rows for prompts cannot be read.
        BenchError: no row fits, or not one request was answered.
    """
    bench = recipe.bench
    assert bench is not None, "the recipe has no bench"
    started = time.monotonic()
    rows = conversations_of(recipe)
    prompts, num_unfit = choose(rows, bench.num_requests, seed=recipe.seed, fits=_fits(recipe, run_dir))
    if num_unfit:
        say(f"  bench: passed over {num_unfit} rows whose prompt and answer would not fit into {_room(recipe)} tokens")
    endpoint = serving.endpoint("tuned")
    target = Target(endpoint.url, endpoint.model, timeout_seconds=timeout_seconds)
    load = Load(bench.concurrency, bench.num_requests, bench.max_tokens, bench.num_warmup_requests)
    levels = measure(target, prompts, load)
    _write_requests(run_dir, levels)
    summaries = {level: summarise(result) for level, result in levels.items()}
    return Speeds(
        levels=summaries,
        requests=run_dir.relative(run_dir.requests),
        targets=tuple(judge(bench.targets, summaries)),
        seconds=round(time.monotonic() - started, 3),
    )


def measure(target: Target, prompts: Sequence[Prompt], load: Load) -> dict[str, LevelRun]:
    """Run every level against any OpenAI-compatible endpoint; return what each gave, by the name `cN`.

    Raises:
        BenchError: not one request was answered.
    """
    asked = [prompts[i % len(prompts)] for i in range(load.num_requests)]
    levels: dict[str, LevelRun] = {}
    for concurrency in load.concurrency:
        with Progress(f"bench c{concurrency}", len(asked), "requests") as progress:
            level = run_level(
                target,
                asked,
                concurrency=concurrency,
                max_tokens=load.max_tokens,
                num_warmup=load.num_warmup_requests,
                on_done=progress.advance,
            )
        levels[f"c{concurrency}"] = level
        _warn_about(level)
    _raise_if_all_failed(target, [timing for level in levels.values() for timing in level.timings])
    return levels


def table(levels: dict[str, LevelSummary]) -> str:
    """Return the numbers of all levels as people read them: one column per level."""
    rows = [("requests", "num_requests", ""), ("failed", "num_failed", "")]
    rows += [("output tokens/s", "output_tokens_per_second", ".1f"), ("requests/s", "requests_per_second", ".2f")]
    for label, name in (("first token", "ttft"), ("whole answer", "e2e"), ("per token", "tpot"), ("between", "itl")):
        rows += [(f"{label} {word}, ms", f"{name}_{word}_ms", ".1f") for word in ("mean", "median", "p95", "p99")]
    lines = ["".join([f"{'':<22}", *(f"{level:>12}" for level in levels)])]
    for label, key, form in rows:
        values = [summary.get(key) for summary in levels.values()]
        lines.append(f"{label:<22}" + "".join(f"{'–' if v is None else format(v, form):>12}" for v in values))
    return "\n".join(lines)


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


def _warn_about(level: LevelRun) -> None:
    failed = Counter(timing.failure for timing in level.timings if timing.failure)
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
        warn(f"c{level.concurrency}: {failed.total()} of {len(level.timings)} requests failed ({kinds})")
    if level.client_cpu_fraction > _BUSY_CPU_FRACTION:
        share = f"{level.client_cpu_fraction:.0%}"
        warn(f"c{level.concurrency}: the load generator itself used {share} of a core: times may be its own")
    if any(not timing.has_usage for timing in level.timings if not timing.failure):
        warn(f"c{level.concurrency}: the server reports no usage: output tokens are counted as stream events")


def _raise_if_all_failed(target: Target, timings: list[Timing]) -> None:
    if any(not timing.failure for timing in timings):
        return
    (kind, detail), count = Counter((timing.failure, timing.detail) for timing in timings).most_common(1)[0]
    what = f"not one of {len(timings)} requests was answered; {count} times: {kind}: {detail}"
    raise BenchError(what, where=target.url, do="look into the server's log")


def _write_requests(run_dir: RunDir, levels: dict[str, LevelRun]) -> None:
    """Write every request's timings, one JSON object per line."""
    lines = [
        json.dumps({"level": name} | dataclasses.asdict(timing), ensure_ascii=False)
        for name, level in levels.items()
        for timing in level.timings
    ]
    files.write_text(run_dir.requests, "".join(f"{line}\n" for line in lines))
