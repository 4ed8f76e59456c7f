"""The memory that `tunesmith plan` expects beside the peak that training has: three sizes of model, every method.

    python benchmarks/memory_estimate.py [--data ../shared/data] [--sizes 2m,15m,135m] [--dtype float32]

Each line is `tunesmith plan RECIPE --json`, and then three steps of `tunesmith run RECIPE --until train` with a
checkpoint after each of them: what is held while one is written counts as in a long training. The peak is the resident
one of the training process on a CPU, and what PyTorch has allocated on a GPU (the estimate without its CUDA context).
Exits 1 when an estimate is off by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
TUNESMITH = str(Path(sys.executable).parent / "tunesmith")
TOLERANCE = 0.15

ROWS = {"sft": ("sft/glaive_toolcall_en_demo.json", "sft/alpaca_en_demo.json"), "dpo": ("dpo/dpo_en_demo.json",)}
TASKS = {"full": ("sft", "full"), "lora": ("sft", "lora"), "qlora": ("sft", "qlora"), "dpo": ("dpo", "lora")}


@dataclass(frozen=True)
class Line:
    """One line of the table, in bytes."""

    size: str
    task: str
    expected: int
    measured: int
    parts: dict[str, int]

    @property
    def ratio(self) -> float:
        return self.expected / self.measured

    def text(self) -> str:
        parts = ", ".join(f"{name} {value / 2**20:,.0f}" for name, value in self.parts.items() if value)
        mib = f"{self.expected / 2**20:>8,.0f} | {self.measured / 2**20:>8,.0f}"
        return f"| {self.size:<4} | {self.task:<5} | {mib} | {self.ratio:.2f} | {parts} |"


def document(given: argparse.Namespace, task: str, model: Path, out: Path) -> dict[str, Any]:
    """Return the recipe of a line: everything but method, lengths and steps is left to `auto`."""
    objective, method = TASKS[task]
    train: dict[str, Any] = {
        "objective": objective,
        "method": method,
        "global_batch_size": 8,
        "max_steps": given.steps,
        "save_steps": 1,
        "save_total_limit": 1,
    }
    if given.micro_batch:
        train["per_device_train_batch_size"] = given.micro_batch
    if given.checkpointing:
        train["gradient_checkpointing"] = True
    rows = [{"path": str(given.data / name)} for name in ROWS[objective]]
    data = {"train": rows, "max_length": given.max_length, "overlong": "truncate", "max_cut_rows_fraction": 1.0}
    base = {"name_or_path": str(model), "dtype": given.dtype}
    return {"name": f"memory-{task}", "model": base, "data": data, "train": train, "output_dir": str(out)}


def measure(given: argparse.Namespace, size: str, task: str, model: Path) -> Line:
    """Plan, train, and return both numbers."""
    out = given.out / f"{size}-{task}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    recipe = out / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document(given, task, model, out), sort_keys=False))
    plan = told("plan", str(recipe), "--json")
    record = told("run", str(recipe), "--until", "train", "--new", "--json")["records"]["checkpoint"]
    memory = plan["memory_bytes"]
    if plan["device"]["kind"] == "cuda":
        memory["total"] -= memory.pop("libraries")
    parts = {name: value for name, value in memory.items() if name not in ("total", "available", "moment")}
    shutil.rmtree(out)
    return Line(size, task, memory["total"], record["peak_memory_bytes"], parts)


def told(*words: str) -> dict[str, Any]:
    """Return what a command prints."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"} | os.environ
    done = subprocess.run([TUNESMITH, *words], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> int:
    from make_random_model import SIZES, make

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sizes", default="2m,15m,135m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--dtype", default="float32", help="of weights and compute")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=0, help="per_device_train_batch_size; 0 leaves it to auto")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "memory-estimate")
    given = parser.parse_args()
    print("| size | task  | estimate | measured | ratio | parts of the estimate, MiB |\n|---|---|---|---|---|---|")
    worst = 0.0
    for size in given.sizes.split(","):
        model = given.out / "models" / f"random-{size}"
        if not (model / "config.json").exists():
            make([given.data / name for name in ROWS["sft"]], size, model)
        for task in given.tasks.split(","):
            line = measure(given, size, task, model)
            worst = max(worst, abs(line.ratio - 1))
            print(line.text(), flush=True)
    print(f"the worst is off by {worst:.0%}; {TOLERANCE:.0%} are allowed")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
