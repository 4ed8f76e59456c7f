"""Whole trainings, rows to weights, on growing numbers of rows: is memory flat, is time linear?

    python benchmarks/train_scale.py --data ../shared/data [--rows 10000 100000 1000000]

Each line is `tunesmith run RECIPE --until data` and then `--until train` on the same run: one epoch of full training of
a model with two narrow layers, on short rows, so that a million of them can be trained on in minutes. What grows with
the rows (order, lengths, positions in the token files, progress, metrics) does not depend on the model's size. Rows are
first sentences of word problems with fresh numbers, no two equal. Memory is the resident peak of the command with all
its processes; "own" leaves out pages of files (the token files are mapped), which the system takes back when it needs
them. Exits 1 when training on the most rows takes 1.25 times the own memory or the time per row of the fewest.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prepare_vs_peers import TUNESMITH, Measured, measured

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1.25
_NUMBER = re.compile(r"\d+")


def rows(data: Path, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield short rows without end, no two equal."""
    draw, seen = random.Random(seed), set[int]()
    sentences = []
    for line in (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        sentence = row["question"].split(". ")[0]
        if len(sentence) < 120 and _NUMBER.search(sentence):
            sentences.append((sentence, row["answer"].rpartition("####")[2].strip()))
    while True:
        sentence, answer = draw.choice(sentences)
        prompt = _NUMBER.sub(lambda _: str(draw.randrange(100_000)), sentence)
        if hash(prompt) not in seen:
            seen.add(hash(prompt))
            yield {"prompt": prompt, "completion": answer}


def make_model(data: Path, out: Path) -> None:
    """Write a model of two layers, 32 wide, with a vocabulary of 1,024."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_random_model

    make_random_model.SIZES["narrow"] = (32, 2, 2, 1, 64, 1024)
    make_random_model.make([data / "gsm8k/train.jsonl"], "narrow", out)


def trained(given: argparse.Namespace, num_rows: int) -> tuple[Measured, Measured]:
    """Prepare and train; return what each of the two commands cost."""
    out = given.out / f"rows-{num_rows}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for _, row in zip(range(num_rows), rows(given.data), strict=False):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    recipe: dict[str, Any] = {
        "name": "train-scale",
        "model": str(given.out / "model"),
        "data": {"train": str(out / "rows.jsonl"), "max_length": 256},
        "train": {
            "method": "full",
            "num_train_epochs": 1.0,
            "global_batch_size": 256,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-3,
            "logging_steps": 20,
        },
        "output_dir": str(out),
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    command = [TUNESMITH, "run", str(out / "recipe.yaml"), "--json", "--until"]
    return measured([*command, "data"]), measured([*command, "train"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "train-scale")
    given = parser.parse_args()
    make_model(given.data, given.out / "model")
    print("| rows | tokens | data s | data MiB | steps | train s | ms a row | tokens/s | train MiB | own MiB | loss |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    lines: list[tuple[float, float]] = []
    for num_rows in given.rows:
        prepared, done = trained(given, num_rows)
        dataset, checkpoint = (done.answer["records"][name] for name in ("dataset", "checkpoint"))
        seconds, tokens, steps = checkpoint["seconds"], dataset["num_tokens"], checkpoint["num_steps"]
        lines.append((done.peak_own_mib, seconds / num_rows))
        print(
            f"| {num_rows:,} | {tokens:,} | {prepared.seconds:.1f} | {prepared.peak_mib:,.0f} | {steps:,} "
            f"| {seconds:.1f} | {1e3 * seconds / num_rows:.3f} | {tokens / seconds:,.0f} | {done.peak_mib:,.0f} "
            f"| {done.peak_own_mib:,.0f} | {checkpoint['first_loss']:.2f} → {checkpoint['final_loss']:.2f} |",
            flush=True,
        )
        shutil.rmtree(given.out / f"rows-{num_rows}")
    memory, time = (lines[-1][n] / lines[0][n] for n in (0, 1))
    print(f"most rows against fewest: own memory {memory:.2f}, time a row {time:.2f} (limits {TOLERANCE})")
    return int(max(memory, time) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
