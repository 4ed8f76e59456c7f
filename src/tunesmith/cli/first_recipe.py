"""The recipe that `tunesmith init` writes."""

from __future__ import annotations

import json
import re

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_NOT_TEXT = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")  # to one reader of YAML or another

_TEMPLATE = """\
# yaml-language-server: $schema=recipe.schema.json   (tunesmith schema > recipe.schema.json: your editor completes keys)
# Every key, with its default: docs/recipe.md. Find mistakes with `tunesmith check`, look ahead with `tunesmith plan`.
name: {name}

model:
  name_or_path: {model}      # Hub id or local directory

data:
  train:
    - path: {data}           # file, glob, directory or Hub data set; the row format is detected
  validation_fraction: 0.02  # held out by hash, for the validation loss
  max_length: 2048

train:
  objective: {objective}
  method: lora               # full | lora | qlora | dora | qdora
  lora: {{r: 16, alpha: 32}}
  num_train_epochs: 3
  global_batch_size: 16
  learning_rate: {learning_rate}

# Measured on the tuned model, always beside the base model:
# evaluate:
#   text: {{files: [data/eval/*.jsonl]}}            # prompt/completion or messages rows
#   function_calls: {{files: [data/tools.jsonl]}}   # messages + tools rows

bench:
  concurrency: [1, 8]
  num_requests: 32
  targets: {{ttft_p95_ms: 500, e2e_p95_ms: 2000}}

# gate:
#   - improved(evaluate.text.rougeL)
#   - bench.c8.ttft_p95_ms < 500

publish:
  local: artifacts/models

track: []                    # tensorboard, mlflow, wandb
"""


def first_recipe(name: str, model: str, data: str, objective: str) -> str:
    """Return a commented recipe that runs as it is once its model and data exist."""
    learning_rate = "5.0e-6" if objective == "dpo" else "2.0e-4"
    settings = {"name": _scalar(name), "model": _scalar(model), "data": _scalar(data)}
    return _TEMPLATE.format(**settings, objective=objective, learning_rate=learning_rate)


def name_from(file_stem: str) -> str:
    """Return a recipe's name made of a file's: what a name cannot hold becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file_stem).strip("-._")[:64] or "my-model"


def _scalar(text: str) -> str:
    """Return a text as YAML reads it back: quoted where it could be taken for something else."""
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT
    return text if is_plain else json.dumps(text, ensure_ascii=False)
