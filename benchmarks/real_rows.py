"""Run two recipes over real rows, end to end, on a model built on the spot: mixed SFT with LoRA, and DPO.

    python benchmarks/real_rows.py --data ../shared/data [--size 15m] [--steps 40]

Rows: tool-calling conversations (ShareGPT), instructions (Alpaca), word problems (question/answer), preference pairs.
Prints where every row went and the training loss; exits 1 when a row is unaccounted for or the loss does not fall.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


def recipes(data: Path, model: Path, out: Path, steps: int) -> list[dict[str, Any]]:
    """Return the two recipes as documents."""
    bench = {"concurrency": [1, 4], "num_requests": 8, "max_tokens": 24}
    common = {"model": str(model), "output_dir": str(out), "bench": bench, "seed": 7}
    sft = common | {
        "name": "real-sft",
        "data": {
            "train": [
                {"path": f"{data}/sft/glaive_toolcall_en_demo.json"},
                {"path": f"{data}/sft/alpaca_en_demo.json", "weight": 1.5},
                {
                    "path": f"{data}/gsm8k/train.jsonl",
                    "columns": {"question": "prompt", "answer": "completion"},
                    "weight": 0.25,
                },
            ],
            "validation_fraction": 0.02,
            "max_length": 768,
            "overlong": "truncate",
        },
        "train": {"method": "lora", "lora": {"r": 16}, "max_steps": steps, "learning_rate": 3e-3},
        "publish": {"local": str(out / "models")},
    }
    sft["train"]["global_batch_size"] = 8
    dpo = common | {
        "name": "real-dpo",
        "data": {
            "train": f"{data}/dpo/dpo_en_demo.json",
            "max_length": 512,
            "overlong": "truncate",
            "max_cut_rows_fraction": 0.9,
        },
        "train": {
            "objective": "dpo",
            "method": "lora",
            "max_steps": steps,
            "learning_rate": 3e-4,
            "global_batch_size": 8,
        },
    }
    return [sft, dpo]


def run(document: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run one recipe with the command and return its records."""
    path = out / f"{document['name']}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    command = [sys.executable, "-m", "tunesmith", "run", str(path), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{document['name']} ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def losses(run_dir: Path) -> list[float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def report(answer: dict[str, Any]) -> bool:
    """Print a run's counts and losses; return whether they are as they must be."""
    counts = answer["records"]["dataset"]["counts"]
    fates = ("quarantined", "duplicates", "unweighted", "overlong_dropped", "train", "validation")
    accounted = sum(counts[fate] for fate in fates)
    curve = losses(Path(answer["run"]))
    tail = max(1, len(curve) // 5)
    first, last = statistics.mean(curve[:tail]), statistics.mean(curve[-tail:])
    print(f"{answer['run']}")
    print(f"  rows read {counts['read']:,} = " + " + ".join(f"{counts[fate]:,} {fate}" for fate in fates))
    sequences = answer["records"]["dataset"]["num_sequences"]
    print(f"  of those kept, {counts['truncated']:,} truncated; {sequences:,} sequences an epoch")
    print(f"  loss, mean of the first and last fifth: {first:.4f} → {last:.4f}")
    return counts["read"] == accounted and last < first


def main() -> int:
    from make_random_model import SIZES, make

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--size", choices=sorted(SIZES), default="15m")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "real-rows")
    given = parser.parse_args()
    rows = [given.data / "sft/glaive_toolcall_en_demo.json", given.data / "sft/alpaca_en_demo.json"]
    model = given.out / f"random-{given.size}"
    if not (model / "config.json").exists():
        print(f"{model}: {make(rows, given.size, model):,} parameters")
    good = [report(run(document, given.out)) for document in recipes(given.data, model, given.out, given.steps)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
