"""The stage from end to end against a scripted endpoint: what it records, and what a signal leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.fakes.scripted_stream_server import ScriptedStreamServer, Stream, interrupt_at
from tunesmith.artifacts import Endpoint, Weights, Which
from tunesmith.bench import own_limits, stage
from tunesmith.errors import Interrupted
from tunesmith.recipe.schema import Bench, Data, Model, Recipe, Targets
from tunesmith.store.run_dir import RunDir

MODEL = Path(__file__).parent.parent.parent.parent / "quickstart" / "base"  # its tokenizer counts


class Scripted:
    """Hands out the scripted server as the tuned model's endpoint."""

    def __init__(self, server: ScriptedStreamServer) -> None:
        self._server = server

    def endpoint(self, which: Which) -> Endpoint:
        return Endpoint(self._server.url, "m", "scripted", which)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.save(Weights(str(MODEL), "base", {}, 0))
    return run_dir


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    def measured(machine: str) -> own_limits.Limits:
        return own_limits.Limits(1e4, 1e5, 0.05, 0.1, time.time(), machine)

    monkeypatch.setattr(own_limits, "_measure", measured)
    bench = Bench(concurrency=(2,), rates=(50.0,), num_requests=6, prompt_tokens=30, targets=Targets(good_fraction=0.9))
    return Recipe("n", Model("m"), Data(()), bench=bench, output_dir=str(tmp_path / "outputs"))


def test_a_signal_leaves_what_was_measured_and_the_next_run_finishes(recipe: Recipe, run_dir: RunDir) -> None:
    with ScriptedStreamServer(lambda request, number: Stream(silent=number >= 8)) as server:
        interrupt_at(server, 2 + 2 + 4 + 2)  # probes, warm-up, answered, silent
        with pytest.raises(Interrupted, match="partial"):
            stage.run(recipe, run_dir, Scripted(server))
    partial = json.loads(run_dir.partial_speeds.read_text())
    assert partial["partial"] is True and list(partial["levels"]) == ["c2"]
    level = partial["levels"]["c2"]
    assert (level["num_requests"], level["num_unfinished"], level["num_unsent"]) == (4, 2, 0)
    assert not any(verdict["passed"] for verdict in partial["targets"])
    assert len(run_dir.requests.read_text().splitlines()) == 4
    with ScriptedStreamServer(lambda request, number: Stream(gaps=(0.001,) * 3)) as server:
        speeds = stage.run(recipe, run_dir, Scripted(server))
    assert not speeds.partial and not run_dir.partial_speeds.exists()
    result = json.loads((run_dir.stage("bench") / f"results/bench_{recipe.name}_c2.json").read_text())
    assert result["e2e_p95_ms"] == speeds.levels["c2"]["e2e_p95_ms"] and result["targets"]
    assert list(speeds.levels) == ["c2", "r50"] and speeds.requests == run_dir.relative(run_dir.requests)
    assert [verdict["passed"] for verdict in speeds.targets] == [True, True]
    assert speeds.client["tokens_per_second"] == 1e5
    assert speeds.levels["c2"]["tokenizer_count_ratio"] is not None, "counts are checked by the model's tokenizer"
