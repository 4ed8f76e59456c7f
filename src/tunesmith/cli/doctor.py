"""`doctor`: what this machine can do, which extra is missing, and the command that installs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

# What a person wants to do, the packages it takes, and the extra that brings them.
ABILITIES = (
    ("check and plan recipes", ("yaml", "jinja2", "tokenizers"), ""),
    ("train and merge", ("torch", "transformers", "safetensors"), "train"),
    ("train on a 4-bit base (qlora, qdora)", ("bitsandbytes",), "qlora"),
    ("serve and chat (embedded)", ("torch", "transformers", "uvicorn"), "serve"),
    ("serve with vLLM", ("vllm",), "vllm"),
    ("score text (ROUGE, BLEU)", ("sacrebleu", "rouge_score"), "eval"),
    ("run lm-evaluation-harness", ("lm_eval", "tenacity"), "lm-eval"),
    ("read Parquet and Hub data sets", ("datasets", "pyarrow"), "data"),
    ("fetch from and publish to the Hub", ("huggingface_hub",), "hub"),
    ("mirror to TensorBoard", ("tensorboardX",), "tensorboard"),
    ("mirror to MLflow", ("mlflow",), "mlflow"),
    ("mirror to Weights & Biases", ("wandb",), "wandb"),
)


@dataclass(frozen=True)
class Finding:
    ability: str
    ok: bool
    missing: tuple[str, ...]
    do: str


def add_arguments_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def findings() -> list[Finding]:
    """Return what works here, without importing anything heavy."""
    from importlib.util import find_spec

    found = []
    for ability, packages, extra in ABILITIES:
        missing = tuple(name for name in packages if find_spec(name) is None)
        install = "pip install vllm   (a CUDA machine; best in an environment of its own)"
        do = "" if not missing else install if extra == "vllm" else f"pip install 'tunesmith[{extra}]'"
        found.append(Finding(ability, not missing, missing, do))
    return found


def run_doctor(args: argparse.Namespace) -> int:
    import platform
    import shutil

    from tunesmith import __version__
    from tunesmith.hardware import probe

    hardware, found = probe(), findings()
    free_gib = shutil.disk_usage(".").free / 2**30
    if args.json:
        listed = [{"ability": f.ability, "ok": f.ok, "missing": f.missing, "do": f.do} for f in found]
        print(json.dumps({"version": __version__, "hardware": hardware.to_json(), "abilities": listed}, indent=2))
        return 0
    print(f"tunesmith {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"  device   {hardware.sentence()}")
    print(f"  disk     {free_gib:,.0f} GiB free here\n")
    for finding in found:
        mark = "✓" if finding.ok else "–"
        why = "" if finding.ok else f"missing {', '.join(finding.missing)}: {finding.do}"
        print(f"  {mark} {finding.ability:<38} {why}".rstrip())
    return 0
