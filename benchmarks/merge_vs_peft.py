"""Merging beside PEFT's load, merge_and_unload and save_pretrained, and beside `cp` of the same files.

    python benchmarks/merge_vs_peft.py [--shape 1.1b] [--rounds 3] [--out outputs/merge-bench] [--only ours]

A random Llama-shaped checkpoint in bfloat16 and a random rank-64 adapter on every linear layer. Each round runs `cp` of
the weight files (and `cp` with a flush to the disk), the real command `tunesmith merge`, and PEFT in a process of its
own; the table has the medians. Memory is the peak resident size of the process, seconds are of the whole process and,
apart, of its parts (`write` ends when everything is on the disk). The merged files are then compared number by number.
Exits 1 when writing is less than four times as fast as PEFT's load, merge and save, or the command needs more than a
quarter of its memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# hidden, layers, heads, key-value heads, intermediate, vocabulary
SHAPES = {
    "tiny": (256, 4, 8, 4, 704, 4000),
    "1.1b": (2048, 22, 32, 4, 5632, 32000),
    "8b": (4096, 32, 32, 8, 14336, 128256),
}
RANK = 64
_SHARD_BYTES = 4 << 30
_GIB = 2**30


@dataclass(frozen=True)
class Run:
    """One process: seconds of all of it, of its parts, and its peak memory in bytes."""

    seconds: float
    peak_bytes: int
    parts: dict[str, float] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


def make_base(shape: str, path: Path) -> None:
    """Write a random checkpoint in bfloat16, without ever holding it in memory."""
    import torch

    from tunesmith.model.weights import Planned, header_of, plan_shards, shard_names

    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    wide = hidden // heads * kv_heads
    sizes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for n in range(layers):
        at = f"model.layers.{n}"
        sizes |= {f"{at}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        sizes |= {f"{at}.self_attn.{p}_proj.weight": (o, hidden) for p, o in (("q", hidden), ("k", wide), ("v", wide))}
        sizes |= {f"{at}.self_attn.o_proj.weight": (hidden, hidden), f"{at}.mlp.down_proj.weight": (hidden, inner)}
        sizes |= {f"{at}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
    sizes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": vocabulary,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "dtype": "bfloat16",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    }  # fmt: skip
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn((1 << 24) + 7, generator=generator) * hidden**-0.5).to(torch.bfloat16).view(torch.uint8).numpy()
    ones = torch.ones(hidden, dtype=torch.bfloat16).view(torch.uint8).numpy()
    shards = plan_shards((Planned(name, "BF16", size) for name, size in sizes.items()), _SHARD_BYTES)
    weight_map, place = {}, 0
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        with (path / name).open("wb") as file:
            file.write(header_of(shard))
            for tensor in shard:
                weight_map[tensor.name] = name
                left = tensor.num_bytes
                while left and len(tensor.shape) == 2:
                    piece = pool[place : place + left]
                    file.write(piece)
                    left, place = left - len(piece), (place + len(piece)) % len(pool)
                if len(tensor.shape) == 1:
                    file.write(ones)
    if len(shards) > 1:
        total = sum(tensor.num_bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))


def make_adapter(base: Path, path: Path) -> None:
    """Write a random adapter as PEFT writes it."""
    import torch
    from safetensors.torch import save_file

    from tunesmith.model.headers import linear_layers, read_config, read_headers

    path.mkdir(parents=True)
    linears = linear_layers(read_headers(base), read_config(base))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (_, num_outputs, num_inputs) in linears.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, num_inputs, generator=generator) * 0.02
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(num_outputs, RANK, generator=generator) * 0.02
    save_file(tensors, str(path / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
        "lora_alpha": RANK, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in linears}), "inference_mode": True,
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config))


# ── The three ────────────────────────────────────────────────────────────────────────────────────────────────────────


def process(command: list[str]) -> tuple[float, int, str]:
    """Run a process. Returns its seconds, its peak resident bytes, and what it printed."""
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert child.stdout is not None
    told = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}\n{told}")
    return seconds, usage.ru_maxrss * 1024, told


def ours(base: Path, adapter: Path, out: Path) -> Run:
    command = [sys.executable, "-m", "tunesmith", "merge", "--base", str(base), "--adapter", str(adapter)]
    seconds, peak, told = process([*command, "--out", str(out), "--json"])
    document = json.loads(told)
    return Run(seconds, peak, document["seconds"], document)


def theirs(base: Path, adapter: Path, out: Path) -> Run:
    seconds, peak, told = process([sys.executable, __file__, "--as-peft", str(base), str(adapter), str(out)])
    return Run(seconds, peak, json.loads(told.splitlines()[-1]))


def as_peft(base: str, adapter: str, out: str) -> None:
    """Be the process that PEFT merges in."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    laps = [time.monotonic()]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, adapter)
    laps.append(time.monotonic())
    model = model.merge_and_unload()
    laps.append(time.monotonic())
    model.save_pretrained(out, max_shard_size="4GB")
    laps.append(time.monotonic())
    seconds = [after - before for before, after in itertools.pairwise(laps)]
    print(json.dumps(dict(zip(("load", "merge", "save"), seconds, strict=True))))


def copy(base: Path, out: Path, *, flush: bool) -> Run:
    """Let `cp` copy the weight files."""
    out.mkdir(parents=True)
    started = time.monotonic()
    sources = [str(file) for file in sorted(base.glob("*.safetensors"))]
    subprocess.run(["cp", *sources, str(out)], check=True)
    if flush:
        subprocess.run(["sync", *(str(file) for file in out.iterdir())], check=True)
    return Run(time.monotonic() - started, 0)


# ── The comparison ───────────────────────────────────────────────────────────────────────────────────────────────────


def compare(first: Path, second: Path) -> dict[str, float]:
    """Return how many numbers of two checkpoints differ, and the largest distance in units of bfloat16.

    A unit is that of the larger of result and base: PEFT rounds the change before it adds it.
    """
    import torch

    from tunesmith.model.headers import read_headers
    from tunesmith.model.weights import read_rows

    a, b = read_headers(first), read_headers(second)
    assert set(a) == set(b), sorted(set(a) ^ set(b))[:3]
    num_unequal = num_all = 0
    worst = 0.0
    for name, info in a.items():
        for begin in range(0, info.shape[0], 4096):
            rows = (begin, min(begin + 4096, info.shape[0]))
            x, y = read_rows(info, *rows), read_rows(b[name], *rows)
            num_all += x.numel()
            unequal = x != y
            if not bool(unequal.any()):
                continue
            num_unequal += int(unequal.sum())
            x, y = x[unequal].float(), y[unequal].float()
            # The spacing of bfloat16 near the larger one, and never below that of the matrix's typical number.
            unit = torch.exp2(torch.floor(torch.log2(torch.maximum(x.abs(), y.abs()))) - 7)
            worst = max(worst, float(((x - y).abs() / unit).max()))
    return {"unequal": num_unequal, "all": num_all, "units": worst}


def table(runs: dict[str, list[Run]], num_bytes: int) -> list[str]:
    lines = ["| | seconds | of which the work | GB/s | peak MiB |", "|---|---|---|---|---|"]
    for name, found in runs.items():
        seconds = statistics.median(run.seconds for run in found)
        names = found[0].parts
        parts = {part: statistics.median(run.parts[part] for run in found) for part in names}
        told = ", ".join(f"{part} {value:.2f}" for part, value in parts.items()) or "all"
        speed = num_bytes / parts.get("write", seconds) / 1e9
        peak = statistics.median(run.peak_bytes for run in found) / 2**20
        lines.append(f"| {name} | {seconds:.2f} | {told} | {speed:.2f} | {f'{peak:,.0f}' if peak else ''} |")
    return lines


def measure(given: argparse.Namespace, base: Path, adapter: Path) -> dict[str, list[Run]]:
    out = given.out / "merged"
    kinds = {
        "cp": lambda: copy(base, out, flush=False),
        "cp, flushed": lambda: copy(base, out, flush=True),
        "tunesmith merge": lambda: ours(base, adapter, out),
        "PEFT": lambda: theirs(base, adapter, out),
    }
    if given.only:
        kinds = {name: run for name, run in kinds.items() if given.only != "ours" or name != "PEFT"}
    runs: dict[str, list[Run]] = {name: [] for name in kinds}
    for number in range(given.rounds):
        for name, run in kinds.items():
            shutil.rmtree(out, ignore_errors=True)
            if not given.no_sync:
                os.sync()  # what the one before left to write is not this one's burden
            found = run()
            runs[name].append(found)
            print(f"  round {number + 1}, {name}: {found.seconds:.2f} s {found.parts}", file=sys.stderr)
            if number == given.rounds - 1 and name in ("tunesmith merge", "PEFT"):
                shutil.rmtree(given.out / name, ignore_errors=True)
                out.rename(given.out / name)
    return runs


def main() -> int:
    if sys.argv[1:2] == ["--as-peft"]:
        as_peft(*sys.argv[2:5])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/merge-bench"))
    parser.add_argument("--only", choices=("ours",), help="leave PEFT out")
    parser.add_argument("--no-sync", action="store_true", help="do not flush the disk between the runs")
    given = parser.parse_args()
    base, adapter = given.out / f"base-{given.shape}", given.out / f"adapter-{given.shape}"
    if not base.exists():
        make_base(given.shape, base)
    if not adapter.exists():
        make_adapter(base, adapter)
    num_bytes = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    runs = measure(given, base, adapter)
    print(f"{given.shape}: {num_bytes / 1e9:.2f} GB, rank {RANK} on every linear layer, {given.rounds} rounds\n")
    print("\n".join(table(runs, num_bytes)))
    proof = runs["tunesmith merge"][-1].told["proof"]
    print(f"\nproof: {json.dumps(proof)}")
    if "PEFT" not in runs:
        return 0
    found = compare(given.out / "tunesmith merge", given.out / "PEFT")
    seconds = {name: statistics.median(run.seconds for run in kind) for name, kind in runs.items()}
    peaks = {name: statistics.median(run.peak_bytes for run in kind) for name, kind in runs.items()}
    written = statistics.median(run.parts["write"] for run in runs["tunesmith merge"])
    work = statistics.median(sum(run.parts.values()) for run in runs["PEFT"])
    share = peaks["tunesmith merge"] / peaks["PEFT"]
    print(f"\nas fast as PEFT: whole command {seconds['PEFT'] / seconds['tunesmith merge']:.1f} times, proof included")
    print(f"without start-up and proof: {work / written:.1f} times; memory {share:.2f} of PEFT's")
    print(f"of cp's bytes/s: {seconds['cp'] / written:.0%}; both on the disk: {seconds['cp, flushed'] / written:.0%}")
    unequal = f"{found['unequal']:,} of {found['all']:,}"
    print(f"numbers that differ from PEFT's: {unequal}, by at most {found['units']:g} units of bfloat16")
    return 0 if work / written >= 4 and share <= 0.25 else 1


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
