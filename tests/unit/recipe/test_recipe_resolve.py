"""Resolving: no `auto` is left, every decision has its reason, and the same facts decide the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tunesmith.recipe.facts import Facts
from tunesmith.recipe.load import load
from tunesmith.recipe.resolve import resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.walk import plain, strings

LAPTOP = Facts(device="cpu", num_cpus=2, device_memory_bytes=16 << 30, has_fast_bfloat16=True, num_parameters=5_000_000)
BIG = {"num_parameters": 7_600_000_000, "num_layers": 28, "hidden_size": 3584, "vocab_size": 152_064}
SERVER = Facts(
    device="cuda", device_memory_bytes=80 << 30, has_fast_bfloat16=True, installed=frozenset({"vllm"}), **BIG
)


def recipe(tmp_path: Path, text: str = "") -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text("name: t\nmodel: m\ndata: {train: rows.jsonl}\n" + text)
    return load(path).recipe


def test_no_auto_is_left_but_formats_that_rows_decide(tmp_path: Path) -> None:
    resolved, decisions = resolve(recipe(tmp_path), LAPTOP)
    left = [path for path, text in strings(resolved) if text == "auto" and path[-1] != "format"]
    assert left == []
    assert all(decision.reason for decision in decisions)
    assert resolve(recipe(tmp_path), LAPTOP) == (resolved, decisions)


def test_what_was_given_is_never_changed(tmp_path: Path) -> None:
    given = recipe(tmp_path, "train: {per_device_train_batch_size: 3, gradient_checkpointing: true}\n")
    resolved, decisions = resolve(given, LAPTOP)
    decided = {decision.key for decision in decisions}
    for name, value in plain(given.train).items():
        if value != "auto":
            assert plain(resolved.train)[name] == value and f"train.{name}" not in decided


def test_the_engine_follows_the_device(tmp_path: Path) -> None:
    assert resolve(recipe(tmp_path), LAPTOP)[0].serve.engine == "embedded"
    assert resolve(recipe(tmp_path), SERVER)[0].serve.engine == "vllm"


def test_the_micro_batch_is_as_large_as_it_is_useful_and_fits(tmp_path: Path) -> None:
    for total in (1, 6, 16, 48):
        text = f"train: {{global_batch_size: {total}, method: lora}}\n"
        size = resolve(recipe(tmp_path, text), SERVER)[0].train.per_device_train_batch_size
        assert isinstance(size, int) and 1 <= size <= min(total, 16384 // 2048)
    small = dataclasses.replace(SERVER, device_memory_bytes=20 << 30)
    size = resolve(recipe(tmp_path, "train: {global_batch_size: 64}\n"), small)[0].train.per_device_train_batch_size
    assert isinstance(size, int) and size < 16384 // 2048


def test_ranks_follow_the_devices(tmp_path: Path) -> None:
    eight = dataclasses.replace(SERVER, num_devices=8)
    for method, parallelism in (("full", "fsdp2"), ("lora", "ddp")):
        train = resolve(recipe(tmp_path, f"train: {{method: {method}}}\n"), eight)[0].train
        assert (train.num_processes, train.parallelism) == (8, parallelism)
    for optim in ("adamw_8bit", "adafactor"):
        train = resolve(recipe(tmp_path, f"train: {{method: full, optim: {optim}}}\n"), eight)[0].train
        assert train.parallelism == "ddp"
    assert resolve(recipe(tmp_path), LAPTOP)[0].train.num_processes == 1
    little = dataclasses.replace(eight, device_memory_bytes=24 << 30)
    assert resolve(recipe(tmp_path), little)[0].train.parallelism == "fsdp2"


def test_the_answer_is_bounded_by_the_model(tmp_path: Path) -> None:
    facts = dataclasses.replace(LAPTOP, max_position_embeddings=1024)
    assert resolve(recipe(tmp_path), facts)[0].serve.max_model_len == 1024
    assert plain(resolve(recipe(tmp_path), LAPTOP)[0])["serve"]["max_model_len"] == 2304
    made_up = recipe(tmp_path, "bench: {prompt_tokens: 3000-5000, output_tokens: 300}\n")
    assert resolve(made_up, LAPTOP)[0].serve.max_model_len == 5300
