"""Training beside TRL: the same rows in the same order, in turn, each contestant a child process of this one.

    python benchmarks/train_vs_peers.py --data ../shared/data [--only sft-lora,sft-full,dpo-lora] [--steps 8] [--search]
    python benchmarks/train_vs_peers.py --device cuda --size 8b --sequence-length 4096

Ours is the command `tunesmith run RECIPE --until train` with nothing set but the task. TRL runs as shipped ("defaults":
only paths, steps and number format are given, and `assistant_only_loss`, so that both train the same labels) and with
the fastest settings known ("best"; `--search` tries every candidate and keeps the fastest).

* Tokens are real ones, without padding; of pairs, the prompt with each answer. Tokens/s are over the steps after the
  second, from wall times of step ends. Tokens of each step and the first step's loss must agree, or the exit code is 1.
* Memory is the resident peak of the training process (allocated on the GPU with CUDA); "tree" sums all its processes.
* Seconds to the first step run from the start of the command to the end of its first optimiser step: imports, reading,
  tokenising, loading, and DPO's reference where it is computed in advance. TRL gets only the pairs of these steps.
* Share of the peak: model FLOPs of the real tokens over what layer-sized products reach here, in the same format.
  Per token 6·N for full training and 4·N for adapters (no gradients of frozen weights), N the numbers in the layers'
  matrices; per labelled token 6·V·H or 4·V·H for the head. Attention scores, the adapters' own products, a reference
  model and recomputation are not counted.
"""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import datetime
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from train_tasks import GLOBAL_BATCH, SEED, TASKS, TUNESMITH, Batches, candidates, keeps_order, prepare, write_recipe

import tunesmith
from tunesmith.store.run_dir import RunDir

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
OURS, SKIPPED_STEPS = "tunesmith", 2


# ── The contestants ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Measured:
    """One training."""

    contestant: str
    settings: str
    failure: str | None = None
    first_step_seconds: float = float("nan")
    seconds: tuple[float, ...] = ()  # of each step from the second on
    tokens: tuple[int, ...] = ()  # of each step
    trained: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    peak_bytes: int = 0
    tree_peak_bytes: int = 0
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        kept = sum(self.seconds[SKIPPED_STEPS - 1 :])
        return sum(self.tokens[SKIPPED_STEPS:]) / kept if kept else float("nan")


@dataclass(frozen=True)
class Ended:
    """How a child process ended."""

    started: float
    failure: str | None
    peak_bytes: int
    tree_peak_bytes: int


def child(command: list[str], threads: int, log: Path) -> Ended:
    """Run a command to its end, and watch the memory of its process tree."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    started, ended, peak = time.time(), threading.Event(), [0]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

        def watch() -> None:
            while not ended.wait(0.5):
                peak[0] = max(peak[0], resident_bytes_of_tree(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    failure = None if process.returncode == 0 else f"exit code {process.returncode}, see {log}"
    return Ended(started, failure, usage.ru_maxrss * 1024, peak[0])


def resident_bytes_of_tree(root: int) -> int:
    """Return the resident memory of a process and all below it, shared pages in each; 0 where there is no /proc."""
    parents, resident = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], resident[pid] = int(fields[1]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in resident:
        ancestor = pid
        while ancestor not in (root, 0, 1):
            ancestor = parents.get(ancestor, 0)
        total += resident[pid] if ancestor == root else 0
    return total


def train_ours(name: str, given: argparse.Namespace, model: Path, batches: Batches, out: Path) -> Measured:
    """Run our command with empty caches, and read the run directory."""
    shutil.rmtree(out, ignore_errors=True)
    recipe = write_recipe(name, given, model, batches.rows, out)
    ended = child([TUNESMITH, "run", str(recipe), "--until", "train"], given.threads, out / "log")
    if ended.failure:
        return Measured(OURS, "as shipped", ended.failure)
    (metrics,) = out.glob("**/metrics.jsonl")
    lines = [line for line in map(json.loads, metrics.read_text().splitlines()) if "train/loss" in line]
    record = json.loads(RunDir(metrics.parent).artifact("train").read_text())
    times = [line["time"] for line in lines]
    return Measured(
        OURS,
        "as shipped",
        first_step_seconds=times[0] - ended.started,
        seconds=tuple(float(step) for step in np.diff(times)),
        tokens=tuple(batches.tokens),
        trained=tuple(batches.trained),
        losses=tuple(line["train/loss"] for line in lines),
        peak_bytes=record["peak_memory_bytes"],
        tree_peak_bytes=ended.tree_peak_bytes,
    )


def train_trl(
    label: str, settings: dict[str, Any], name: str, given: argparse.Namespace, model: Path, batches: Batches, out: Path
) -> Measured:
    """Run the worker with empty caches, and read its result."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    task = TASKS[name]
    config = {"max_length": given.max_length, "use_cpu": given.device == "cpu"}
    config |= {"bf16": False} if batches.dtype == "float32" else {}
    config |= {"assistant_only_loss": True} if task.objective == "sft" else {}
    job = {
        "objective": task.objective,
        "method": task.method,
        "model": str(model),
        "rows": str(batches.in_order),
        "num_steps": given.steps,
        "learning_rate": task.learning_rate,
        "threads": given.threads,
        "seed": SEED,
        "config": config | settings,
        "out": str(out),
    }
    (out / "job.json").write_text(json.dumps(job, indent=1))
    worker = str(Path(__file__).with_name("trl_worker.py"))
    ended = child([sys.executable, worker, str(out / "job.json")], given.threads, out / "log")
    text = ", ".join(f"{key}={value}" for key, value in settings.items()) or "as shipped"
    if ended.failure:
        return Measured(label, text, ended.failure)
    result = json.loads((out / "result.json").read_text())
    return Measured(
        label,
        text,
        first_step_seconds=result["first_step_ended"] - ended.started,
        seconds=tuple(result["seconds"]),
        tokens=tuple(result["tokens"]),
        trained=tuple(result["trained"]),
        losses=tuple(result["losses"]),
        peak_bytes=result["peak_device_bytes"] or ended.peak_bytes,
        tree_peak_bytes=ended.tree_peak_bytes,
        versions=result["versions"],
    )


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────

PEAK = """
import json, sys, time, torch
dtype, device, threads, hidden, wide = getattr(torch, sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
tokens = 2048 if device == "cpu" else 16384
x, weight = (torch.randn(rows, hidden, device=device).to(dtype) for rows in (tokens, wide))
def settle():
    if device == "cuda": torch.cuda.synchronize()
best, begun = 0.0, time.perf_counter()
while time.perf_counter() - begun < 4.0:
    settle(); start = time.perf_counter()
    for _ in range(4): torch.nn.functional.linear(x, weight)
    settle(); best = max(best, 4 * 2 * tokens * hidden * wide / (time.perf_counter() - start))
print(best)
"""


def matrix_peak(dtype: str, given: argparse.Namespace, config: dict[str, Any]) -> float:
    """Return the most FLOP/s that products of a layer's size reach, in a process of their own."""
    sizes = [str(config["hidden_size"]), str(config["intermediate_size"])]
    command = [sys.executable, "-c", PEAK, dtype, given.device, str(given.threads), *sizes]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def flops_per_second(measured: Measured, method: str, config: dict[str, Any]) -> float:
    """Return the model FLOP/s of the steps after the second, by the formula at the top of the file."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_width = config.get("head_dim") or hidden // heads
    attention = 2 * hidden * head_width * (heads + config["num_key_value_heads"])
    in_layers = config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"])
    per_parameter = 6 if method == "full" else 4
    tokens, trained = sum(measured.tokens[SKIPPED_STEPS:]), sum(measured.trained[SKIPPED_STEPS:])
    flops = per_parameter * (tokens * in_layers + trained * hidden * config["vocab_size"])
    return flops / sum(measured.seconds[SKIPPED_STEPS - 1 :])


def table(name: str, runs: list[Measured], peak: float, config: dict[str, Any]) -> list[str]:
    """Return the rows of a Markdown table; ratios are TRL's speed, memory and waiting in multiples of ours."""
    lines = [
        f"**{name}**",
        "",
        "| contestant | real tokens/s | ours is | GiB | of theirs | tree GiB | first step s | of theirs | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = runs[0]
    for run in runs:
        if run.failure:
            lines.append(f"| {run.contestant} | {run.failure} | | | | | | | |")
            continue
        faster = f"{ours.tokens_per_second / run.tokens_per_second:.2f}×"
        memory, wait = ours.peak_bytes / run.peak_bytes, ours.first_step_seconds / run.first_step_seconds
        share = flops_per_second(run, TASKS[name].method, config) / peak
        compared = (faster, f"{memory:.0%}", f"{wait:.0%}") if run is not ours else ("", "", "")
        lines.append(
            f"| {run.contestant} | {run.tokens_per_second:.1f} | {compared[0]} | {run.peak_bytes / 2**30:.2f} "
            f"| {compared[1]} | {run.tree_peak_bytes / 2**30:.2f} | {run.first_step_seconds:.1f} | {compared[2]} "
            f"| {share:.0%} |"
        )
    return [*lines, "", *(f"* {run.contestant}: {run.settings}" for run in runs), ""]


def disagreements(runs: list[Measured], batches: Batches, ordered: set[str]) -> list[str]:
    """Return where contestants did not train the same: tokens and labels of each step, the first loss."""
    found = []
    ours = runs[0]
    for run in runs:
        if run.failure or ours.failure or run.contestant not in ordered:
            continue
        for what, counts, expected in (
            ("tokens", run.tokens, batches.tokens),
            ("labels", run.trained, batches.trained),
        ):
            if list(counts) != expected:
                found.append(f"{run.contestant}: {what} of each step are {list(counts)}, expected {expected}")
        tolerance = 1e-4 if batches.dtype == "float32" else 2e-2
        if not math.isclose(run.losses[0], ours.losses[0], rel_tol=tolerance):
            found.append(f"{run.contestant}: first loss {run.losses[0]:.6f}, ours {ours.losses[0]:.6f}")
    return found


# ── The run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def compare(name: str, given: argparse.Namespace, model: Path, peaks: dict[str, float]) -> tuple[list[str], list[str]]:
    """Run one task with every contestant in turn; return its table and its disagreements."""
    print(f"{name}", flush=True)
    out = given.out / name
    out.mkdir(parents=True, exist_ok=True)
    batches = prepare(name, given, model, out)
    config = json.loads((model / "config.json").read_text())
    if batches.dtype not in peaks:
        peaks[batches.dtype] = matrix_peak(batches.dtype, given, config)
    known = candidates(TASKS[name], given.device, batches.dtype)
    tried = known if given.search else known[:1]
    contestants: list[tuple[str, dict[str, Any] | None]] = [(OURS, None), ("TRL defaults", {})]
    contestants += [(f"TRL best ({n + 1})" if given.search else "TRL best", one) for n, one in enumerate(tried)]
    if given.ours_alone:
        del contestants[1:]
    rounds: dict[str, list[Measured]] = {}
    for _ in range(given.runs):
        for label, settings in contestants:
            where = out / label.replace(" ", "-")
            if settings is None:
                run = train_ours(name, given, model, batches, where)
            else:
                run = train_trl(label, settings, name, given, model, batches, where)
            print(f"  {label}: {run.failure or f'{run.tokens_per_second:.1f} tokens/s'}  [{run.settings}]", flush=True)
            rounds.setdefault(label, []).append(run)
    runs = [middle(measured) for measured in rounds.values()]
    best = [max(runs[2:], key=lambda run: -1.0 if run.failure else run.tokens_per_second)] if runs[2:] else []
    ordered = {label for label, settings in contestants if settings is None or keeps_order(settings)}
    differing = disagreements(runs, batches, ordered)
    shown = [*runs[:2], *(dataclasses.replace(run, contestant="TRL best") for run in best)]
    heading = f"{batches.dtype}; {given.steps - SKIPPED_STEPS} steps measured, after {SKIPPED_STEPS}; "
    heading += f"matrix peak {peaks[batches.dtype] / 1e9:.0f} GFLOP/s"
    return [heading, "", *table(name, shown, peaks[batches.dtype], config)], differing


def middle(runs: list[Measured]) -> Measured:
    """Return the run of median speed, or the failed one."""
    failed = [run for run in runs if run.failure]
    return failed[0] if failed else sorted(runs, key=lambda run: run.tokens_per_second)[len(runs) // 2]


def facts(given: argparse.Namespace, model: Path) -> list[str]:
    """Return hardware, versions, commit and command."""
    from importlib.metadata import version

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in cpu]
    names = [line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = []
    if given.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        gpu = [subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()]
    hardware = [
        *gpu,
        *names[:1],
        f"{os.cpu_count()} cores ({', '.join(flags)})",
        f"{memory:.0f} GiB",
        platform.platform(),
    ]
    return [
        "; ".join(hardware),
        f"Python {platform.python_version()}, {packages}; commit {commit.strip()}; {given.threads} threads",
        f"`python benchmarks/train_vs_peers.py {' '.join(sys.argv[1:])}`; model: {model.name}; "
        f"global batch {GLOBAL_BATCH}; median of {given.runs} run(s)",
    ]


def main() -> int:
    from make_random_model import SIZES, make

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", default=",".join(TASKS), help="comma-separated tasks")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps; the first two are not in tokens/s")
    parser.add_argument(
        "--runs", type=int, default=1, help="how often each contestant runs, in turn; the median counts"
    )
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", choices=sorted(SIZES), default="135m")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--max-length", type=int, default=1024, help="longer rows are left out")
    parser.add_argument("--sequence-length", type=int, help="join SFT conversations up to this many tokens")
    parser.add_argument("--ours-alone", action="store_true", help="no TRL: for comparison with an earlier result")
    parser.add_argument("--search", action="store_true", help="try every candidate for TRL's best settings")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "train-vs-peers")
    parser.add_argument("--write", type=Path, help="Markdown file for the result, `benchmarks/results/DATE-train.md`")
    given = parser.parse_args()
    given.max_length = max(given.max_length, given.sequence_length or 0)
    names = given.only.split(",")
    if unknown := set(names) - set(TASKS):
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    if given.steps < SKIPPED_STEPS + 1:
        parser.error(f"--steps must be at least {SKIPPED_STEPS + 1}")
    given.out = given.out.resolve()
    compileall.compile_dir(Path(tunesmith.__file__).parent, quiet=1)  # as pip does with what it installs, peers too
    model = given.out / f"random-{given.size}"
    if not (model / "config.json").exists():
        sources = sorted({source for task in TASKS.values() for source in task.sources})
        print(f"{model}: {make([given.data / source for source in sources], given.size, model):,} parameters")
    peaks: dict[str, float] = {}
    page = [f"# Training beside TRL, {datetime.date.today()}", "", *(f"* {fact}" for fact in facts(given, model)), ""]
    problems = []
    for name in names:
        lines, differing = compare(name, given, model, peaks)
        page += lines
        problems += [f"{name}: {problem}" for problem in differing]
    print("\n".join(page))
    if given.write:
        given.write.write_text("\n".join(page).rstrip() + "\n")
    print("\n".join(problems) or "tokens and labels of each step and the first losses agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
