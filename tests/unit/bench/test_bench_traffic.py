"""Prompts out of rows."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from tunesmith.bench.http import Address
from tunesmith.bench.traffic import choose, conversations_of, moments, question_of
from tunesmith.errors import BenchError, UsageError
from tunesmith.recipe.schema import Bench, Data, Model, Recipe, Source
from tunesmith.rows.conversation import Conversation

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}


def row(text: str) -> Conversation:
    return Conversation(({"role": "user", "content": text}, {"role": "assistant", "content": "ok"}))


def test_a_prompt_ends_before_the_last_assistant_turn() -> None:
    user, assistant, tool = ({"role": role, "content": role} for role in ("user", "assistant", "tool"))
    assert question_of([user, assistant, tool, assistant]) == (user, assistant, tool)
    assert question_of([user]) == (user,)
    assert question_of([assistant]) == ()


def test_the_seed_fixes_the_order_and_rows_are_sent_again_when_there_are_few() -> None:
    rows = [(f"r:{i}", row(str(i))) for i in range(5)]
    first, none_unfit = choose(rows, 12, seed=3, fits=lambda question: True)
    again, _ = choose(rows, 12, seed=3, fits=lambda question: True)
    other, _ = choose(rows, 12, seed=4, fits=lambda question: True)
    assert first == again != other and none_unfit == 0
    assert [prompt.name for prompt in first[:5]] == [prompt.name for prompt in first[5:10]]
    assert sorted({prompt.name for prompt in first}) == [name for name, _ in rows]


def test_rows_that_do_not_fit_are_passed_over_and_counted() -> None:
    rows = [(f"r:{i}", row(str(i))) for i in range(6)]
    chosen, num_unfit = choose(rows, 4, seed=0, fits=lambda question: question.messages[0]["content"] in "24")
    assert {prompt.name for prompt in chosen} == {"r:2", "r:4"} and num_unfit == 4
    with pytest.raises(BenchError, match="none of 6 rows"):
        choose(rows, 4, seed=0, fits=lambda question: False)
    with pytest.raises(BenchError, match="no rows"):
        choose([], 4, seed=0, fits=lambda question: True)


def test_calls_and_results_are_sent_in_the_apis_form() -> None:
    messages = (
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL | {"id": "own"}]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "done"},
    )
    (prompt,), _ = choose([("r:1", Conversation(messages))], 1, seed=0, fits=lambda question: True)
    _, assistant, first, second = prompt.messages
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_1", "own"]
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"x": "é"}
    assert (first["tool_call_id"], second["tool_call_id"]) == ("call_1", "own")
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": "é"}, "rows are left as they are"


def test_rows_come_from_bench_prompts_or_else_validation_or_training_rows(tmp_path: Path) -> None:
    for name in ("train", "validation", "prompts"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "completion": "x"}) + "\n")

    def first_question(**given: tuple[str, ...]) -> str:
        sources = {key: (Source(str(tmp_path / f"{key}.jsonl")),) for key in given if key != "prompts"}
        prompts = (str(tmp_path / "prompts.jsonl"),) if "prompts" in given else ()
        recipe = Recipe("n", Model("m"), Data(**sources), bench=Bench(prompts=prompts))  # type: ignore[arg-type]
        ((_, conversation),) = conversations_of(recipe)
        return str(conversation.messages[0]["content"])

    assert first_question(train=(), validation=(), prompts=()) == "prompts"
    assert first_question(train=(), validation=()) == "validation"
    assert first_question(train=()) == "train"


def test_addresses() -> None:
    assert Address.of("http://h:81/a/") == Address("h", 81, "/a", False)
    assert Address.of("https://h") == Address("h", 443, "", True)
    for url in ("h:80", "ftp://h", "http://", ""):
        with pytest.raises(UsageError):
            Address.of(url)


def test_moments_of_an_open_loop() -> None:
    assert moments(4.0, 5, "constant", seed=0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    drawn = moments(50.0, 20_000, "poisson", seed=1)
    assert drawn == moments(50.0, 20_000, "poisson", seed=1) != moments(50.0, 20_000, "poisson", seed=2)
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *drawn])]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.02, rel=0.03) and deviation == pytest.approx(mean, rel=0.05)
    longer = sum(gap > 0.04 for gap in gaps) / len(gaps)
    assert longer == pytest.approx(math.exp(-2), rel=0.05), "gaps are exponential"


@pytest.mark.parametrize("url", ["h:81", "ftp://h", "http://", "http://h:port", "http://[::1", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="not an http"):
        Address.of(url)
