"""Train with TRL as a job file says, and write what each step took. Started by `train_vs_peers.py`.

    python benchmarks/trl_worker.py job.json

A job gives `objective`, `method`, `model`, `rows` (JSON Lines, in the order of training), `num_steps`, `learning_rate`,
`threads`, `seed`, `config` (arguments of SFTConfig or DPOConfig) and `out`. The result is `OUT/result.json`: the wall
time of each step and the end of the first, real and trained tokens, losses.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


def dataset(path: Path, objective: str) -> Any:
    """Return the rows as TRL's documentation asks for them: conversations, with tools where there are any."""
    from datasets import Dataset

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["tools"] = json.dumps(row["tools"]) if row.get("tools") else None
        if objective == "dpo":
            for side in ("prompt", "chosen", "rejected"):
                row[side] = row.pop(f"{side}_messages")
    return Dataset.from_list(rows, on_mixed_types="use_json")


def measured(trainer_class: type) -> type:
    """Return the trainer with a clock and counters around its steps; it computes what it always does."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self, steps: list[dict[str, Any]]) -> None:
            self.steps = steps

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps[-1]["ended"] = time.time()
            print(json.dumps(self.steps[-1]), flush=True)  # a run that is cut short still says how far it came
            self.steps.append(new_step())

    class Measured(trainer_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.steps = [new_step()]
            self.add_callback(Clock(self.steps))

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            step, ids = self.steps[-1], inputs["input_ids"]
            mask = inputs.get("attention_mask")
            labels, completion = inputs.get("labels"), inputs.get("completion_mask")
            step["computed_tokens"] += ids.numel()
            step["tokens"] += ids.numel() if mask is None else int(mask.sum())
            step["trained"] += int(completion.sum()) if labels is None else int((labels[..., 1:] != -100).sum())
            loss = super().training_step(model, inputs, *args, **kwargs)
            step["loss"] += float(loss)
            return loss

    return Measured


def new_step() -> dict[str, Any]:
    return {"loss": 0.0, "tokens": 0, "trained": 0, "computed_tokens": 0}


def main() -> None:
    started = time.time()
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch

    torch.set_num_threads(job["threads"])
    import datasets
    import peft
    import transformers
    import trl

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    out = Path(job["out"])
    common = {
        "output_dir": str(out / "trainer"),
        "max_steps": job["num_steps"],
        "learning_rate": job["learning_rate"],
        "seed": job["seed"],
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    config_class, trainer_class = (
        (trl.DPOConfig, trl.DPOTrainer) if job["objective"] == "dpo" else (trl.SFTConfig, trl.SFTTrainer)
    )
    lora = peft.LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
    )
    trainer = measured(trainer_class)(
        model=job["model"],
        args=config_class(**common | job["config"]),
        train_dataset=dataset(Path(job["rows"]), job["objective"]),
        peft_config=lora if job["method"] == "lora" else None,
    )
    trainer.train()
    steps = trainer.steps[:-1]
    result = {
        "started": started,
        "first_step_ended": steps[0]["ended"],
        "seconds": [after["ended"] - before["ended"] for before, after in itertools.pairwise(steps)],
        "tokens": [step["tokens"] for step in steps],
        "computed_tokens": [step["computed_tokens"] for step in steps],
        "trained": [step["trained"] for step in steps],
        "losses": [step["loss"] for step in steps],
        "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "versions": {module.__name__: module.__version__ for module in (trl, transformers, peft, torch)},
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
