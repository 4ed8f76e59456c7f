"""What a checkpoint costs training: steps behind a save against steps that no save disturbs, in one training.

    python benchmarks/checkpoint_cost.py --data ../shared/data [--size 135m] [--methods lora,full] [--pairs 12]

`tunesmith run RECIPE --until train`, with a checkpoint every 2·W steps. The W steps behind a save carry all of it: the
copy that the loop waits for, and the thread that hashes and writes while the loop computes on. The W steps after those
carry none, and are what they are compared with, pair by pair; every sequence is cut to the same length, so that all
steps do the same work. The first pair (memory is asked for, files are new) is left out and told apart. The last save,
which training waits for, is in no pair. Exits 1 when a save costs more than 2 % of the default interval.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prepare_vs_peers import TUNESMITH, rows

from tunesmith.recipe.schema import Train
from tunesmith.store.run_dir import RunDir
from tunesmith.track.jsonl import read_metrics

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 0.02


@dataclass(frozen=True)
class Cost:
    """What saves cost, in seconds."""

    step: float  # of an undisturbed step
    first: float  # of the first save
    later: tuple[float, ...]  # of each later one

    @property
    def mean(self) -> float:
        return statistics.mean(self.later)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return statistics.stdev(self.later) / math.sqrt(len(self.later))


def recipe_of(given: argparse.Namespace, method: str, out: Path) -> Path:
    """Write rows that are all longer than what is kept of them, and the recipe."""
    out.mkdir(parents=True)
    num_rows = given.batch * (2 * given.window * given.pairs + 8)
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        source = rows(given.data)
        for number in range(num_rows):
            messages = [next(source)["messages"][-1] for _ in range(40)]
            text = "\n".join(message["content"] for message in messages)
            if number == 0:
                text = text[: 2 * given.length]  # one row keeps its end: a model that never sees one is not trained
            file.write(json.dumps({"prompt": text[:40], "completion": text[40:]}, ensure_ascii=False) + "\n")
    document: dict[str, Any] = {
        "name": "checkpoint-cost",
        "model": {"name_or_path": str(given.out / f"random-{given.size}"), "dtype": given.dtype},
        "data": {
            "train": str(out / "rows.jsonl"),
            "max_length": given.length,
            "overlong": "truncate",
            "max_cut_rows_fraction": 1.0,
        },
        "train": {
            "method": method,
            "global_batch_size": given.batch,
            "num_train_epochs": 1.0,
            "max_steps": 2 * given.window * given.pairs + 2,
            "save_steps": 2 * given.window,
            "learning_rate": 1e-5,
        },
        "output_dir": str(out),
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return out / "recipe.yaml"


def measure(given: argparse.Namespace, method: str) -> Cost:
    """Train, and compare the windows."""
    out = given.out / method
    shutil.rmtree(out, ignore_errors=True)
    recipe = recipe_of(given, method, out)
    done = subprocess.run(
        [TUNESMITH, "run", str(recipe), "--until", "train", "--json"], stdout=subprocess.PIPE, check=True
    )
    lines = read_metrics(RunDir(json.loads(done.stdout)["run"]).metrics)
    ended = {line.step: line.time_seconds for line in lines if "train/loss" in line.metrics}
    saves = range(2 * given.window, max(ended) - 2 * given.window + 1, 2 * given.window)
    behind = [ended[step + given.window] - ended[step] for step in saves]
    undisturbed = [ended[step + 2 * given.window] - ended[step + given.window] for step in saves]
    extra = [one - other for one, other in zip(behind, undisturbed, strict=True)]
    shutil.rmtree(out)
    return Cost(statistics.mean(undisturbed) / given.window, extra[0], tuple(extra[1:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--size", default="135m")
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--window", type=int, default=2, help="steps; a save must be over before they are")
    parser.add_argument("--batch", type=int, default=2, help="global batch size")
    parser.add_argument("--length", type=int, default=128, help="tokens of every sequence")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "checkpoint-cost")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "scripts"))
    from make_random_model import make

    if not (given.out / f"random-{given.size}").exists():
        make([given.data / "gsm8k/train.jsonl"], given.size, given.out / f"random-{given.size}")
    worst = 0.0
    print("| method | undisturbed step s | first save s | a save s | share of 100 such steps |\n|---|---|---|---|---|")
    for method in given.methods.split(","):
        cost = measure(given, method)
        share = cost.mean / (Train().save_steps * cost.step)
        worst = max(worst, share)
        shown = f"{cost.mean:.2f} ± {cost.error:.2f} ({len(cost.later)} saves)"
        print(f"| {method} | {cost.step:.2f} | {cost.first:.2f} | {shown} | {share:.2%} |", flush=True)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
