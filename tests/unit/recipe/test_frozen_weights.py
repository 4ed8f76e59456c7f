"""When frozen weights stay as they are stored, what that takes, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunesmith.recipe.facts import Facts, Linear, Tensor
from tunesmith.recipe.frozen_weights import notes, num_stored, scratch_bytes
from tunesmith.recipe.memory import Lengths, estimate_memory
from tunesmith.recipe.resolve import resolve
from tunesmith.recipe.schema import Data, Lora, Model, Recipe, Source, Train

LINEARS = (Linear("layers.0.q_proj", 30, 20), Linear("layers.0.down_proj", 20, 70))
FACTS = Facts(
    num_parameters=600 + 1400 + 1000, num_layers=1, hidden_size=20, vocab_size=50, checkpoint_dtype="bfloat16",
    linears=LINEARS, others=(Tensor("embed_tokens.weight", 1000),),
)  # fmt: skip


def planned(facts: Facts = FACTS, dtype: Any = "auto", **train: Any) -> Recipe:
    data = Data((Source("d"),), max_length=8)
    return resolve(Recipe("x", Model("m", dtype=dtype), data, train=Train(**train)), facts)[0]


def test_linear_layers_stay_and_the_largest_is_made_wide() -> None:
    recipe = planned(method="lora")
    assert recipe.model.dtype == "float32"
    assert num_stored(recipe, FACTS) == 2000 and scratch_bytes(recipe, FACTS) == 4 * 1400
    assert notes(recipe, FACTS) == [
        "frozen linear layers stay in bfloat16, as they are stored; products are made in float32"
    ]
    saved = planned(method="dora", lora=Lora(modules_to_save=("down_proj",)))
    assert num_stored(saved, FACTS) == 600


@pytest.mark.parametrize(
    "case",
    [
        {"facts": {"device": "cuda"}},
        {"facts": {"checkpoint_dtype": "float32"}},
        {"facts": {"transposed": True}},
        {"facts": {"has_fast_bfloat16": True}},
        {"method": "full"},
        {"method": "qlora"},
        {"torch_compile": True},
        {"parallelism": "fsdp2", "num_processes": 2},
    ],
    ids=str,
)
def test_otherwise_they_do_not(case: dict[str, Any]) -> None:
    facts = dataclasses.replace(FACTS, **case.pop("facts", {}))
    recipe = planned(facts, **{"method": "lora"} | case)
    assert num_stored(recipe, facts) == scratch_bytes(recipe, facts) == 0 and not notes(recipe, facts)


def test_the_estimate_follows() -> None:
    recipe, wide = planned(method="lora"), dataclasses.replace(FACTS, checkpoint_dtype="float32")
    narrow, before = (estimate_memory(recipe, facts, Lengths(5.0, 1.0, 8), num_steps=3) for facts in (FACTS, wide))
    assert before.weights - narrow.weights == 2 * 2000 - 4 * 1400


@pytest.mark.parametrize(("method", "same"), [("lora", True), ("full", False)])
def test_slow_bfloat16_is_told(method: str, same: bool) -> None:
    (note,) = notes(planned(dtype="bfloat16", method=method), FACTS)
    assert "more slowly than in float32" in note and "leave model.dtype out" in note
    assert ("same memory" in note) is same
    assert not notes(planned(dtype="bfloat16", method=method), dataclasses.replace(FACTS, has_fast_bfloat16=True))
