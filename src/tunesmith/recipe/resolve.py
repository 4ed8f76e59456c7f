"""Replace every `auto` by a decision with its reason. Pure: the same recipe and facts give the same answer.

What the machine and the checkpoint are like comes in as `Facts`; nothing is looked up here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tunesmith.frozen import frozen
from tunesmith.recipe.activations import activation_bytes_per_token
from tunesmith.recipe.facts import Facts
from tunesmith.recipe.lengths import parse_lengths
from tunesmith.recipe.memory import fixed_bytes, sequences_per_row
from tunesmith.recipe.schema import Bench, Recipe
from tunesmith.recipe.training_rules import WORK_ON_SHARDS


@frozen
class Decision:
    """One `auto` and what became of it."""

    key: str
    value: Any
    reason: str


def resolve(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[Decision]]:
    """Return the recipe without any `auto`, and the decisions in the order of its keys.

    Where nothing is trained, what concerns training is decided and not told.
    """
    decisions: list[Decision] = []
    for key, decide in _DECISIONS.items():
        if _value(recipe, key.split(".")) == "auto":
            value, reason = decide(recipe, facts)
            recipe = _replaced(recipe, key.split("."), value)
            if recipe.tuned is None or not key.startswith(("data.", "train.")):
                decisions.append(Decision(key, value, reason))
    return recipe, decisions


def _value(section: Any, names: list[str]) -> Any:
    """Return what stands under a key; None where a section on the way was not asked for."""
    for name in names:
        section = getattr(section, name) if section is not None else None
    return section


def _replaced(section: Any, names: list[str], value: Any) -> Any:
    first, *rest = names
    return dataclasses.replace(section, **{first: _replaced(getattr(section, first), rest, value) if rest else value})


def _dtype(recipe: Recipe, facts: Facts) -> tuple[str, str]:
    if facts.has_fast_bfloat16:
        return "bfloat16", f"{facts.device_name or facts.device} multiplies bfloat16 matrices natively"
    return "float32", f"{facts.device_name or facts.device} has no fast bfloat16"


def _attention(recipe: Recipe, facts: Facts) -> tuple[str, str]:
    return "varlen", "rows without padding, each with attention of its own; a model that cannot takes its own (sdpa)"


def _packing(recipe: Recipe, facts: Facts) -> tuple[bool, str]:
    if recipe.model.attn_implementation == "varlen":
        return True, "no position is padding, and what rows begin with together is computed once"
    if facts.device == "cuda" and recipe.model.attn_implementation == "flash_attention_2":
        return True, "flash attention skips the other rows of a packed sequence"
    return False, "rows sorted by length waste little padding, and packed attention costs more than it saves here"


def _num_workers(recipe: Recipe, facts: Facts) -> tuple[int, str]:
    return max(1, facts.num_cpus), f"the tokenizer uses {max(1, facts.num_cpus)} CPU threads"


def _gradient_checkpointing(recipe: Recipe, facts: Facts) -> tuple[bool, str]:
    if not facts.device_memory_bytes or not facts.num_parameters:
        return False, "memory or model size is not known; set it to true if memory runs out"
    free = 0.9 * facts.device_memory_bytes - fixed_bytes(recipe, facts)
    needed = activation_bytes_per_token(recipe, facts) * recipe.data.max_length
    if needed > free:
        return (
            True,
            f"one sequence would need {needed / 2**30:.1f} GiB of activations, and {free / 2**30:.1f} GiB are left",
        )
    return False, f"one sequence needs {needed / 2**30:.2f} GiB of activations, and {free / 2**30:.1f} GiB are left"


def _num_processes(recipe: Recipe, facts: Facts) -> tuple[int, str]:
    if facts.device != "cuda":
        return 1, "one process uses all cores"
    return facts.num_devices, f"one for each of {facts.num_devices} × {facts.device_name}"


def _parallelism(recipe: Recipe, facts: Facts) -> tuple[str, str]:
    if recipe.train.num_processes == 1:
        return "ddp", "there is one process"
    if recipe.train.optim not in WORK_ON_SHARDS:
        return "ddp", f"{recipe.train.optim} does not work on shards"
    if recipe.train.method == "full":
        return "fsdp2", "weights, gradients and optimiser state are cut into shards, one per process"
    if fixed_bytes(recipe, facts) > 0.5 * facts.device_memory_bytes > 0:
        return "fsdp2", "the frozen weights would take more than half of each device"
    return "ddp", "an adapter's gradients are small, and the frozen weights fit on each device"


_ENOUGH_TOKENS = {"cpu": 1024, "cuda": 16384}  # per forward pass; docs/log.md for the CPU, not measured on CUDA


def _micro_batch(recipe: Recipe, facts: Facts) -> tuple[int, str]:
    ranks = recipe.train.num_processes if isinstance(recipe.train.num_processes, int) else 1
    total = max(1, recipe.train.global_batch_size // ranks)
    per_sequence = activation_bytes_per_token(recipe, facts) * recipe.data.max_length * sequences_per_row(recipe)
    free = 0.8 * facts.device_memory_bytes - fixed_bytes(recipe, facts)
    fits = max(1, int(free / per_sequence)) if per_sequence and facts.device_memory_bytes else total
    enough = max(1, _ENOUGH_TOKENS[facts.device] // (recipe.data.max_length * sequences_per_row(recipe)))
    size = min(total, fits, enough)
    if size == enough:
        return size, f"{_ENOUGH_TOKENS[facts.device]:,} tokens at a time keep this device busy"
    if size == total:
        return size, "the whole global batch fits into one forward pass"
    return size, f"{free / 2**30:.1f} GiB are left for activations at {per_sequence / 2**30:.2f} GiB per sequence"


def _torch_compile(recipe: Recipe, facts: Facts) -> tuple[bool, str]:
    if facts.device == "cpu":
        return False, "no gain was seen on a CPU (docs/log.md)"
    return False, "it pays on long runs only; set it to true for these"


def _engine(recipe: Recipe, facts: Facts) -> tuple[str, str]:
    if facts.device == "cuda" and "vllm" in facts.installed:
        return "vllm", "a CUDA device and vLLM are here"
    if facts.device == "cuda" and recipe.serve.vllm_python is not None:
        return "vllm", "there is a CUDA device, and serve.vllm_python names an environment for vLLM"
    why = "there is no CUDA device" if facts.device != "cuda" else "vLLM is not installed here"
    return "embedded", why


def _port(recipe: Recipe, facts: Facts) -> tuple[int, str]:
    return 0, "a free port is taken when the server starts"


def _harness_backend(recipe: Recipe, facts: Facts) -> tuple[str, str]:
    if recipe.serve.engine == "vllm":
        return "endpoint", "vLLM fills the GPU with many requests at a time, and gives the log probabilities of prompts"
    return "checkpoint", "the harness loads the weights itself, with no server in between"


_FUNCTION_TOKENS = 8192  # BFCL's longest single-turn prompts; most take less than 1,000
_TURNS_TOKENS = 32_768  # two programs' functions take 12,000; the rest is for turns (long context can fill any window)
_FEW_SHOT_TOKENS = 4096  # five worked examples of MMLU's longest subjects take 3,000


def _max_model_len(recipe: Recipe, facts: Facts) -> tuple[int, str]:
    answers = [task.max_tokens for task in _tasks(recipe)] + ([recipe.bench.max_tokens] if recipe.bench else [])
    wanted = recipe.data.max_length + max(answers, default=256)
    limit, reason = facts.max_position_embeddings, "data.max_length and the longest answer asked for"
    harness = recipe.evaluate.lm_eval if recipe.evaluate else None
    bfcl = recipe.evaluate.bfcl if recipe.evaluate else None
    room = (
        _TURNS_TOKENS if bfcl and any(name.startswith("multi_turn") for name in bfcl.categories) else _FUNCTION_TOKENS
    )
    if bfcl and wanted < room + bfcl.max_tokens:
        wanted, reason = room + bfcl.max_tokens, "room for the functions of evaluate.bfcl and an answer"
    if harness and harness.backend == "endpoint" and wanted < _FEW_SHOT_TOKENS:
        wanted, reason = _FEW_SHOT_TOKENS, "room for the few-shot prompts of evaluate.lm_eval"
    if (made_up := _longest_made_up(recipe.bench)) > wanted:
        wanted, reason = made_up, "the longest prompt and answer of bench"
    if limit is not None and wanted > limit:
        return limit, f"the model's own limit (max_length and the longest answer make {wanted})"
    return wanted, reason


def _longest_made_up(bench: Bench | None) -> int:
    """Return the tokens that a made-up prompt and its answer can have; 0 when prompts come from rows."""
    if bench is None or bench.prompt_tokens is None:
        return 0
    answer = parse_lengths(bench.output_tokens).longest if bench.output_tokens is not None else bench.max_tokens
    return parse_lengths(bench.prompt_tokens).longest + answer


def _tasks(recipe: Recipe) -> list[Any]:
    evaluate = recipe.evaluate
    if evaluate is None:
        return []
    return [task for task in (evaluate.text, evaluate.function_calls, evaluate.bfcl, evaluate.judge) if task]


_DECISIONS = {
    "model.dtype": _dtype,
    "model.attn_implementation": _attention,
    "data.packing": _packing,
    "data.num_workers": _num_workers,
    "train.num_processes": _num_processes,
    "train.parallelism": _parallelism,
    "train.gradient_checkpointing": _gradient_checkpointing,
    "train.torch_compile": _torch_compile,
    "train.per_device_train_batch_size": _micro_batch,
    "serve.engine": _engine,
    "serve.port": _port,
    "evaluate.lm_eval.backend": _harness_backend,
    "serve.max_model_len": _max_model_len,
}
