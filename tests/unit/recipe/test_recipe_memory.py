"""The memory estimate: its arithmetic. `tests/parity/test_train_memory.py` holds activations against autograd."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tunesmith.recipe.activations import activation_bytes_per_token
from tunesmith.recipe.facts import Facts, Linear, Tensor
from tunesmith.recipe.memory import (
    LOGITS_CHUNK_BYTES,
    Lengths,
    MemoryEstimate,
    estimate_memory,
    fixed_bytes,
    micro_batch_tokens,
)
from tunesmith.recipe.resolve import resolve
from tunesmith.recipe.schema import Data, Lora, Model, Recipe, Source, Train

HIDDEN, KEYS, INNER, VOCAB, LAYERS = 64, 32, 96, 1000, 2
BLOCKS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
LINEARS = tuple(Linear(f"model.layers.{n}.{name}", *shape) for n in range(LAYERS) for name, shape in BLOCKS.items())
NORMS = tuple(
    Tensor(f"model.layers.{n}.{name}.weight", HIDDEN)
    for n in range(LAYERS)
    for name in ("input_layernorm", "post_attention_layernorm")
)
IN_LINEARS = sum(linear.num_outputs * linear.num_inputs for linear in LINEARS)
OTHERS = (Tensor("model.embed_tokens.weight", VOCAB * HIDDEN), Tensor("model.norm.weight", HIDDEN), *NORMS)
FACTS = Facts(
    num_parameters=IN_LINEARS + sum(tensor.num_elements for tensor in OTHERS), num_layers=LAYERS, hidden_size=HIDDEN,
    vocab_size=VOCAB, device_memory_bytes=8 << 30, checkpoint_dtype="bfloat16", activation="silu", linears=LINEARS,
    others=OTHERS,
)  # fmt: skip
SOME = Lengths(mean=100.0, deviation=10.0, longest=150)


def planned(dtype: str = "float32", max_length: int = 512, **train: Any) -> Recipe:
    data = Data((Source("d"),), max_length=max_length)
    recipe = Recipe("x", Model("m", dtype=dtype), data, train=Train(**train))  # type: ignore[arg-type]
    return resolve(recipe, FACTS)[0]


def estimated(num_steps: int = 10, facts: Facts = FACTS, **train: Any) -> MemoryEstimate:
    return estimate_memory(planned(**train), facts, SOME, num_steps)


# ── Activations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_llama_layer_keeps() -> None:
    attention = HIDDEN + 2 * KEYS + HIDDEN  # q, k, v, and attention's output, which o reads
    mlp = 2 * INNER  # gate, up
    norms, ranks = 2 * HIDDEN, 7 * 8
    ends = HIDDEN + HIDDEN  # the last norm's input, and the head's gradient
    lora = LAYERS * (attention + mlp + norms + ranks) + ends
    assert activation_bytes_per_token(planned(lora=Lora(r=8)), FACTS) == pytest.approx(4 * lora)
    full = LAYERS * (attention + mlp + norms) + ends
    assert activation_bytes_per_token(planned(method="full"), FACTS) == pytest.approx(4 * full)


def test_what_is_not_made_again_is_kept() -> None:
    """Compiled layers keep what the compiler takes; the estimate is that of the layers as they are written."""
    # The readers' inputs and attention's output in pieces; the activation and down's input.
    inputs, mlp, norms = 3 * HIDDEN, 2 * INNER, (2 * LAYERS + 1) * HIDDEN
    again = activation_bytes_per_token(planned(), FACTS)
    whole = activation_bytes_per_token(planned(torch_compile=True), FACTS)
    assert whole - again == pytest.approx(4 * LAYERS * (inputs + mlp))
    again = activation_bytes_per_token(planned(method="full"), FACTS)
    whole = activation_bytes_per_token(planned(method="full", torch_compile=True), FACTS)
    assert whole - again == pytest.approx(4 * (LAYERS * (inputs + mlp) + norms))


def test_sixteen_bits_keep_half() -> None:
    wide, narrow = (activation_bytes_per_token(planned(dtype), FACTS) for dtype in ("float32", "bfloat16"))
    assert narrow == pytest.approx(wide / 2)


def test_fewer_adapters_keep_less_and_other_kinds_more() -> None:
    lora = activation_bytes_per_token(planned(), FACTS)
    few = activation_bytes_per_token(planned(lora=Lora(target_modules=("q_proj",))), FACTS)
    dora = activation_bytes_per_token(planned(method="dora"), FACTS)
    dropout = activation_bytes_per_token(planned(lora=Lora(dropout=0.1)), FACTS)
    assert few < lora < dora and lora < dropout
    assert dora - lora == pytest.approx(4 * sum(linear.num_outputs for linear in LINEARS))
    assert activation_bytes_per_token(planned(method="qlora"), FACTS) == lora


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    whole = activation_bytes_per_token(planned(gradient_checkpointing=False, torch_compile=True), FACTS)
    saved = activation_bytes_per_token(planned(gradient_checkpointing=True), FACTS)
    assert saved < whole
    per_layer = (whole - 4 * HIDDEN) / LAYERS
    assert saved == pytest.approx(LAYERS * HIDDEN * 4 + per_layer)


def test_unknown_layers_are_guessed_from_the_hidden_size() -> None:
    bare = dataclasses.replace(FACTS, linears=(), others=())
    found = activation_bytes_per_token(planned(), bare) / activation_bytes_per_token(planned(), FACTS)
    assert 0.5 < found < 2


# ── The fullest micro-batch ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("train", "lengths", "tokens"),
    [
        ({"per_device_train_batch_size": 1}, SOME, 512),
        ({"per_device_train_batch_size": 4, "global_batch_size": 4}, SOME, 400 + 10 * math.sqrt(8 * math.log(10))),
        ({"per_device_train_batch_size": 8, "global_batch_size": 8}, Lengths(90.0, 500.0, 100), 800),
        ({"per_device_train_batch_size": 8, "global_batch_size": 1}, SOME, 150),
        ({"per_device_train_batch_size": 2, "objective": "dpo"}, SOME, 1600 + 10 * math.sqrt(32 * math.log(10))),
        ({"per_device_train_batch_size": 1, "objective": "dpo"}, SOME, 1024),
        ({"per_device_train_batch_size": 2}, Lengths(), 1024),
    ],
)
def test_tokens_of_the_fullest_micro_batch(train: dict[str, Any], lengths: Lengths, tokens: float) -> None:
    assert micro_batch_tokens(planned(**train), lengths, num_steps=10) == pytest.approx(tokens, rel=1e-3)


# ── Moments ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_methods_in_order() -> None:
    full, lora, qlora = (estimated(method=method) for method in ("full", "lora", "qlora"))
    assert full.weights + full.gradients + full.optimizer == 16 * FACTS.num_parameters
    assert qlora.weights < lora.weights < full.weights + full.gradients
    assert lora.moment == "step" and "at the peak" in lora.sentence()
    assert (
        lora.to_json()["total"]
        == lora.total
        == sum(value for name, value in dataclasses.asdict(lora).items() if name not in ("available", "moment"))
    )


def test_copies_for_checkpoints_stay_once_one_was_written() -> None:
    once, often = estimated(method="full", save_steps=10), estimated(method="full", save_steps=9)
    assert once.copies == 0 and often.copies == 12 * FACTS.num_parameters
    on_gpu = dataclasses.replace(FACTS, device="cuda")
    assert estimated(facts=on_gpu, method="full", save_steps=1).copies == 0


def test_loading_a_four_bit_base_may_be_the_peak() -> None:
    side = 30_000
    linears = (*LINEARS, Linear("model.layers.0.mlp.other_proj", side, side))
    large = dataclasses.replace(FACTS, num_parameters=FACTS.num_parameters + side**2, linears=linears)
    found = estimate_memory(planned("bfloat16", method="qlora"), large, SOME, num_steps=10)
    assert found.moment == "load" and "while the model is loaded" in found.sentence()
    assert found.weights == found.copies == 2 * large.num_parameters  # 16 bits in memory, and in the file
    on_gpu = dataclasses.replace(large, device="cuda")
    assert estimate_memory(planned("bfloat16", method="qlora"), on_gpu, SOME, num_steps=10).moment == "step"


def test_logits_come_in_chunks() -> None:
    wide = dataclasses.replace(FACTS, vocab_size=10**6)
    assert estimated(facts=wide).logits == 1.25 * LOGITS_CHUNK_BYTES["cpu"]
    assert estimated(facts=wide, method="full", objective="dpo").logits == 3 * LOGITS_CHUNK_BYTES["cpu"]


def test_more_than_there_is_is_said() -> None:
    little = dataclasses.replace(FACTS, device_memory_bytes=1 << 20)
    assert "MORE THAN THERE IS" in estimated(facts=little).sentence()


def test_eight_bit_states_are_smaller() -> None:
    assert estimated(optim="adamw_8bit").optimizer * 3 < estimated().optimizer
    assert fixed_bytes(planned(optim="adamw_8bit"), FACTS) < fixed_bytes(planned(), FACTS)
