"""The recipe that `tunesmith init` writes."""

from __future__ import annotations

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
#   - improved(evaluate.text.rouge_l)
#   - bench.c8.ttft_p95_ms < 500

publish:
  local: artifacts/models

track: []                    # tensorboard, mlflow, wandb
"""


def first_recipe(name: str, model: str, data: str, objective: str) -> str:
    """Return a commented recipe that runs as it is once its model and data exist."""
    learning_rate = "5.0e-6" if objective == "dpo" else "2.0e-4"
    return _TEMPLATE.format(name=name, model=model, data=data, objective=objective, learning_rate=learning_rate)
