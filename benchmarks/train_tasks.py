"""What `train_vs_peers.py` trains on: tasks, rows, recipes, and the settings that TRL may be fastest with."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tunesmith.recipe.load import load
from tunesmith.recipe.schema import Source
from tunesmith.rows.reading import Example, read_examples
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.shards import Shards
from tunesmith.train.batches import Stream

TUNESMITH = str(Path(sys.executable).parent / "tunesmith")
GLOBAL_BATCH, SEED = 8, 7


@dataclass(frozen=True)
class Task:
    """What both are asked to do."""

    objective: str
    method: str
    learning_rate: float
    sources: tuple[str, ...]
    num_tools: int = 0  # the first so many tools of all rows, given to every row: one product, one list of tools


SFT_ROWS, DPO_ROWS = ("sft/alpaca_en_demo.json", "sft/glaive_toolcall_en_demo.json"), ("dpo/dpo_en_demo.json",)
TASKS = {
    "sft-lora": Task("sft", "lora", 2e-4, SFT_ROWS),
    "sft-full": Task("sft", "full", 2e-5, SFT_ROWS),
    "sft-tools": Task("sft", "lora", 2e-4, SFT_ROWS[1:], num_tools=4),
    "dpo-lora": Task("dpo", "lora", 5e-5, DPO_ROWS),
}

# ── TRL's settings ───────────────────────────────────────────────────────────────────────────────────────────────────

PLAIN = {"gradient_checkpointing": False}
GROUPED = {"train_sampling_strategy": "group_by_length"}
LIGER = {"use_liger_kernel": True}


def in_pieces_of(size: int) -> dict[str, int]:
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": GLOBAL_BATCH // size}


def candidates(task: Task, device: str, dtype: str) -> list[dict[str, Any]]:
    """Return settings that may be TRL's fastest, the best known first.

    Frozen weights are loaded in the format they are used in, as ours are; trained ones stay float32.
    """
    found = _candidates(task, device)
    if dtype == "float32" or task.method == "full":
        return found
    return [
        settings | {"model_init_kwargs": {"dtype": dtype} | settings.get("model_init_kwargs", {})} for settings in found
    ]


def _candidates(task: Task, device: str) -> list[dict[str, Any]]:
    attention = [{"model_init_kwargs": {"attn_implementation": name}} for name in ("eager", "flash_attention_2")]
    if device == "cuda":
        big = [PLAIN | in_pieces_of(size) for size in (1, 2, 4, 8)]
        flash = [PLAIN | in_pieces_of(8) | attention[1], in_pieces_of(8) | attention[1]]
        liger = [settings | LIGER for settings in (*big, in_pieces_of(8))]
        found = [*big, *flash, *liger, PLAIN | in_pieces_of(8) | {"torch_compile": True}]
        if task.objective == "sft":
            packed = attention[1] | {"packing": True, "per_device_train_batch_size": 1}
            found += [PLAIN | packed, packed, PLAIN | packed | LIGER, PLAIN | GROUPED | in_pieces_of(8)]
    else:
        found = [PLAIN | in_pieces_of(size) for size in (1, 2, 4)]
        found += [PLAIN | in_pieces_of(1) | attention[0], PLAIN | in_pieces_of(1) | {"torch_compile": True}]
        if task.objective == "sft":
            found += [PLAIN | GROUPED | in_pieces_of(4), PLAIN | {"padding_free": True, "max_length": None}]
    if task.objective == "dpo":
        found = [settings | {"precompute_ref_log_probs": True} for settings in found]
    return found


def keeps_order(settings: dict[str, Any]) -> bool:
    return "train_sampling_strategy" not in settings and not settings.get("packing")


# ── The rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows_of(task: Task, given: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """Return the distinct rows that fit, in a seeded order; print their lengths."""
    examples = [one for source in task.sources for one in read_examples(Source(str(given.data / source)))[1]]
    rows = [example.content.to_json() for example in examples if isinstance(example, Example)]
    if task.num_tools:
        tools = list({json.dumps(tool): tool for row in rows for tool in row.get("tools", [])}.values())
        rows = [row | {"tools": tools[: task.num_tools]} for row in rows]
    rows = list({json.dumps(row, sort_keys=True): row for row in rows}.values())
    random.Random(SEED).shuffle(rows)
    count = token_counter(model)
    if given.sequence_length and task.objective == "sft":
        rows = joined(rows, count, given.sequence_length)
    lengths = [count(row) for row in rows]
    kept = [n for n, length in enumerate(lengths) if max(length) <= given.max_length]
    parts = ("sequence",) if task.objective == "sft" else ("prompt + chosen", "prompt + rejected", "prompt")
    means = ", ".join(
        f"{part} mean {statistics.mean(lengths[n][i] for n in kept):.0f} "
        f"median {statistics.median(lengths[n][i] for n in kept):.0f}"
        for i, part in enumerate(parts)
    )
    print(f"  {len(kept)} of {len(rows)} rows of at most {given.max_length} tokens; {means}")
    return [rows[n] for n in kept]


def token_counter(model: Path) -> Any:
    """Return a function from a row to its tokens: of the sequence, or of each side and the prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def length(messages: list[Any], **more: Any) -> int:
        return len(tokenizer.apply_chat_template(messages, tokenize=True, **more)["input_ids"])

    def count(row: dict[str, Any]) -> tuple[int, ...]:
        tools = row.get("tools")
        if "messages" in row:
            return (length(row["messages"], tools=tools),)
        prompt = row["prompt_messages"]
        sides = (length(prompt + row[f"{side}_messages"], tools=tools) for side in ("chosen", "rejected"))
        return (*sides, length(prompt, tools=tools, add_generation_prompt=True))

    return count


def joined(rows: list[dict[str, Any]], count: Any, size: int) -> list[dict[str, Any]]:
    """Return conversations one after the other until they are nearly `size` tokens long; tools are left out."""
    longer: list[dict[str, Any]] = []
    room = 0
    for row in rows:
        if "tools" in row or row["messages"][0]["role"] == "system":
            continue
        (length,) = count(row)
        if length > room:
            longer.append({"messages": []})
            room = size
        longer[-1]["messages"] += row["messages"]
        room -= length
    return longer[:-1]


@dataclass(frozen=True)
class Batches:
    """The rows on disk, and what each step sees of them."""

    rows: Path
    in_order: Path  # the same rows as training meets them
    tokens: list[int]
    trained: list[int]
    dtype: str


def prepare(name: str, given: argparse.Namespace, model: Path, out: Path) -> Batches:
    """Write the rows, tokenise them once with our command, and read from that what each step will see."""
    task, rows = TASKS[name], rows_of(TASKS[name], given, model)
    path = out / "rows.jsonl"
    write_jsonl(path, rows)
    recipe = write_recipe(name, given, model, path, out / "prepared")
    done = subprocess.run(
        [TUNESMITH, "run", str(recipe), "--until", "data", "--json"], stdout=subprocess.PIPE, check=True
    )
    run_dir = RunDir(json.loads(done.stdout)["run"])
    shards = Shards(run_dir.train_tokens)
    assert len(shards) == len(rows), "every row is kept, so that indices mean the same on both sides"
    loaded = load(recipe).recipe
    stream = Stream(len(shards), loaded.train, loaded.seed)
    steps = [stream.rows(step) for step in range(given.steps)]
    first = [int(row) for step in steps for row in step]
    rest = [] if task.objective == "dpo" else sorted(set(range(len(rows))) - set(first))
    write_jsonl(out / "in_order.jsonl", [rows[n] for n in [*first, *rest]])
    counts = [[seen(shards, int(row)) for row in step] for step in steps]
    resolved = yaml.safe_load(run_dir.resolved_recipe.read_text())
    return Batches(
        path,
        out / "in_order.jsonl",
        [sum(tokens for tokens, _ in step) for step in counts],
        [sum(trained for _, trained in step) for step in counts],
        resolved["model"]["dtype"],
    )


def seen(shards: Shards, row: int) -> tuple[int, int]:
    """Return how many tokens of a row a model reads, and how many have a loss."""
    segments = [shards.segment(row, segment) for segment in range(shards.num_segments)]
    if len(segments) == 1:
        ids, trained = segments[0]
        return len(ids), int(np.sum(trained[1:]))
    prompt, chosen, rejected = (len(ids) for ids, _ in segments)
    return 2 * prompt + chosen + rejected, chosen + rejected


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_recipe(name: str, given: argparse.Namespace, model: Path, rows: Path, output_dir: Path) -> Path:
    """Write the recipe of a task: what TRL is told too, and nothing else."""
    task = TASKS[name]
    document = {
        "name": f"vs-peers-{name}",
        "model": {"name_or_path": str(model), "dtype": given.dtype},
        "data": {"train": str(rows), "max_length": given.max_length},
        "train": {
            "objective": task.objective,
            "method": task.method,
            "max_steps": given.steps,
            "num_train_epochs": 100.0,
            "global_batch_size": GLOBAL_BATCH,
            "learning_rate": task.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
        },
        "seed": SEED,
        "output_dir": str(output_dir),
    }
    if task.method == "lora":
        document["train"]["lora"] = {"r": 16, "alpha": 32.0}  # type: ignore[index]
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
