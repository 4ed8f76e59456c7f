"""What a run would do, worked out without doing it: rows, tokens, steps, memory, and every decision with its reason.

Reads file heads, safetensors headers and the tokenizer; imports no ML library. `pipeline` takes its facts from here, so
that the plan and the run decide from the same ones.
"""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.data.estimate import DataEstimate, estimate
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.frozen import frozen
from tunesmith.hardware import Hardware, probe
from tunesmith.model.headers import ModelFacts, model_facts
from tunesmith.model.locate import locate
from tunesmith.recipe import frozen_weights
from tunesmith.recipe.adapter_facts import adapter_sentence
from tunesmith.recipe.adapter_fit import misnamed
from tunesmith.recipe.effects import num_steps
from tunesmith.recipe.facts import Facts
from tunesmith.recipe.memory import Lengths, MemoryEstimate, estimate_memory, num_trainable_parameters
from tunesmith.recipe.resolve import Decision, resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.typed import key_path
from tunesmith.store.run_dir import cache_root

_OPTIONAL_PACKAGES = ("vllm", "flash_attn", "bitsandbytes")


@frozen
class Training:
    """What training would mean."""

    recipe: Recipe
    data: DataEstimate
    num_parameters: int
    num_trainable_parameters: int
    num_steps: int
    memory: MemoryEstimate

    def tokens_in_all(self) -> int:
        sequences = self.num_steps * self.recipe.train.global_batch_size
        return round(sequences * self.data.num_tokens / max(1, self.data.num_sequences_per_epoch))

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the plan that speak of training."""
        train, about = self.recipe.train, "" if self.data.exact else "≈ "
        moved = self.num_trainable_parameters / max(1, self.num_parameters)
        share = self.data.num_trained_tokens / max(1, self.data.num_tokens)
        formats = ", ".join(f"{path} ({row_format})" for path, row_format in self.data.formats.items())
        what = f"{train.objective} with {train.method}"
        lengths = f"mean {self.data.mean_tokens:,.0f}, longest seen {self.data.longest_tokens:,}"
        in_all = f"{about}{self.tokens_in_all():,} tokens in all"
        return [
            ("method", f"{what}: {self.num_trainable_parameters:,} parameters move ({moved:.2%})"),
            *([("adapter", adapter_sentence(train.lora))] if train.method != "full" else []),
            ("rows", f"{about}{self.data.num_rows:,} in {formats or 'sources not read while planning'}"),
            ("tokens", f"{about}{self.data.num_tokens:,} an epoch, {share:.0%} of them trained; {lengths}"),
            ("steps", f"{about}{self.num_steps:,} of {train.global_batch_size} sequences, {in_all}"),
            ("memory", self.memory.sentence()),
        ]


@frozen
class Plan:
    """Everything `tunesmith plan` prints. `training` is None when the recipe names what was trained elsewhere."""

    recipe: Recipe
    decisions: list[Decision]
    model_path: Path
    model: ModelFacts
    training: Training | None
    tuned: Path | None
    hardware: Hardware
    stages: list[str]
    benchmarks: list[str]  # tasks of lm-evaluation-harness, as it calls them
    notes: list[str]  # what a reader should know of training

    def to_json(self) -> dict[str, Any]:
        """Return the plan for machines: the same numbers, unrounded."""
        made = self.training
        model = {
            "path": str(self.model_path),
            "architecture": self.model.architecture,
            "num_parameters": self.model.num_parameters,
        }
        return {
            "name": self.recipe.name,
            "stages": self.stages,
            "model": model | ({"num_trainable_parameters": made.num_trainable_parameters} if made else {}),
            "tuned": str(self.tuned) if self.tuned else None,
            "data": dataclasses.asdict(made.data) if made else None,
            "train": {"num_steps": made.num_steps, "tokens_in_all": made.tokens_in_all()} if made else None,
            "memory_bytes": made.memory.to_json() if made else None,
            "benchmarks": self.benchmarks,
            "device": {"kind": self.hardware.device, "name": self.hardware.device_name},
            "notes": self.notes,
            "decisions": [{"key": d.key, "value": d.value, "reason": d.reason} for d in self.decisions],
        }

    def text(self) -> str:
        """Return the plan for people."""
        rows = [
            ("stages", " → ".join(self.stages)),
            ("model", f"{self.model_path}  {self.model.architecture}, {self.model.num_parameters:,} parameters"),
            *(self.training.rows() if self.training else [("tuned", f"{self.tuned} (trained elsewhere)")]),
            ("device", self.hardware.sentence()),
        ]
        if self.benchmarks:
            rows.append(("lm_eval", ", ".join(self.benchmarks)))
        lines = [f"{self.recipe.name}", *(f"  {name:<8} {value}" for name, value in rows)]
        lines += [f"  note     {note}" for note in self.notes]
        if self.decisions:
            width = max(len(d.key) for d in self.decisions)
            lines += ["decided for `auto`"]
            lines += [f"  {d.key:<{width}}  {_shown(d.value):<10} {d.reason}" for d in self.decisions]
        return "\n".join(lines)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def gather_facts(recipe: Recipe) -> tuple[Path, Facts]:
    """Return the base model's directory (fetching it from the Hub when needed) and what decisions rest on.

    Raises:
        ModelError: the model is missing or broken.
    """
    model_path = locate(recipe.model, recipe.output_dir)
    return model_path, _facts(model_facts(model_path), probe())


def _facts(model: ModelFacts, hardware: Hardware) -> Facts:
    return Facts(
        device=hardware.device,
        device_name=hardware.device_name,
        num_devices=max(1, hardware.num_devices),
        num_cpus=hardware.num_cpus,
        device_memory_bytes=hardware.device_memory_bytes,
        has_fast_bfloat16=hardware.has_fast_bfloat16,
        installed=frozenset(name for name in _OPTIONAL_PACKAGES if find_spec(name) is not None),
        num_parameters=model.num_parameters,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
        checkpoint_dtype=model.dtype,
        activation=model.activation,
        tied=model.tied,
        transposed=model.transposed,
        linears=model.linears,
        others=model.others,
    )


def plan(recipe: Recipe) -> Plan:
    """Work out what running a recipe would mean. Costs about a tenth of a second for local files.

    Raises:
        TunesmithError: what `run` would stop at before its first step: missing files, models, templates.
    """
    hardware = probe()
    model_path = locate(recipe.model, recipe.output_dir)
    model = model_facts(model_path)
    facts = _facts(model, hardware)
    tuned = _tuned(recipe)
    refuse_misnamed(recipe, facts)
    resolved, decisions = resolve(recipe, facts)
    wanted = [("evaluate", resolved.evaluate), ("bench", resolved.bench), ("gate", resolved.gate)]
    first = ["data", "train", "merge"] if tuned is None else ["train", "merge"]
    made = _training(resolved, facts, model, model_path) if tuned is None else None
    stages = [*first, *(name for name, section in wanted if section), "report"]
    return Plan(
        recipe=resolved,
        decisions=decisions,
        model_path=model_path,
        model=model,
        training=made,
        tuned=tuned,
        hardware=hardware,
        stages=stages + (["publish"] if resolved.publish else []),
        benchmarks=benchmarks(resolved),
        notes=[*(made.data.notes if made else ()), *frozen_weights.notes(resolved, facts)],
    )


def refuse_misnamed(recipe: Recipe, facts: Facts) -> None:
    """Refuse names of layers that the model does not have.

    Raises:
        RecipeError: with each of them, at its key.
    """
    found = [TunesmithError(m.what, where=key_path(m.path), do=m.do) for m in misnamed(recipe, facts)]
    if found:
        raise RecipeError(found)


def benchmarks(recipe: Recipe) -> list[str]:
    """Return what lm-evaluation-harness would run. Costs 10 s the first time, when its own tasks are among them.

    Raises:
        RecipeError: a task is unknown, or runs programs without leave to.
        EnvironmentProblem: the harness is not installed.
    """
    if recipe.evaluate is None or recipe.evaluate.lm_eval is None:
        return []
    from tunesmith.evaluate.lm_eval.catalogue import catalogue

    settings = recipe.evaluate.lm_eval
    chosen = catalogue(settings, cache_root(recipe.output_dir) / "lm_eval").choose(settings)
    return [f"{task.name} ({len(task.leaves)} tasks)" if task.is_group else task.name for task in chosen]


def _training(recipe: Recipe, facts: Facts, model: ModelFacts, model_path: Path) -> Training:
    data = estimate(recipe, model_path)
    steps = num_steps(recipe.train, data.num_sequences_per_epoch)
    lengths = Lengths(data.mean_positions, data.deviation_of_positions, data.longest_positions)
    return Training(
        recipe=recipe,
        data=data,
        num_parameters=model.num_parameters,
        num_trainable_parameters=num_trainable_parameters(recipe, facts),
        num_steps=steps,
        memory=estimate_memory(recipe, facts, lengths, steps),
    )


def _tuned(recipe: Recipe) -> Path | None:
    if recipe.tuned is None:
        return None
    from tunesmith.train.elsewhere import find

    return find(recipe.tuned, recipe.output_dir)
