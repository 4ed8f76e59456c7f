"""How much memory training takes, worked out from the recipe and the checkpoint's headers. Pure arithmetic.

    peak = weights + gradients + optimiser + activations of one micro-batch + one chunk of logits + the libraries

What training keeps in which number format is decided in `train.optim` and `model.load`; this file repeats their sums:

    full, 32 bit     weights 4, gradients 4, AdamW 8 bytes per parameter
    full, 16 bit     weights 2, master copy 4, gradients 4, AdamW 8
    lora, dora       frozen weights 2 or 4; 4 + 4 + 8 per adapter parameter; for modules trained whole 4 + 8, and in 16
                     bits a master copy of 4
    qlora, qdora     linear layers in NF4: half a byte, and 1/64 + 4/16,384 bytes for the two levels of scales
                     (Dettmers et al. 2023, section 3: blocks of 64 and 256); everything else as above
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tunesmith.recipe.facts import Facts
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.targets import carries_adapter, is_whole, value_for

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Of float32 logits at a time, what `train.token_losses` computes in one piece: enough rows for a fast product.
LOGITS_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
_HEAD_TENSORS = ("lm_head.weight", "embed_out.weight")
_LIBRARIES_BYTES = {"cpu": 450 << 20, "cuda": 600 << 20}  # Python, torch and transformers; the CUDA context


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    libraries: int
    available: int  # 0 when unknown

    @property
    def total(self) -> int:
        return sum(value for name, value in dataclasses.asdict(self).items() if name != "available")

    def to_json(self) -> dict[str, int]:
        """Return the parts and their sum."""
        return dataclasses.asdict(self) | {"total": self.total}

    def sentence(self) -> str:
        """Return the estimate in one line."""
        parts = ("weights", "gradients", "optimizer", "activations", "logits")
        shown = ", ".join(f"{name} {_gib(getattr(self, name))}" for name in parts)
        of = f" of {_gib(self.available)} GiB" if self.available else ""
        warning = " — MORE THAN THERE IS" if self.available and self.total > self.available else ""
        return f"about {_gib(self.total)} GiB{of} at the peak ({shown}){warning}"


def _gib(value: int) -> str:
    return f"{value / 2**30:.2g}" if value < 10 << 30 else f"{value / 2**30:.0f}"


def estimate_memory(recipe: Recipe, facts: Facts, longest_tokens: int) -> MemoryEstimate:
    """Return the peak of a resolved recipe.

    Args:
        longest_tokens: of a row (of a preference pair's longer side with its prompt): the longest micro-batch counts.
    """
    micro_batch = recipe.train.per_device_train_batch_size
    sequences = (micro_batch if isinstance(micro_batch, int) else 1) * sequences_per_row(recipe)
    tokens = sequences * min(longest_tokens, recipe.data.max_length)
    weights, gradients, optimizer = _state_bytes(recipe, facts)
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=round(tokens * activation_bytes_per_token(recipe, facts)),
        logits=round(logits_bytes(facts, tokens)),
        libraries=_LIBRARIES_BYTES.get(facts.device, 0),
        available=facts.device_memory_bytes,
    )


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


def _compute_bytes(recipe: Recipe) -> int:
    return 4 if recipe.model.dtype == "float32" else 2


def _state_bytes(recipe: Recipe, facts: Facts) -> tuple[int, int, int]:
    """Return weights, gradients and optimiser state."""
    width, moved = _compute_bytes(recipe), num_trainable_parameters(recipe, facts)
    if recipe.train.method == "full":
        master = 0 if width == 4 else 4
        return moved * width, moved * 4, moved * (8 + master)
    num_four_bit = 0
    if recipe.train.method in ("qlora", "qdora"):
        whole = recipe.train.lora.modules_to_save
        linears = [linear for linear in facts.linears if not is_whole(linear.name, whole)]
        num_four_bit = sum(linear.num_outputs * linear.num_inputs for linear in linears)
    base = num_four_bit * NF4_BYTES + (facts.num_parameters - num_four_bit) * width
    copied = moved if width == 2 else _adapter_parameters(recipe, facts)  # what is in float32 beside the base
    return round(base + 4 * copied), moved * 4, moved * 8


def fixed_bytes(recipe: Recipe, facts: Facts) -> float:
    """Return the memory of weights, gradients and optimiser state, whatever the batch."""
    return float(sum(_state_bytes(recipe, facts)))


def activation_bytes_per_token(recipe: Recipe, facts: Facts) -> float:
    """Return the memory that one token of a micro-batch takes between forward and backward.

    Per layer of a gated-MLP transformer with fused attention autograd keeps about two numbers per output of a linear
    layer (the output, and what the next operation makes of it), three with DoRA, and two per hidden unit for the norms,
    in the compute format. `tests/parity/test_train_memory.py` measures it. With checkpointing every layer keeps its
    input only, and one layer at a time is whole.
    """
    width = _compute_bytes(recipe)
    outputs = sum(linear.num_outputs for linear in facts.linears)
    num_layers = max(1, facts.num_layers)
    per_output = 3 if recipe.train.method.endswith("dora") else 2
    # Unknown layers: a gated MLP of 2.7 and attention of 2.5 times the hidden size make about ten outputs per unit.
    outputs_per_layer = outputs / num_layers if outputs else 10 * facts.hidden_size
    per_layer = per_output * outputs_per_layer + 2 * facts.hidden_size
    if recipe.train.gradient_checkpointing is True:
        return width * (facts.num_layers * facts.hidden_size + per_layer)
    return width * facts.num_layers * per_layer


def logits_bytes(facts: Facts, num_tokens: int) -> float:
    """Return the memory of the largest piece of logits: float32 values, their gradient, and one copy in between."""
    return float(min(LOGITS_CHUNK_BYTES[facts.device], num_tokens * facts.vocab_size * 4) * 3)
