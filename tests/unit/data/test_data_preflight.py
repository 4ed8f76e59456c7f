# ruff: noqa: E501 - one case per line
"""Each reason to refuse fires when it should, and only then."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunesmith.artifacts import RowCounts
from tunesmith.data.building import Tally
from tunesmith.data.preflight import Evidence, preflight
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data, Model, Recipe, Source, Train

COUNTS = RowCounts(read=110, train=90, validation=10, quarantined=10)
TALLY = Tally(
    num_sequences=90,
    num_tokens=9_000,
    num_trained_tokens=900,
    longest_tokens=200,
    largest_id=319,
    num_rows_with_trained_end=90,
)
DATA = Data((Source("rows.jsonl"),), validation_fraction=0.1)


def evidence(
    *,
    data: dict[str, Any] | None = None,
    counts: dict[str, Any] | None = None,
    tally: dict[str, Any] | None = None,
    **own: Any,
) -> Evidence:
    recipe = Recipe("t", Model("model"), dataclasses.replace(DATA, **(data or {})), train=Train(global_batch_size=16))
    facts: dict[str, Any] = {"end_tokens": ("<|im_end|>",), "start_token": "<s>", "model_vocab_size": 320} | own
    return Evidence(
        recipe=recipe,
        counts=dataclasses.replace(COUNTS, **(counts or {})),
        tally=dataclasses.replace(TALLY, **(tally or {})),
        **facts,
    )


def test_good_rows_pass_without_a_word() -> None:
    assert preflight(evidence()) == []


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("no rows", {"counts": {"train": 0, "overlong_dropped": 3}, "data": {"max_cut_rows_fraction": 1.0}}, "no row is left", "overlong dropped 3"),
    ("no trained tokens", {"tally": {"num_trained_tokens": 0}, "data": {"min_trained_tokens_fraction": 0.0}}, "0 of 9,000 tokens", "data show"),
    ("few trained tokens", {"tally": {"num_trained_tokens": 44}}, "44 of 9,000 tokens have a loss (0.489%)", "0.500%"),
    ("end never trained", {"tally": {"num_rows_with_trained_end": 0}}, "<|im_end|>", "never learn to stop"),
    ("no end token", {"tally": {"num_rows_with_trained_end": 0}, "end_tokens": ()}, "names no token", "eos_token"),
    ("start doubled", {"tally": {"num_rows_with_doubled_start": 2}}, "2 rows begin with <s> twice", "template writes it"),
    ("many dropped", {"counts": {"overlong_dropped": 30}}, "30 of 130 rows (23.1%)", "raise data.max_length"),
    ("many truncated", {"counts": {"truncated": 21}}, "21 of 100 rows (21.0%)", "0 dropped, 21 truncated"),
    ("nothing held out", {"counts": {"validation": 0}}, "none is held out", "raise it"),
    ("empty validation", {"counts": {"validation": 0}, "data": {"validation_fraction": 0.0, "validation": (Source("v"),)}}, "validation sources", "check"),
    ("id too large", {"model_vocab_size": 319}, "token id 319", "319 rows"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "message", "more"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refusals_say_why_with_figures(case: dict[str, Any], message: str, more: str) -> None:
    with pytest.raises(DataError) as caught:
        preflight(evidence(**case))
    assert message in caught.value.render() and more in caught.value.render()
    assert caught.value.where and caught.value.do


@pytest.mark.parametrize(
    "case",
    [
        {"tally": {"num_trained_tokens": 45}},
        {"counts": {"overlong_dropped": 25}},
        {"counts": {"truncated": 20}},
        {"counts": {"overlong_dropped": 90}, "data": {"max_cut_rows_fraction": 1.0}},
        {"counts": {"validation": 0}, "data": {"validation_fraction": 0.0}},
        {"model_vocab_size": None},
        {"tally": {"num_rows_with_trained_end": 1}},
    ],
)
def test_the_limit_itself_passes(case: dict[str, Any]) -> None:
    assert preflight(evidence(**case)) == []


def test_less_than_a_batch_is_a_warning() -> None:
    assert preflight(evidence(tally={"num_sequences": 15})) == [
        "an epoch has 15 sequences, fewer than one global batch (16)"
    ]
