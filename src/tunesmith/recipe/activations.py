"""What autograd keeps of one position of a micro-batch between forward and backward, from names and shapes alone.

Per layer, in numbers of the compute format (N: outputs of a linear layer, n: its inputs):

    that read the hidden states   N each: queries, keys and values, or what goes into an activation function; and their
                                  common input, where one of them has an adapter or moves itself
    that write hidden states      n each, where what they read is not what the readers gave (attention's output; both
                                  factors of a gated MLP), and n where they have an adapter or move themselves
    norms                         their input, in 32 bits for RMSNorm; where an RMSNorm moves, what it has made of it

Unless layers are checkpointed, compiled or sharded, what norms and activation functions give is made again
(`model.cheap_parts`): the readers' common input, what an MLP's writer reads, and what a norm has made are not kept; nor
is attention's output a second time.

An adapter keeps r numbers besides; DoRA all outputs once more; dropout each layer's input twice instead of sharing it.
`tests/parity/test_train_memory.py` holds this against autograd.
"""

from __future__ import annotations

from collections import defaultdict

from tunesmith.recipe.facts import Facts, Linear, Tensor
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.targets import carries_adapter, is_whole, value_for

_ATTENTION_WRITERS = ("o_proj", "out_proj", "c_proj", "dense", "wo")  # told by name where all sizes are alike
_WITHOUT_ROTATION = "c_attn"  # queries, keys and values in one, as GPT-2 has them: used as they lie there
# Written out in Python by transformers, so that more of their steps are kept: numbers per output beside the input.
_STEPS_KEPT = {"gelu_new": 3, "gelu_fast": 4, "quick_gelu": 1}
_REPEATED_PROMPT = 0.25  # share of a preference pair's positions whose attention is made for both answers


def recomputes(recipe: Recipe) -> bool:
    """Return whether cheap parts are made again in the backward pass."""
    train = recipe.train
    sharded = train.parallelism == "fsdp2" and train.num_processes != 1
    return train.gradient_checkpointing is not True and train.torch_compile is not True and not sharded


def compute_bytes(recipe: Recipe) -> int:
    """Return the size of a number in the compute format."""
    return 4 if recipe.model.dtype == "float32" else 2


def activation_bytes_per_token(recipe: Recipe, facts: Facts) -> float:
    """Return the memory that one position of a micro-batch takes between forward and backward.

    With gradient checkpointing every layer keeps its input only, and one layer at a time is whole.
    """
    num_layers, width = max(1, facts.num_layers), compute_bytes(recipe)
    whole = _numbers_per_layer(recipe, facts) * width + _norm_bytes(recipe, facts) / num_layers
    if recipe.train.gradient_checkpointing is True:
        return num_layers * facts.hidden_size * width + whole
    return num_layers * whole + facts.hidden_size * width  # the gradient that the head hands down


def widest_outputs(facts: Facts) -> int:
    """Return the outputs of the widest linear layer."""
    return max((linear.num_outputs for linear in facts.linears), default=4 * facts.hidden_size)


def _numbers_per_layer(recipe: Recipe, facts: Facts) -> float:
    """Return how many numbers the linear layers keep, as a mean over all layers."""
    if not facts.linears:  # a gated MLP of 2.7 and attention of 2.5 times the hidden size
        return (24 if recipe.train.method.endswith("dora") else 17) * facts.hidden_size
    blocks: dict[str, list[Linear]] = defaultdict(list)
    for linear in facts.linears:
        blocks[linear.name.rpartition(".")[0]].append(linear)
    in_blocks = sum(_numbers_of_block(name, linears, recipe, facts) for name, linears in blocks.items())
    in_adapters = sum(_numbers_of_adapter(linear, recipe) for linear in facts.linears)
    return (in_blocks + in_adapters) / max(1, facts.num_layers)


def _numbers_of_block(name: str, linears: list[Linear], recipe: Recipe, facts: Facts) -> float:
    """Return what is kept of an attention or an MLP."""
    dropped = recipe.train.method != "full" and recipe.train.lora.dropout > 0
    writers = [linear for linear in linears if _writes(linear, facts)]
    readers = [linear for linear in linears if linear not in writers]
    outputs = sum(linear.num_outputs for linear in readers)
    kept: float = outputs
    again = recomputes(recipe)
    if again and "att" not in name:
        return kept
    if not dropped and not again:
        kept += max((linear.num_inputs for linear in readers if _needs_input(linear, recipe)), default=0)
    for writer in writers:
        apart = outputs > writer.num_inputs  # what it reads is not what the readers gave
        shared = not dropped and _needs_input(writer, recipe)
        # Attention keeps its output where the writer reads it.
        kept += writer.num_inputs * ((apart or shared) if again else (apart + shared))
        if "att" in name and recipe.train.objective == "dpo":
            kept += _REPEATED_PROMPT * (outputs + writer.num_inputs)
        if "att" in name and len(readers) == 1 and not readers[0].name.endswith(_WITHOUT_ROTATION):
            kept += (outputs + writer.num_inputs) / 2  # turned queries and keys, beside the whole that values lie in
    if "att" not in name:
        kept += _STEPS_KEPT.get(facts.activation, 0) * outputs
    return kept


def _writes(linear: Linear, facts: Facts) -> bool:
    """Return whether a layer's outputs are added to the hidden states."""
    if linear.num_outputs != facts.hidden_size:
        return False
    return linear.num_inputs != facts.hidden_size or linear.name.rpartition(".")[2] in _ATTENTION_WRITERS


def _needs_input(linear: Linear, recipe: Recipe) -> bool:
    """Return whether a gradient is made of a layer's input."""
    lora = recipe.train.lora
    full = recipe.train.method == "full"
    return full or carries_adapter(linear.name, lora) or is_whole(linear.name, lora.modules_to_save)


def _numbers_of_adapter(linear: Linear, recipe: Recipe) -> float:
    lora = recipe.train.lora
    if recipe.train.method == "full" or not carries_adapter(linear.name, lora):
        return 0
    magnitude = linear.num_outputs if recipe.train.method.endswith("dora") else 0
    dropped = 2 * linear.num_inputs if lora.dropout else 0  # the input after dropout, and what it was multiplied by
    return value_for(linear.name, lora.rank_pattern, lora.r) + magnitude + dropped


def _norm_bytes(recipe: Recipe, facts: Facts) -> float:
    """Return what all norms keep."""
    norms = [tensor for tensor in facts.others if _is_norm(tensor.name) and tensor.name.endswith(".weight")]
    is_rms = not any(_is_norm(tensor.name) and tensor.name.endswith(".bias") for tensor in facts.others)
    width = compute_bytes(recipe)
    read = 4 if is_rms else width
    outputs = {linear.name: linear.num_outputs for linear in facts.linears}
    total = 0.0
    for norm in norms:
        moves = recipe.train.method == "full" or is_whole(norm.name, recipe.train.lora.modules_to_save)
        normed = _normed(norm, outputs, facts)
        if recomputes(recipe) and (moves or normed == facts.hidden_size):
            total += normed * width
        else:
            total += normed * (read + (width if moves and is_rms else 0))
    if norms:
        return total
    made = 0 if recomputes(recipe) or recipe.train.method != "full" else width
    return (2 * facts.num_layers + 1) * facts.hidden_size * (4 + made)


def _is_norm(name: str) -> bool:
    module = name.rpartition(".")[0].rpartition(".")[2]
    return "norm" in module or module.startswith("ln_")


def _normed(norm: Tensor, outputs: dict[str, int], facts: Facts) -> int:
    """Return how many numbers of a position a norm goes over: hidden states, or all heads of queries or keys."""
    layer = norm.name.removesuffix(".weight").replace("q_norm", "q_proj").replace("k_norm", "k_proj")
    return outputs.get(layer, facts.hidden_size)
