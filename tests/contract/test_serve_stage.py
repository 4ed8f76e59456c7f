"""The servers of a run, and the load test through them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import httpx
import pytest

from tests import finished_runs
from tests.fakes.tiny_checkpoint import make_checkpoint
from tunesmith.artifacts import Weights
from tunesmith.bench import stage as bench_stage
from tunesmith.bench.table import table
from tunesmith.errors import BenchError, StageError
from tunesmith.recipe.schema import Bench, Data, Model, Recipe, Serve, Source, Targets
from tunesmith.serve.engine import engine_named
from tunesmith.serve.stage import Servers, served_model
from tunesmith.store.run_dir import RunDir


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "ok"}]}
        for i in range(9)
    ]
    rows.append({"messages": [{"role": "user", "content": "long " * 100}, {"role": "assistant", "content": "ok"}]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Recipe(
        name="tiny",
        model=Model(str(make_checkpoint(tmp_path / "base", seed=1)), dtype="float32", attn_implementation="sdpa"),
        data=Data(train=(Source(str(file)),)),
        output_dir=str(tmp_path / "outputs"),
        serve=Serve(engine="embedded", port=0, max_model_len=200, startup_timeout_seconds=120.0),
        bench=Bench(
            concurrency=(1, 4),
            num_requests=12,
            num_warmup_requests=2,
            max_tokens=10,
            targets=Targets(ttft_p95_ms=60_000.0, output_tokens_per_second=1e9),
        ),
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    make_checkpoint(run_dir.merged, seed=2)
    run_dir.save(Weights(run_dir.relative(run_dir.merged), "base", {}, 0))
    return run_dir


def test_one_server_at_a_time_and_the_load_test_through_it(recipe: Recipe, run_dir: RunDir) -> None:
    with Servers(recipe, run_dir) as servers:
        base = servers.endpoint("base")
        assert (base.model, base.which, base.engine) == ("tiny-base", "base", "embedded")
        assert servers.endpoint("base") == base, "a running server is handed out again"
        speeds = bench_stage.run(recipe, run_dir, servers)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{base.url}/health")
        tuned = servers.endpoint("tuned")
        (card,) = httpx.get(f"{tuned.url}/v1/models").json()["data"]
        assert card["id"] == "tiny-tuned" and card["max_model_len"] == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{tuned.url}/health")
    assert list(speeds.levels) == ["c1", "c4"]
    for level in speeds.levels.values():
        assert level["num_requests"] == 12 and level["num_failed"] == 0 and level["num_without_usage"] == 0
        assert 0 < float(level["mean_output_tokens"] or 0) <= 10
        assert float(level["ttft_p95_ms"] or 0) <= float(level["e2e_p95_ms"] or 0)
    judged = [(t["target"], t["level"], t["passed"]) for t in speeds.targets]
    expected = [("ttft_p95_ms", True), ("output_tokens_per_second", False)]
    assert judged == [(target, level, passed) for target, passed in expected for level in ("c1", "c4")]
    lines = [json.loads(line) for line in run_dir.requests.read_text().splitlines()]
    assert [line["level"] for line in lines] == ["c1"] * 12 + ["c4"] * 12
    assert all(line["ttft"] <= line["e2e"] and line["num_output_tokens"] for line in lines)
    assert not any(line["prompt"].endswith(":10") for line in lines), "the long row does not fit"
    assert "c4" in table(speeds)


def test_a_server_that_died_is_started_again(recipe: Recipe, run_dir: RunDir) -> None:
    with Servers(recipe, run_dir) as servers:
        first = servers.endpoint("tuned")
        running = servers._running
        assert running is not None
        running[1].stop()
        second = servers.endpoint("tuned")
        assert second.model == first.model
        assert httpx.get(f"{second.url}/health").status_code == 200


def test_no_tuned_model_yet(recipe: Recipe, tmp_path: Path) -> None:
    with Servers(recipe, RunDir(tmp_path / "empty")) as servers, pytest.raises(StageError, match="merge has not run"):
        servers.endpoint("tuned")


def test_prompts_that_never_fit(recipe: Recipe, run_dir: RunDir, tmp_path: Path) -> None:
    import dataclasses

    short = dataclasses.replace(recipe, serve=dataclasses.replace(recipe.serve, max_model_len=12))
    with Servers(short, run_dir) as servers, pytest.raises(BenchError, match="none of 10 rows"):
        bench_stage.run(short, run_dir, servers)


def test_an_unmerged_adapter_is_served_on_top_of_the_base(recipe: Recipe, run_dir: RunDir) -> None:
    run_dir.trained.mkdir(parents=True)
    (run_dir.trained / "adapter_config.json").write_text(json.dumps({"r": 4}))
    run_dir.save(finished_runs.checkpoint())
    unmerged = dataclasses.replace(
        recipe, serve=dataclasses.replace(recipe.serve, engine="vllm", unmerged_adapter=True)
    )
    tuned, base = (served_model(unmerged, run_dir, which) for which in ("tuned", "base"))
    assert (tuned.path, tuned.name, tuned.adapter) == (Path(recipe.model.name_or_path), "tiny-tuned", run_dir.trained)
    assert (base.path, base.name, base.adapter) == (tuned.path, "tiny-base", None)
    command = engine_named("vllm").command(tuned, "127.0.0.1", 1)
    assert json.loads(command[command.index("--lora-modules") + 1])["path"] == str(run_dir.trained)
    merged = served_model(recipe, run_dir, "tuned")
    assert (merged.path, merged.adapter) == (run_dir.merged, None)
