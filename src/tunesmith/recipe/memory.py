"""How much memory training takes, worked out from the recipe and the checkpoint's headers. Pure arithmetic.

The estimate is that of the worse of two moments:

    load   the checkpoint's file and the weights made of it (not of those that stay as stored); for a 4-bit base all,
           before the first is quantised
    step   weights + gradients + optimiser + activations of one micro-batch + one chunk of logits, and on a CPU the copy
           of what moves that a checkpoint is written from (kept for the next one)

and the libraries at both. The last checkpoint of a training is written without a copy. What training keeps in which
number format is decided in `train.optim` and `model.load`; this file repeats their sums:

    full, 32 bit     weights 4, gradients 4, AdamW 8 bytes per parameter
    full, 16 bit     weights 2, master copy 4, gradients 4, AdamW 8
    lora, dora       frozen weights 2 or 4, linear layers 2 where they stay as stored, and the largest of these in 4;
                     4 + 4 + 8 per adapter parameter; for modules trained whole 4 + 8, and in 16 bits a master copy of 4
    qlora, qdora     linear layers in NF4: half a byte, and 1/64 + 4/16,384 bytes for the two levels of scales
                     (Dettmers et al. 2023, section 3: blocks of 64 and 256); everything else as above
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tunesmith.frozen import frozen
from tunesmith.recipe.activations import activation_bytes_per_token, compute_bytes, widest_outputs
from tunesmith.recipe.facts import Facts
from tunesmith.recipe.frozen_weights import num_stored, scratch_bytes
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.targets import carries_adapter, is_whole, value_for

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Of float32 logits at a time, what `train.token_losses` computes in one piece: enough rows for a fast product.
LOGITS_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
_HEAD_TENSORS = ("lm_head.weight", "embed_out.weight")
_FILE_BYTES = {"float64": 8, "float32": 4}  # of a number in the checkpoint; others take 2
# Measured by `benchmarks/memory_estimate.py`: Python, torch, transformers and what they allocate at their first use;
# bitsandbytes; the CUDA context.
_LIBRARIES_BYTES = {"cpu": 390 << 20, "cuda": 600 << 20}
_FOUR_BIT_BYTES = 50 << 20
# Of activations: holes that glibc's allocator keeps between them (docs/log.md). CUDA's has them too, but does not count
# them as allocated.
_HOLES_FRACTION = {"cpu": 0.4, "cuda": 0.0}
_OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.03, "paged_adamw_8bit": 2.03, "adafactor": 0.02}  # per parameter


@frozen
class Lengths:
    """Positions that a row takes in a micro-batch (a pair's prompt once). All 0 when rows are not known."""

    mean: float = 0.0
    deviation: float = 0.0
    longest: int = 0


@frozen
class MemoryEstimate:
    """Bytes on one device at the worst moment.

    Attributes:
        copies: of what moves, while a checkpoint is written; of the weights, while they are loaded.
        holes: freed memory that the allocator cannot use for what is asked of it, nor give back.
        available: 0 when unknown.
        moment: load or step.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    copies: int
    holes: int
    libraries: int
    available: int
    moment: str

    @property
    def total(self) -> int:
        numbers = (value for name, value in dataclasses.asdict(self).items() if name not in ("available", "moment"))
        return sum(numbers)

    def to_json(self) -> dict[str, Any]:
        """Return the parts and their sum."""
        return dataclasses.asdict(self) | {"total": self.total}

    def sentence(self) -> str:
        """Return the estimate in one line."""
        parts = ("weights", "gradients", "optimizer", "activations", "logits", "copies", "holes", "libraries")
        shown = ", ".join(f"{name} {_gib(value)}" for name in parts if (value := getattr(self, name)))
        of = f" of {_gib(self.available)} GiB" if self.available else ""
        at = "while the model is loaded" if self.moment == "load" else "at the peak"
        warning = " — MORE THAN THERE IS" if self.available and self.total > self.available else ""
        return f"about {_gib(self.total)} GiB{of} {at} ({shown}){warning}"


def _gib(value: int) -> str:
    return f"{value / 2**30:.2g}" if value < 10 << 30 else f"{value / 2**30:.0f}"


def estimate_memory(recipe: Recipe, facts: Facts, lengths: Lengths, num_steps: int) -> MemoryEstimate:
    """Return the peak of a resolved recipe."""
    moments = [_load(recipe, facts), _step(recipe, facts, lengths, num_steps)]
    return max(moments, key=lambda moment: moment.total)


def _at(moment: str, recipe: Recipe, facts: Facts, **parts: float) -> MemoryEstimate:
    names = ("weights", "gradients", "optimizer", "activations", "logits", "copies", "holes")
    bytes_of = {name: round(parts.get(name, 0)) for name in names}
    libraries, available = libraries_bytes(recipe, facts), facts.device_memory_bytes
    return MemoryEstimate(**bytes_of, libraries=libraries, available=available, moment=moment)


def _load(recipe: Recipe, facts: Facts) -> MemoryEstimate:
    """A GPU gets its weights one by one, and meets no more of them than it keeps."""
    weights = facts.num_parameters * compute_bytes(recipe)
    if facts.device == "cuda":
        return _at("load", recipe, facts, weights=_state_bytes(recipe, facts)[0])
    if num_stored(recipe, facts):  # read straight to where they stay
        return _at("load", recipe, facts, weights=_state_bytes(recipe, facts)[0])
    in_file = facts.num_parameters * _FILE_BYTES.get(facts.checkpoint_dtype or "", 2)
    return _at("load", recipe, facts, weights=weights, copies=in_file)


def _step(recipe: Recipe, facts: Facts, lengths: Lengths, num_steps: int) -> MemoryEstimate:
    weights, gradients, optimizer = _state_bytes(recipe, facts)
    tokens = micro_batch_tokens(recipe, lengths, num_steps)
    kept = tokens * activation_bytes_per_token(recipe, facts)
    passing = max(logits_bytes(recipe, facts, tokens), 3 * tokens * widest_outputs(facts) * compute_bytes(recipe))
    if recipe.train.method == "full" and recipe.train.objective == "sft" and compute_bytes(recipe) == 2:
        # The head's gradient is made together with its losses; one of 32 bits is added where it lies.
        kept += 4 * facts.vocab_size * facts.hidden_size
    saved = num_steps > recipe.train.save_steps
    return _at(
        "step", recipe, facts, weights=weights, gradients=gradients, optimizer=optimizer, activations=kept,
        logits=passing, copies=_copies_bytes(recipe, facts) if saved else 0, holes=_HOLES_FRACTION[facts.device] * kept,
    )  # fmt: skip


def micro_batch_tokens(recipe: Recipe, lengths: Lengths, num_steps: int) -> float:
    """Return the positions of the fullest micro-batch: as many as it may have, or as a global batch's rows give.

    Of a sum of independent lengths, the largest in so many steps is about √(2 ln steps) deviations above the mean.
    """
    train = recipe.train
    size, ranks = (value if isinstance(value, int) else 1 for value in _sizes(recipe))
    room = size * recipe.data.max_length * sequences_per_row(recipe)
    if not lengths.longest:
        return room
    rows = math.ceil(train.global_batch_size / ranks)
    above = math.sqrt(2 * math.log(max(2, num_steps)) * rows) * lengths.deviation
    given = min(rows * lengths.longest, rows * lengths.mean + above)
    return max(min(room, given), lengths.longest)


def _sizes(recipe: Recipe) -> tuple[Any, Any]:
    return recipe.train.per_device_train_batch_size, recipe.train.num_processes


def sequences_per_row(recipe: Recipe) -> int:
    """Return how many sequences one row of training becomes: a preference pair is two."""
    return 2 if recipe.train.objective == "dpo" else 1


def num_trainable_parameters(recipe: Recipe, facts: Facts) -> int:
    """Return how many numbers training moves; 0 when the model's layers are not known."""
    if recipe.train.method == "full":
        return facts.num_parameters
    return _adapter_parameters(recipe, facts) + _whole_parameters(recipe, facts)


def _adapter_parameters(recipe: Recipe, facts: Facts) -> int:
    lora = recipe.train.lora
    chosen = [linear for linear in facts.linears if carries_adapter(linear.name, lora)]
    magnitudes = sum(linear.num_outputs for linear in chosen) if recipe.train.method.endswith("dora") else 0
    ranks = [value_for(linear.name, lora.rank_pattern, lora.r) for linear in chosen]
    sizes = [linear.num_inputs + linear.num_outputs for linear in chosen]
    return magnitudes + sum(rank * size for rank, size in zip(ranks, sizes, strict=True))


def _whole_parameters(recipe: Recipe, facts: Facts) -> int:
    """Return how many numbers lie in `modules_to_save`; the matrix of tied embeddings counts once."""
    names = recipe.train.lora.modules_to_save
    sizes = {tensor.name: tensor.num_elements for tensor in facts.others}
    sizes |= {f"{linear.name}.weight": linear.num_outputs * linear.num_inputs for linear in facts.linears}
    found = {name: size for name, size in sizes.items() if is_whole(name.rpartition(".")[0], names)}
    tied = facts.others and not any(name.endswith(_HEAD_TENSORS) for name in sizes)
    if tied and any(is_whole(name.removesuffix(".weight"), names) for name in _HEAD_TENSORS):
        embedding = max(facts.others, key=lambda tensor: tensor.num_elements)
        found[embedding.name] = embedding.num_elements
    return sum(found.values())


def _state_bytes(recipe: Recipe, facts: Facts) -> tuple[float, float, float]:
    """Return weights, gradients and optimiser state."""
    width, moved = compute_bytes(recipe), num_trainable_parameters(recipe, facts)
    state = moved * _OPTIMIZER_BYTES[recipe.train.optim]
    if recipe.train.method == "full":
        return moved * width, moved * 4, state + (0 if width == 4 else 4 * moved)
    num_four_bit = 0
    if is_four_bit(recipe):
        whole = recipe.train.lora.modules_to_save
        linears = [linear for linear in facts.linears if not is_whole(linear.name, whole)]
        num_four_bit = sum(linear.num_outputs * linear.num_inputs for linear in linears)
    narrow = num_stored(recipe, facts)
    base = num_four_bit * NF4_BYTES + (facts.num_parameters - num_four_bit - narrow) * width
    base += 2 * narrow + scratch_bytes(recipe, facts)
    copied = moved if width == 2 else _adapter_parameters(recipe, facts)  # what is in float32 beside the base
    return base + 4 * copied, moved * 4, state


def _copies_bytes(recipe: Recipe, facts: Facts) -> float:
    """Return what a checkpoint is written from: weights that move and optimiser state, in host memory."""
    if facts.device == "cuda":
        return 0
    moved = num_trainable_parameters(recipe, facts)
    return moved * (4 + _OPTIMIZER_BYTES[recipe.train.optim])


def is_four_bit(recipe: Recipe) -> bool:
    """Return whether frozen linear layers are in NF4."""
    return recipe.train.method in ("qlora", "qdora")


def libraries_bytes(recipe: Recipe, facts: Facts) -> int:
    """Return what the libraries take."""
    return _LIBRARIES_BYTES[facts.device] + (_FOUR_BIT_BYTES if is_four_bit(recipe) and facts.device == "cpu" else 0)


def fixed_bytes(recipe: Recipe, facts: Facts) -> float:
    """Return the memory of weights, gradients, optimiser state and libraries, whatever the batch."""
    return sum(_state_bytes(recipe, facts)) + libraries_bytes(recipe, facts)


def logits_bytes(recipe: Recipe, facts: Facts, num_tokens: float) -> float:
    """Return the memory that a chunk of logits takes: itself and a quarter; thrice where autograd goes through."""
    buffers = 3 if recipe.train.method == "full" and recipe.train.objective == "dpo" else 1.25
    return buffers * min(LOGITS_CHUNK_BYTES[facts.device], num_tokens * facts.vocab_size * 4)
