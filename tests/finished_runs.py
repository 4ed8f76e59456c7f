"""Run directories as a pipeline leaves them, written from the records themselves."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Checkpoint, Dataset, Scores, Speeds, Verdict, Weights
from tunesmith.recipe.dump import dump_recipe
from tunesmith.recipe.schema import (
    Bench,
    Data,
    Evaluate,
    FunctionCallTask,
    Mlflow,
    Model,
    Recipe,
    Report,
    Source,
    Targets,
    TextTask,
    Track,
    Train,
)
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</pre></style></script>{{ 7*7 }}{% raw %}&amp;\x00\x1b[31m\ud800\u202eright to left\u202c"
)
SECRET = "hunter2-hunter2"


def recipe() -> Recipe:
    return Recipe(
        name="quickstart-calls",
        model=Model("models/seed-8m", dtype="float32", attn_implementation="sdpa"),
        data=Data(
            (Source("rows/train.jsonl"), Source("rows/alpaca_en.json")), max_length=512, packing=False, num_workers=2
        ),
        train=Train(
            learning_rate=5e-4, num_train_epochs=3, per_device_train_batch_size=8, gradient_checkpointing=False
        ),
        evaluate=Evaluate(
            text=TextTask(("rows/dev.jsonl",)), function_calls=FunctionCallTask(("rows/held_out.jsonl",))
        ),
        bench=Bench(concurrency=(1, 8, 32), rates=(4.0,), targets=Targets(500, 2000, 100)),
        gate=("improved(evaluate.function_calls.accuracy)", "bench.c8.ttft_p95_ms < 500"),
        report=Report(num_examples=5),
        track=Track(mlflow=Mlflow(tracking_uri="${env:TRACKING_URI}")),
    )


def write(path: Path, kind: str = "full") -> RunDir:
    """Write the run `kind`: full, minimal, failed, wide, hostile or long."""
    run_dir = RunDir(path)
    files.write_text(run_dir.resolved_recipe, dump_recipe(recipe()))
    run_dir.save(_dataset(hostile=kind == "hostile"))
    _metrics(run_dir, num_steps=100_000 if kind == "long" else 420, broken=kind in ("failed", "hostile"))
    stages = ["data", "train", "merge", "evaluate", "bench", "gate"]
    if kind == "failed":
        stages = ["data"]
    else:
        run_dir.save(checkpoint())
    if kind == "minimal":
        stages = ["data", "train"]
    if kind not in ("failed", "minimal"):
        run_dir.save(_weights())
        run_dir.save(_scores(run_dir, kind))
        run_dir.save(_speeds(run_dir))
        run_dir.save(_verdict(kind))
    run_dir.write_run(_run_json(kind, stages))
    return run_dir


def _dataset(*, hostile: bool) -> Dataset:
    counts = {"read": 8000, "quarantined": 12, "duplicates": 188, "unweighted": 0, "overlong_dropped": 200}
    edges = [32, 64, 96, 128, 192, 256, 320, 384, 448, 512]
    return Dataset(
        objective="sft",
        train="data/train",
        validation="data/validation",
        counts=counts | {"train": 7448, "validation": 152, "truncated": 31},
        num_sequences=7448,
        num_tokens=1_482_331,
        num_trained_tokens=401_220,
        longest_tokens=511,
        key="4f1c0c9c2a7de881",
        tokenizer_fingerprint="90aa63d0c1e8b2f7",
        template_fingerprint="17cd2be84f60a935",
        sources=(
            {
                "path": HOSTILE[:80] if hostile else "rows/train.jsonl",
                "format": "messages",
                "sha256": {"a": "ab" * 32, "b": "cd" * 32},
                "read": 6000,
            },
            {"path": "rows/alpaca_en.json", "format": "instruction", "sha256": {"c": "ef" * 32}, "read": 2000},
        ),
        length_histogram={str(e): int(1700 * math.exp(-(((e - 150) / 110) ** 2))) + 9 for e in edges},
        quarantine="data/quarantine.jsonl",
    )


def checkpoint() -> Checkpoint:
    return Checkpoint(
        path="train/final",
        method="lora",
        base_model="models/seed-8m",
        num_steps=420,
        first_loss=4.812,
        final_loss=0.1134,
        validation_loss=0.1321,
        num_trainable_parameters=412_672,
        num_parameters=8_123_904,
        trained_tokens_per_second=5120.4,
        tokens_per_second=18_922.1,
        peak_memory_bytes=1_310_720_000,
        seconds=143.2,
        resumed_from_steps=(200,),
    )


def _weights() -> Weights:
    proof = {
        "compared": "logits on probe prompts", "max_difference": 3.2e-06, "mean_difference": 4.1e-07,
        "logit_range": 21.4, "top1_agreement": 1.0, "num_prompts": 4, "num_tokens": 256, "tolerance": 0.00214,
        "compute_dtype": "float32", "merged_dtype": "float32",
    }  # fmt: skip
    hashes = {"model.safetensors": "12" * 32, "config.json": "34" * 32, "tokenizer.json": "56" * 32}
    return Weights("merge/model", "models/seed-8m", hashes, 16_302_080, proof)


def _binary(base: float, tuned: float, num_items: int, verdict: str, **more: Any) -> dict[str, Any]:
    def around(value: float) -> tuple[float, float]:
        half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / num_items)
        return max(0.0, value - half), min(1.0, value + half)

    low, high = around(base)
    tuned_low, tuned_high = around(tuned)
    return {
        "base": base, "tuned": tuned, "num_items": num_items, "better": "higher", "maximum": 1.0,
        "base_low": low, "base_high": high, "tuned_low": tuned_low, "tuned_high": tuned_high,
        "base_num_failed": 0, "tuned_num_failed": 0, "num_pairs": num_items, "difference": tuned - base,
        "difference_low": tuned - base - 0.05, "difference_high": tuned - base + 0.05,
        "p_value": 0.0001 if verdict != "cannot tell" else 0.4, "verdict": verdict,
    } | more  # fmt: skip


TWENTY = (
    *(f"bfcl.{name}" for name in ("simple_python", "simple_java", "simple_javascript", "multiple", "parallel")),
    *(
        f"bfcl.{name}"
        for name in ("parallel_multiple", "irrelevance", "live_simple", "live_multiple", "live_relevance")
    ),
    *(f"bfcl.multi_turn_{name}" for name in ("base", "miss_func", "miss_param", "long_context")),
    *(f"lm_eval.{name}" for name in ("mmlu", "gsm8k", "hellaswag", "arc_challenge", "winogrande", "truthfulqa_mc1")),
)


def _twenty_evaluations() -> dict[str, dict[str, dict[str, Any]]]:
    random_source = random.Random(7)
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    for task in TWENTY:
        base = random_source.uniform(0.1, 0.7)
        change = random_source.uniform(-0.1, 0.28) if task.startswith("bfcl") else random_source.uniform(-0.1, 0.05)
        tuned, num_items = min(1.0, base + change), random_source.choice((100, 200, 400))
        verdict = "cannot tell" if abs(change) < 0.06 else "improved" if change > 0 else "regressed"
        words = f"{verdict} ({num_items} items)"
        more = {"num_fixed": round(0.3 * num_items), "num_broken": round((0.3 - change) * num_items)}
        tasks[task] = {"accuracy": _binary(base, tuned, num_items, verdict, verdict_in_words=words, **more)}
    return tasks


def _scores(run_dir: RunDir, kind: str) -> Scores:
    tasks: dict[str, dict[str, dict[str, Any]]] = {
        "function_calls": {
            "accuracy": _binary(0.041, 0.958, 240, "improved", num_fixed=221, num_broken=1),
            "name_accuracy": _binary(0.262, 0.983, 240, "improved", num_fixed=174, num_broken=1),
            "argument_accuracy": _binary(0.113, 0.971, 240, "improved"),
            "abstention_accuracy": _binary(0.975, 0.912, 80, "regressed", num_fixed=1, num_broken=6),
        },
        "text": {
            "exact_match": _binary(0.02, 0.035, 200, "cannot tell", num_fixed=5, num_broken=2),
            "jaccard": _binary(0.184, 0.265, 200, "improved"),
            "rougeL": _binary(0.211, 0.298, 200, "improved"),
            "bleu": _binary(0.1, 0.1, 200, "cannot tell") | {
                "base": 8.2, "tuned": 11.9, "maximum": 100.0, "base_low": 6.9, "base_high": 9.9, "tuned_low": 9.8,
                "tuned_high": 13.6, "difference": 3.7, "difference_low": -0.4, "difference_high": 6.9,
            },
        },
    }  # fmt: skip
    if kind == "wide":
        tasks |= _twenty_evaluations()
    items = {}
    for task in ("function_calls", "text", *(TWENTY if kind == "wide" else ())):
        lines = list(_items("text" if task.startswith("lm_eval") else task, hostile=kind == "hostile"))
        text = "\n".join(json.dumps(line) for line in lines) + '\n{"cut'
        files.write_text(run_dir.items(task), text)
        items[task] = run_dir.relative(run_dir.items(task))
    failures = {
        "function_calls": {
            "base": {"no_call": 168, "wrong_arguments": 51, "request_failed:timeout": 1},
            "tuned": {"wrong_arguments": 8, "no_call": 2},
        }
    }
    return Scores(tasks, items, 38.4, failures, num_unanswered=1)


def _items(task: str, *, hostile: bool) -> list[dict[str, Any]]:
    if hostile:
        texts = [HOSTILE, "x" * 10_000, "مرحبا بالعالم، كيف حالك اليوم؟ " * 8, "👩‍👩‍👧‍👦🏳️‍🌈" * 300, "[" * 10_000]
        return [
            {
                "id": text[:120],
                "prompt_tail": text,
                "reference": text,
                "base": {"answer": text, "correct": False, "error": HOSTILE},
                "tuned": {"answer": text, "correct": index % 2 == 0, "scores": {"jaccard": None}},
            }
            for index, text in enumerate(texts)
        ] + [{}, {"id": 3, "tuned": "nonsense"}]
    if task == "text":
        return [
            {
                "id": f"rows/dev.jsonl:{index + 1}",
                "prompt_tail": "Name three ways to save water at home.",
                "reference": "Take shorter showers, fix leaks and collect rain water.",
                "base": {
                    "answer": "Water is is is water.",
                    "correct": False,
                    "scores": {"jaccard": 0.08, "rougeL": 0.1},
                },
                "tuned": {
                    "answer": "Fix leaks, take shorter showers and reuse rain water in the garden.",
                    "correct": index == 3,
                    "scores": {"jaccard": 0.5, "rougeL": 0.47},
                    "finish_reason": "length" if index == 1 else "stop",
                },
            }
            for index in range(6)
        ]
    wanted = 'book_table({"city": "Turin", "people": 4, "time": "19:30", "outside": true})'
    wrong = 'book_table({"city": "Turin", "people": 2, "time": "19:30"})'
    return [
        {
            "id": f"rows/held_out.jsonl:{index + 1}#2",
            "prompt_tail": "Please book a table for four in Turin at half past seven, outside if it is dry.",
            "reference": wanted,
            "base": {"answer": "I would like a table.", "correct": index == 2, "error": "no_call"},
            "tuned": {
                "answer": wrong if index in (2, 4) else wanted,
                "correct": index not in (2, 4),
                "error": "wrong_arguments" if index in (2, 4) else "",
            },
        }
        for index in range(9)
    ]


def _speeds(run_dir: RunDir) -> Speeds:
    random_source = random.Random(11)
    levels: dict[str, dict[str, Any]] = {}
    lines = []
    for concurrency in (1, 8, 32):
        first = sorted(random_source.lognormvariate(math.log(40 * concurrency**0.6), 0.28) for _ in range(100))
        whole = sorted(value * 3.1 + random_source.uniform(80, 400) for value in first)
        level: dict[str, Any] = {
            "concurrency": concurrency,
            "num_requests": 100,
            "num_failed": 1 if concurrency == 32 else 0,
            **({"failed_timeout": 1} if concurrency == 32 else {}),
            "failed_fraction": 0.01 if concurrency == 32 else 0.0,
            "good_fraction": 0.93 if concurrency == 32 else 1.0,
            "good_requests_per_second": 3.0 * concurrency**0.5,
            "requests_per_second": 3.1 * concurrency**0.5,
            "output_tokens_per_second": 92.0 * concurrency**0.55,
        }
        for name, values in (
            ("ttft", first),
            ("e2e", whole),
            ("tpot", [v / 20 for v in first]),
            ("itl", [v / 19 for v in first]),
        ):
            level |= {f"{name}_mean_ms": sum(values) / 100, f"{name}_median_ms": values[49]}
            level |= {f"{name}_p90_ms": values[89], f"{name}_p95_ms": values[94], f"{name}_p99_ms": values[98]}
        levels[f"c{concurrency}"] = level
        lines += [
            {"level": f"c{concurrency}", "ttft": a / 1000, "e2e": b / 1000} for a, b in zip(first, whole, strict=True)
        ]
    levels["r4"] = levels["c8"] | {"concurrency": None, "rate": 4.0}
    lines += [line | {"level": "r4"} for line in lines if line["level"] == "c8"]
    files.write_text(run_dir.requests, "".join(f"{json.dumps(line)}\n" for line in lines))
    limits = (("ttft_p95_ms", 500.0, True), ("e2e_p95_ms", 2000.0, True), ("output_tokens_per_second", 100.0, False))
    targets = [
        {
            "target": name,
            "limit": limit,
            "level": level,
            "value": facts[name],
            "passed": (facts[name] <= limit) == at_most,
        }
        for name, limit, at_most in limits
        for level, facts in levels.items()
    ]
    client = {"requests_per_second": 9120.0, "tokens_per_second": 214_000.0, "lateness_p99_ms": 0.31}
    told = ("c32: 1 of 100 requests failed (1 timeout)",)
    return Speeds(levels, run_dir.relative(run_dir.requests), tuple(targets), 41.0, client=client, warnings=told)


def _verdict(kind: str) -> Verdict:
    accuracy = "base 0.041 → tuned 0.958; difference +0.917 (+0.867 … +0.967, p = 0.0001) on 240 items; improved"
    rules = (
        {"rule": "improved(evaluate.function_calls.accuracy)", "passed": True, "evidence": accuracy},
        {
            "rule": "bench.c8.ttft_p95_ms < 500",
            "passed": kind != "wide",
            "evidence": HOSTILE.replace("\ud800", "")
            if kind == "hostile"
            else f"bench.c8.ttft_p95_ms = {531.8 if kind == 'wide' else 231.8}",
        },
    )
    return Verdict(passed=kind != "wide", rules=rules)


def _metrics(run_dir: RunDir, *, num_steps: int, broken: bool) -> None:
    random_source = random.Random(3)
    with files.writing(run_dir.metrics) as path, path.open("w") as file:
        for step in range(1, num_steps + 1):
            share = step / num_steps
            noise = random_source.gauss(1, 0.12)
            loss: float | str = (4.7 * math.exp(-7 * share) + 0.11) * noise
            if broken and step > 0.7 * num_steps and step % 3 == 0:
                loss = "NaN" if step % 2 else "Infinity"
            if step == num_steps // 2 and num_steps > 10_000:
                loss = 31.4159
            rate = 5e-4 * min(1.0, step / (0.03 * num_steps)) * 0.5 * (1 + math.cos(math.pi * share))
            line = {
                "step": step, "time": 1763712000 + step * 0.3, "train/loss": loss, "train/learning_rate": rate,
                "train/grad_norm": abs(random_source.gauss(1, 0.3)), "train/memory_gib": 1.2,
                "train/tokens_per_second": 18_900 + random_source.gauss(0, 400),
                "train/trained_tokens_per_second": 5100 + random_source.gauss(0, 160), "train/epoch": 3 * share,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            if step % max(1, num_steps // 14) == 0:
                validation = 4.6 * math.exp(-7 * share) + 0.13
                file.write(json.dumps({"step": step, "time": 1763712000, "eval/loss": validation}) + "\n")
        file.write('{"step": 999')  # cut off by a kill


def _run_json(kind: str, stages: list[str]) -> dict[str, Any]:
    seconds = {"data": 4.2, "train": 143.2, "merge": 6.1, "evaluate": 38.4, "bench": 41.0, "gate": 0.01}
    states: dict[str, Any] = {name: {"state": "done", "key": "k", "seconds": seconds[name]} for name in stages}
    if kind == "failed":
        error = "the loss is not finite at step 297\n  → lower train.learning_rate"
        states["train"] = {"state": "failed", "key": "k", "started": "2026-01-31T14:22:33+00:00", "error": error}
    return {
        "schema_version": 1,
        "name": "quickstart-calls",
        "id": "20260131-142233-quickstart-calls",
        "created": "2026-01-31T14:22:33+00:00",
        "command": [
            "tunesmith",
            "run",
            "recipes/quickstart.yaml",
            HOSTILE.replace("\ud800", "") if kind == "hostile" else "--set",
            "seed=1",
        ],
        "state": "failed" if kind == "failed" else "running",
        "stages": states,
        "decisions": [
            {"key": "model.dtype", "value": "float32", "reason": "this CPU has no fast bfloat16"},
            {"key": "data.packing", "value": False, "reason": "rows sorted by length waste little padding"},
            {"key": "train.per_device_train_batch_size", "value": 8, "reason": "8 sequences keep 2 cores busy"},
            {"key": "serve.engine", "value": "embedded", "reason": "there is no CUDA device"},
        ],
        "lineage": {
            "tunesmith": "0.1.0",
            "git": {
                "commit": "f62d68a2e977fd23f07f614e66b4a7d2ea7ed015",
                "branch": "main",
                "dirty": True,
                "num_changed_files": 2,
            },
            "python": "3.11.2",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.3.1"},
            "hardware": {
                "device": "cpu",
                "device_name": "AMD EPYC 9354",
                "num_devices": 1,
                "num_cpus": 2,
                "memory_bytes": 2**33,
            },
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "model": {"name_or_path": "models/seed-8m", "weights": "77ab01fe22cd9013", "rest": "0e4d5c81aa92b7f3"},
            "files": {"data": {"rows/train.jsonl": "ab" * 32}, "evaluate": {"rows/held_out.jsonl": "ef" * 32}},
        },
    }
