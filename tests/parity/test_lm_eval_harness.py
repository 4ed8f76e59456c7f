"""Numbers through tunesmith against those of lm-evaluation-harness run by hand on the same local tasks: equal.

For a checkpoint and for an endpoint (the embedded server), with the harness's own command line as the reference. What a
task scores has to be equal to the last digit; log probabilities come from other batches, and agree to 1e-3.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import harness_tasks, tiny
from tunesmith import summary
from tunesmith.artifacts import Scores, Weights
from tunesmith.evaluate import stage
from tunesmith.recipe.schema import Data, Evaluate, LmEval, Model, Recipe, Serve
from tunesmith.serve.stage import Servers
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

pytest.importorskip("lm_eval", reason="extra `lm-eval`")

TASKS = ("tiny_group", "tiny_sums")
LIMIT = 7


@dataclass(frozen=True)
class World:
    """Two tiny models, task files, and a run whose tuned model is the second."""

    path: Path
    base: Path
    tuned: Path
    tasks: Path

    def run_dir(self, name: str) -> RunDir:
        run_dir = RunDir(self.path / name)
        weights = {"model.safetensors": files.sha256(self.tuned / "model.safetensors")}
        run_dir.save(Weights(str(self.tuned), str(self.base), weights, 1))
        return run_dir

    def recipe(self, backend: str, **evaluate: Any) -> Recipe:
        harness = LmEval(TASKS, limit=LIMIT, include_path=str(self.tasks), backend=backend, batch_size=4, num_fewshot=1)
        return Recipe(
            "tiny",
            Model(str(self.base), dtype="float32", attn_implementation="sdpa"),
            Data(()),
            output_dir=str(self.path / "outputs"),
            serve=Serve(engine="embedded", port=0, max_model_len=128),
            evaluate=Evaluate(lm_eval=harness, concurrency=4, **evaluate),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("harness")
    base, tuned = (tiny.write_model(path / name, seed=seed) for name, seed in (("base", 0), ("tuned", 1)))
    return World(path, base, tuned, harness_tasks.write(path / "tasks"))


_INTERFACE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

wanted = json.loads(sys.argv[1])
tracker = EvaluationTracker(output_path=wanted.pop("output_path"))
manager = TaskManager(include_path=wanted.pop("include_path"), include_defaults=False)
results = simple_evaluate(**wanted, task_manager=manager, evaluation_tracker=tracker, log_samples=True)
samples = results.pop("samples")
tracker.save_results_aggregated(results=results, samples=samples)
for task in results["configs"]:
    tracker.save_results_samples(task_name=task, samples=samples[task])
"""


def by_interface(world: World, name: str, model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Like `by_hand`, through the harness's Python interface: it need not read its 14,000 task files."""
    out = world.path / name
    wanted: dict[str, Any] = {"model": model, "model_args": arguments, "tasks": list(TASKS), "limit": LIMIT}
    wanted |= {"num_fewshot": 1, "include_path": str(world.tasks), "output_path": str(out / "results.json")}
    return _finished([sys.executable, "-c", _INTERFACE, json.dumps(wanted | {"fewshot_as_multiturn": False})], out)


def by_hand(world: World, name: str, model: str, *arguments: str) -> dict[str, Any]:
    """Return what the harness's own command line says about the tuned model."""
    out = world.path / name
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", *arguments]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(world.tasks), "--limit", str(LIMIT)]
    command += ["--num_fewshot", "1", "--device", "cpu", "--batch_size", "4" if model == "hf" else "1"]
    command += ["--output_path", str(out / "results.json"), "--log_samples"]
    return _finished(command, out)


def _finished(command: list[str], out: Path) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "datasets")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.glob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text())
    found["likelihoods"] = likelihoods(out)
    return found


def likelihoods(directory: Path) -> list[float]:
    """Return every log probability in the samples of `tiny_colours`."""
    (path,) = directory.rglob("samples_tiny_colours_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [float(response[0][0]) for line in lines for response in line["resps"]]


def assert_equal(scores: Scores, reference: dict[str, Any], backend: str) -> None:
    """Every number of the harness is among ours, equal, with what it rests on beside it."""
    compared = 0
    for task, numbers in reference["results"].items():
        ours = scores.tasks[f"lm_eval.{task}"]
        for key, value in numbers.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            (record,) = [r for name, r in ours.items() if name.split("-")[0] == metric and r["filter"] == filter_name]
            assert record["tuned"] == value, (task, key)
            assert record["tuned_stderr"] == numbers[f"{metric}_stderr,{filter_name}"]
            assert record["num_items"] == numbers["sample_len"]
            assert record["task_version"] == str(reference["versions"][task])
            assert (record["num_fewshot"], record["backend"], record["limit"]) == (1, backend, LIMIT)
            assert record["chat_template"] == "not applied" and str(record["harness"]).startswith("lm_eval 0.")
            compared += 1
    assert compared == 7  # acc and acc_norm of two tasks, acc of their group, two filters of the sums


@pytest.fixture(scope="module")
def checkpoint_scores(world: World) -> Iterator[Scores]:
    class NoServing:
        def endpoint(self, which: str) -> Any:
            raise AssertionError("the checkpoint backend needs no server")

    yield stage.run(world.recipe("checkpoint"), world.run_dir("checkpoint"), NoServing())


def test_a_checkpoint(world: World, checkpoint_scores: Scores) -> None:
    reference = by_hand(world, "hand-hf", "hf", f"pretrained={world.tuned}", "dtype=float32")
    assert_equal(checkpoint_scores, reference, "checkpoint")
    ours = likelihoods(world.path / "checkpoint" / "evaluate" / "lm_eval" / "tuned")
    assert ours == pytest.approx(reference["likelihoods"], abs=1e-3)


def test_base_beside_tuned_item_by_item(world: World, checkpoint_scores: Scores) -> None:
    for name in ("lm_eval.tiny_colours", "lm_eval.tiny_sizes", "lm_eval.tiny_sums"):
        lines = [json.loads(line) for line in (world.path / "checkpoint" / checkpoint_scores.items[name]).open()]
        first, record = next(iter(checkpoint_scores.tasks[name].items()))
        assert len(lines) == record["num_pairs"] == LIMIT
        for which in ("base", "tuned"):
            assert sum(line[which]["scores"][first] for line in lines) / LIMIT == pytest.approx(record[which])
        fixed = sum(line["tuned"]["correct"] > line["base"]["correct"] for line in lines)
        assert record["num_fixed"] == fixed
    group = checkpoint_scores.tasks["lm_eval.tiny_group"]["acc"]
    assert group["num_items"] == group["num_pairs"] == 2 * LIMIT
    assert group["verdict"] in ("improved", "regressed", "cannot tell")
    told = summary.comparison_table(checkpoint_scores)  # the group, and its tasks only by their number
    assert "lm_eval.tiny_group.acc" in told and "tiny_colours" not in told and "2 tasks that are parts" in told


def test_what_is_finished_is_not_done_again(world: World, checkpoint_scores: Scores) -> None:
    log = world.path / "checkpoint" / "evaluate" / "lm_eval" / "tuned" / "harness.log"
    before = log.stat().st_size
    again = stage.run(world.recipe("checkpoint"), world.run_dir("checkpoint"), None)  # type: ignore[arg-type]
    assert again.tasks == checkpoint_scores.tasks
    assert log.stat().st_size == before


def test_an_endpoint(world: World) -> None:
    recipe, run_dir = world.recipe("endpoint", base_model=False), world.run_dir("endpoint")
    with Servers(recipe, run_dir) as serving:
        scores = stage.run(recipe, run_dir, serving)
        endpoint = serving.endpoint("tuned")
        where = {"model": endpoint.model, "base_url": f"{endpoint.url}/v1/completions", "tokenizer": str(world.tuned)}
        more = {"tokenizer_backend": "huggingface", "num_concurrent": 4, "max_length": 128}
        reference = by_interface(world, "hand-endpoint", "local-completions", where | more)
    assert_equal(scores, reference, "endpoint")
    ours = likelihoods(world.path / "endpoint" / "evaluate" / "lm_eval" / "tuned")
    assert ours == pytest.approx(reference["likelihoods"], abs=1e-3)


def test_programs_run_where_they_can_do_no_harm(world: World) -> None:
    """The real harness scores rows whose programs try to write outside: what passes, passes; the canaries live."""
    canary = world.path / "canary"
    canary.mkdir()
    attempt = f"open({str(canary)!r} + '/written', 'w')"
    programs = ["assert 1 + 1 == 2", "assert 1 + 1 == 3", attempt, "open('here', 'w').write('x')"]
    directory = harness_tasks.write_programs(world.path / "programs", programs, in_filter=attempt)
    settings = LmEval(
        ("tiny_programs",), include_path=str(directory), backend="checkpoint", batch_size=4, allow_code_execution=True
    )
    recipe = world.recipe("checkpoint")
    recipe = dataclasses.replace(recipe, evaluate=Evaluate(lm_eval=settings, base_model=False))
    scores = stage.run(recipe, world.run_dir("with-programs"), None)  # type: ignore[arg-type]
    record = scores.tasks["lm_eval.tiny_programs"]["passed"]
    if record["sandbox"] == "limits only":
        pytest.skip("the kernel makes no namespaces here")
    assert record["tuned"] == 0.5 and record["num_items"] == 4
    lines = [json.loads(line) for line in (world.path / "with-programs" / scores.items["lm_eval.tiny_programs"]).open()]
    assert [line["tuned"]["correct"] for line in lines] == [True, False, False, True]
    assert list(canary.iterdir()) == []
