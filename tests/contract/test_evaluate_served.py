"""`tunesmith evaluate RUN`: models that nobody serves, a directory and a run's, behind servers of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.tiny_checkpoint import make_checkpoint
from tunesmith.artifacts import Scores, Weights
from tunesmith.cli.app import main
from tunesmith.store.run_dir import create, find_run

NUM_ROWS = 3


def test_a_runs_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {i}", "completion": str(i)} for i in range(NUM_ROWS)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_checkpoint(Path("one"), seed=1)
    run = create("outputs", "trained")
    make_checkpoint(run.merged, seed=2)
    run.save(Weights(run.relative(run.merged), "one", {}, 0))
    run.resolved_recipe.write_text(
        "name: trained\nmodel: {name_or_path: one, dtype: float32, attn_implementation: sdpa}\n"
        "data: {train: rows.jsonl}\nserve: {engine: embedded, port: 0, max_model_len: 128}\n"
        "evaluate: {text: {files: [rows.jsonl], metrics: [jaccard], max_tokens: 6}}\n"
    )
    run.write_run({"name": "trained"})
    assert main(["evaluate", "trained"]) == 0  # its own models, by its own recipe
    both = find_run("latest", "outputs")
    assert both.path != run.path
    record = both.load(Scores).tasks["text"]["jaccard"]
    assert record["num_pairs"] == NUM_ROWS and record["base_num_failed"] == record["tuned_num_failed"] == 0
    assert both.server_log("base").exists() and both.server_log("tuned").exists()
    items = [json.loads(line) for line in both.items("text").read_text().splitlines()]
    assert all(item["tuned"]["num_completion_tokens"] for item in items)
    assert any(item["base"]["answer"] != item["tuned"]["answer"] for item in items)
