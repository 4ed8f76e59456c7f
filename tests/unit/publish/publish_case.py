"""A finished run to publish, small enough to read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Checkpoint, Dataset, Scores, Speeds, Verdict, Weights
from tunesmith.recipe.schema import Data, HubTarget, Model, Publish, Recipe, Source
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

RECORD: dict[str, Any] = {
    "base": 0.04,
    "base_low": 0.02,
    "base_high": 0.08,
    "tuned": 0.91,
    "tuned_low": 0.86,
    "tuned_high": 0.94,
    "num_items": 200,
    "num_pairs": 200,
    "difference": 0.87,
    "difference_low": 0.82,
    "difference_high": 0.91,
    "p_value": 1e-9,
    "verdict": "improved",
    "maximum": 1.0,
}
BLEU = {key: 100 * value if isinstance(value, float) else value for key, value in RECORD.items()}


def make_run(path: Path, *, passed: bool = True, weights: bytes = b"w" * (2 << 20)) -> RunDir:
    run = RunDir(path)
    contents = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "nested/extra.txt": "ä".encode(),
        "model.safetensors": weights,
        "README.md": b"the base model's own card",
    }
    for name, content in contents.items():
        files.write_bytes(run.merged / name, content)
    hashes = {name: files.sha256(run.merged / name) for name in contents}
    run.save(Weights(run.relative(run.merged), "base", hashes, len(weights)))
    run.save(Checkpoint("train/final", "lora", "b", 50, 2.5, 0.4321, 0.5, 1_000, 20_000, 9.0, 20.0, 1, 3.0))
    source = {"path": "/home/someone/rows.jsonl", "format": "messages", "sha256": "ab" * 32, "rows": 100}
    counts = {"read": 100, "quarantined": 3, "duplicates": 0}
    run.save(Dataset("sft", "data/train", None, counts, 97, 5000, 2000, 80, "k", "t", "c", (source,)))
    run.save(Scores({"text": {"exact_match": RECORD, "bleu": BLEU}}))
    run.save(Speeds({"c16": {"concurrency": 16, "num_requests": 100, "ttft_p95_ms": 480.5}}))
    rule = {"rule": "improved(evaluate.text.bleu)", "passed": passed, "evidence": "base 3 → tuned 41.5 | so"}
    run.save(Verdict(passed, (rule,)))
    lineage = {
        "git": {"commit": "c0ffee", "dirty": True},
        "model": {
            "name_or_path": "/home/someone/base",
            "revision": None,
            "weights": "0123",
            "path": "/home/someone/base",
        },
        "files": {"data": {"/home/someone/rows.jsonl": "ab" * 32}},
        "packages": {"torch": "2.13"},
        "python": "3.11",
        "tunesmith": "0.1",
    }
    run.write_run({"lineage": lineage})
    return run


def make_recipe(*, local: str | None = None, hub: HubTarget | None = None, **settings: Any) -> Recipe:
    publish = Publish(local=local, hub=hub, **settings)
    data = Data((Source("owner/rows"), Source("rows.jsonl")))
    return dataclasses.replace(Recipe("my-model", Model("owner/base"), data), publish=publish)
