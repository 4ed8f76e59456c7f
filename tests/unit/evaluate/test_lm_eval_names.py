"""What people write under `evaluate.lm_eval.tasks`, and what the harness will run."""

from __future__ import annotations

import pytest

from tunesmith.errors import RecipeError
from tunesmith.evaluate.lm_eval.catalogue import Catalogue, Chosen, Entry
from tunesmith.recipe.harness_names import is_known_to_run_code
from tunesmith.recipe.schema import LmEval


def task(output_type: str = "multiple_choice", *, runs_code: bool = False) -> Entry:
    return Entry("task", (), output_type, runs_code, False)


NAMES = {
    **{name: task() for name in ("arc_easy", "arc_challenge", "hellaswag", "winogrande", "gpqa_main_zeroshot")},
    **{name: task() for name in ("truthfulqa_mc1", "truthfulqa_mc2", "mmlu_astronomy", "mmlu_law")},
    **{name: task("generate_until") for name in ("gsm8k", "bbh_snarks", "truthfulqa_gen")},
    "humaneval": task("generate_until", runs_code=True),
    "mbpp": task("generate_until", runs_code=True),
    "mmlu": Entry("group", ("mmlu_stem", "mmlu_humanities"), "", False, False),
    "mmlu_stem": Entry("group", ("mmlu_stem_tasks",), "", False, False),
    "mmlu_stem_tasks": Entry("tag", ("mmlu_astronomy",), "", False, False),
    "mmlu_humanities": Entry("group", ("mmlu_law",), "", False, False),
    "bbh": Entry("group", ("bbh_snarks",), "", False, False),
    "truthfulqa": Entry("tag", ("truthfulqa_gen", "truthfulqa_mc1", "truthfulqa_mc2"), "", False, False),
    "in_a_circle": Entry("group", ("in_a_circle", "arc_easy"), "", False, False),
}
CATALOGUE = Catalogue("0.4.13", NAMES, frozenset())


def chosen(*words: str, **settings: bool) -> list[Chosen]:
    return CATALOGUE.choose(LmEval(words, **settings))


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("MMLU", ["mmlu"]),
        ("GSM8K", ["gsm8k"]),
        ("gsm-8k", ["gsm8k"]),
        ("ARC", ["arc_easy", "arc_challenge"]),
        ("ARC-Challenge", ["arc_challenge"]),
        ("HellaSwag", ["hellaswag"]),
        ("WinoGrande", ["winogrande"]),
        ("TruthfulQA", ["truthfulqa_mc1", "truthfulqa_mc2"]),
        ("BBH", ["bbh"]),
        ("GPQA", ["gpqa_main_zeroshot"]),
    ],
)
def test_names_that_people_know(word: str, names: list[str]) -> None:
    assert [c.name for c in chosen(word)] == names


def test_code_tasks_by_the_names_people_know() -> None:
    found = chosen("HumanEval", "MBPP", allow_code_execution=True)
    assert [(c.name, c.runs_code) for c in found] == [("humaneval", True), ("mbpp", True)]


def test_the_harness_s_own_name_wins() -> None:
    assert [c.name for c in chosen("truthfulqa")] == ["truthfulqa_gen", "truthfulqa_mc1", "truthfulqa_mc2"]


def test_a_group_knows_the_tasks_below_it_through_tags_and_circles() -> None:
    (group,) = chosen("mmlu")
    assert group.is_group and list(group.leaves) == ["mmlu_astronomy", "mmlu_law"] and group.needs_logprobs
    assert list(chosen("in_a_circle")[0].leaves) == ["arc_easy"]
    assert not chosen("gsm8k")[0].needs_logprobs


def test_twice_the_same_is_done_once() -> None:
    assert [c.name for c in chosen("arc_easy", "ARC", "arc_easy")] == ["arc_easy", "arc_challenge"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [("gsm8", "gsm8k"), ("helaswag", "hellaswag"), ("arc_chalenge", "arc_challenge"), ("zzzz", "lm_eval ls tasks")],
)
def test_an_unknown_name_is_told_with_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        chosen("gsm8k", word)
    assert word in caught.value.what and hint in caught.value.do
    assert caught.value.where == "evaluate.lm_eval.tasks[1]"


def test_all_unknown_names_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        chosen("helaswag", "winogrand", "humaneval")
    assert len(caught.value.problems) == 3


def test_programs_are_not_run_unless_allowed() -> None:
    with pytest.raises(RecipeError) as caught:
        chosen("humaneval")
    assert "runs programs that the model writes" in caught.value.what
    assert "allow_code_execution: true" in caught.value.do


def test_code_tasks_are_known_without_asking_the_harness() -> None:
    for name in ("humaneval", "HumanEval", "humaneval_instruct", "mbpp", "mbpp_plus", "MBPP"):
        assert is_known_to_run_code(name)
    assert not is_known_to_run_code("gsm8k")
