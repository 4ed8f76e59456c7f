"""`tunesmith bench`: the load test of a recipe, against any endpoint or a model that is served meanwhile.

What is measured is said as in a recipe: `--set KEY=VALUE` for the keys of its `bench` section. The result goes into a
directory of its own, never into a run: a run's stage has its own record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from tunesmith.artifacts import Speeds, Which
from tunesmith.bench import stage
from tunesmith.bench.client import Target
from tunesmith.bench.levels import num_prompts
from tunesmith.bench.table import table
from tunesmith.bench.traffic import Prompt, choose, conversations_of
from tunesmith.chosen_model import Choice, choose_model, running
from tunesmith.errors import BenchError, UsageError
from tunesmith.recipe.load import load, load_document
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.walk import plain
from tunesmith.store import files
from tunesmith.store.run_dir import find_run
from tunesmith.track.console import say

_MADE_UP_TOKENS = 256  # of a prompt, where nothing says what to ask
_STOPPED, _TARGET_MISSED = 75, 6


@dataclass(frozen=True)
class Order:
    """What a person asked for; see `tunesmith bench --help`."""

    target: str
    settings: Sequence[str] = ()
    recipe: str | None = None
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    tokenizer: str | None = None
    base: bool = False
    out: str | None = None
    json: bool = False
    output_dir: str = "outputs"


def bench(order: Order) -> int:
    """Measure, print the table, write the result; return the exit code.

    Raises:
        TunesmithError: the order cannot be carried out, or not one request was answered.
    """
    recipe = _recipe(order)
    assert recipe.bench is not None
    tokenizer = Path(order.tokenizer) if order.tokenizer else None
    count_tokens = stage.token_counter(tokenizer) if tokenizer else None
    out = Path(order.out) if order.out else Path(order.output_dir) / "bench" / f"{datetime.now():%Y%m%d-%H%M%S}"
    with _endpoint(order, recipe) as (target, model_path):
        prompts = _prompts(order, recipe, model_path or tokenizer)
        if count_tokens is None and model_path is not None:
            count_tokens = stage.token_counter(model_path)
        say(f"bench {target.model} at {target.url}")
        speeds = stage.load_test(recipe, target, prompts, requests=out / "requests.jsonl", count_tokens=count_tokens)
    speeds = dataclasses.replace(speeds, requests="requests.jsonl")
    document = _document(recipe, target, speeds)
    files.write_json(out / "result.json", document)
    print(json.dumps(document, indent=2, ensure_ascii=False) if order.json else table(speeds))
    say(f"{'partial ' if speeds.partial else ''}result: {out / 'result.json'}")
    if speeds.partial:
        return _STOPPED
    return 0 if all(target["passed"] for target in speeds.targets) else _TARGET_MISSED


def _recipe(order: Order) -> Recipe:
    """Return the recipe whose `bench` is measured: a file's, a run's, or one of defaults."""
    settings = [_in_bench(setting) for setting in order.settings] + [f"output_dir={json.dumps(order.output_dir)}"]
    run_recipe = find_run(order.target, order.output_dir).resolved_recipe if _is_run(order) else None
    if order.recipe or run_recipe:
        recipe = _with_bench(Path(order.recipe or run_recipe or ""), settings)
        if run_recipe:
            # What is not about the load test, such as the server's length, is the run's.
            recipe = dataclasses.replace(load(run_recipe).recipe, bench=recipe.bench, output_dir=order.output_dir)
    else:
        document: dict[str, Any] = {"name": "bench", "model": order.model or "endpoint", "data": {"train": "none"}}
        recipe = load_document(document | {"bench": {}}, settings, named="--set").recipe
    assert recipe.bench is not None
    asks_nothing = not recipe.bench.prompts and stage.wants_rows(recipe.bench)
    if asks_nothing and not _is_run(order):
        say(f"  prompts are made up, {_MADE_UP_TOKENS} tokens each; `--set prompts=FILE` takes rows")
        made_up = dataclasses.replace(recipe.bench, prompt_tokens=_MADE_UP_TOKENS)
        recipe = dataclasses.replace(recipe, bench=made_up)
    return recipe


def _with_bench(path: Path, settings: list[str]) -> Recipe:
    """Return a file's recipe, with a load test of defaults where it has none."""
    recipe = load(path, settings).recipe
    return recipe if recipe.bench else load(path, [*settings, "bench={}"]).recipe


def _in_bench(setting: str) -> str:
    """Return `bench.concurrency=8` for `concurrency=8`."""
    key, equals, value = setting.partition("=")
    top = key.split(".")[0].split("[")[0]
    is_whole = top in Recipe.__dataclass_fields__
    # `concurrency=1,8` is text in YAML, and meant as a list.
    if equals and "," in value and not value.lstrip().startswith(("[", "{", '"', "'")):
        value = f"[{value}]"
    return f"{key if is_whole else f'bench.{key}'}{equals}{value}"


def _is_url(word: str) -> bool:
    return "://" in word


def _is_run(order: Order) -> bool:
    path = Path(order.target)
    return not _is_url(order.target) and not ((path / "config.json").is_file() and not (path / "run.json").exists())


@contextlib.contextmanager
def _endpoint(order: Order, recipe: Recipe) -> Iterator[tuple[Target, Path | None]]:
    """Yield the endpoint, and the directory of the model behind it when that is known."""
    assert recipe.bench is not None
    if _is_url(order.target):
        url = order.target.rstrip("/").removesuffix("/v1")
        key = os.environ.get(order.api_key_env) or None
        yield stage.target_of(recipe.bench, url, order.model or _first_model(url, key), key), None
        return
    which: Which = "base" if order.base else "tuned"
    choice: Choice = choose_model(order.target, order.output_dir, which, f"bench-{which}")
    say(f"starting {choice.model.name} ({choice.engine}) …")
    with running(choice) as server:
        yield stage.target_of(recipe.bench, server.url, server.model.name), Path(choice.model.path)


def _first_model(url: str, key: str | None) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    do = "name it with --model"
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=30.0, trust_env=False)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPStatusError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"the endpoint does not say which models it has: {error}", where=url, do=do) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        do = "start the server, or correct the URL"
        raise BenchError(f"there is no answer: {error or type(error).__name__}", where=url, do=do) from None


def _prompts(order: Order, recipe: Recipe, model: Path | None) -> list[Prompt]:
    assert recipe.bench is not None
    if not stage.wants_rows(recipe.bench):
        return []
    if _is_run(order) and model is not None:
        return stage.row_prompts(recipe, model)
    rows = conversations_of(recipe)
    return choose(rows, num_prompts(recipe.bench), seed=recipe.seed, fits=lambda question: True)[0]


def _document(recipe: Recipe, target: Target, speeds: Speeds) -> dict[str, Any]:
    about = {"url": target.url, "model": target.model}
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    return speeds.to_json() | {"endpoint": about, "bench": plain(recipe.bench), "seed": recipe.seed, "ended": ended}
