"""From the harness's files, in its own format, to records and items."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import EvaluateError
from tunesmith.evaluate.lm_eval.catalogue import Chosen
from tunesmith.evaluate.lm_eval.comparison import Record, Side, compare, groups_of, item_lines, task_name
from tunesmith.evaluate.lm_eval.results import read
from tunesmith.evaluate.lm_eval.work_order import Job

FACTS: Record = {"backend": "checkpoint"}


def sample(doc_id: int, metrics: dict[str, Any], *, filter_name: str = "none", **more: Any) -> dict[str, Any]:
    """Return one line of a samples file, as the harness writes it."""
    line: dict[str, Any] = {
        "doc_id": doc_id,
        "doc": {"question": f"q{doc_id}"},
        "target": "yes",
        "arguments": {"gen_args_0": {"arg_0": f"Question {doc_id}", "arg_1": {"until": ["\n"]}}},
        "resps": [["well, yes"]],
        "filtered_resps": ["yes"],
        "filter": filter_name,
        "metrics": list(metrics),
        "doc_hash": f"d{doc_id}",
        "prompt_hash": f"p{doc_id}",
        "target_hash": f"t{doc_id}",
    }
    return line | metrics | more


def side(path: Path, samples: dict[str, list[dict[str, Any]]], **results: Any) -> Side:
    """Write what the harness would leave, and read it."""
    path.mkdir(parents=True)
    names = {}
    for task, lines in samples.items():
        names[task] = f"samples_{task}.jsonl"
        (path / names[task]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = {
        "group_subtasks": {},
        "versions": dict.fromkeys(samples, 2.0),
        "n-shot": dict.fromkeys(samples, 5),
        "higher_is_better": {},
    } | results
    (path / "results_x.json").write_text(json.dumps(document))
    (path / "done.json").write_text(json.dumps({"results": "results_x.json", "samples": names}))
    job = Job(Chosen("t", {}, False, False), "tuned", path, "key", path)
    return Side({measured.name: measured for measured in read(job)})


def means(values: list[float], metric: str = "acc", filter_name: str = "none") -> dict[str, Any]:
    stderr = math.sqrt(0.25 / len(values))
    return {
        f"{metric},{filter_name}": sum(values) / len(values),
        f"{metric}_stderr,{filter_name}": stderr,
        "alias": "t",
    }


def binary(path: Path, values: list[float]) -> Side:
    lines = [sample(i, {"acc": value}) for i, value in enumerate(values)]
    return side(path, {"t": lines}, results={"t": means(values)})


def test_a_share_is_compared_item_by_item(tmp_path: Path) -> None:
    base, tuned = binary(tmp_path / "b", [0, 0, 0, 1, 0, 0, 0, 1]), binary(tmp_path / "t", [1, 1, 1, 1, 1, 1, 1, 0])
    record = compare("t", {"base": base, "tuned": tuned}, FACTS, 1)["acc"]
    assert (record["base"], record["tuned"], record["difference"]) == (0.25, 0.875, 0.625)
    assert (record["num_fixed"], record["num_broken"], record["num_pairs"]) == (6, 1, 8)
    assert record["p_value"] == pytest.approx(2 * (1 + 7) / 2**7) and record["verdict"] == "cannot tell"
    assert record["tuned_stderr"] == pytest.approx(math.sqrt(0.25 / 8)) and record["maximum"] == 1.0
    assert (tuned.measured["t"].version, tuned.measured["t"].num_fewshot) == ("2.0", 5)
    assert record["filter"] == "none" and record["backend"] == "checkpoint"


def test_without_a_base(tmp_path: Path) -> None:
    record = compare("t", {"tuned": binary(tmp_path / "t", [1, 0, 1, 1])}, FACTS, 1)["acc"]
    assert record["base"] is None and record["tuned"] == 0.75 and "verdict" not in record


def test_other_filters_carry_their_name(tmp_path: Path) -> None:
    def of(path: Path, strict: list[float], flexible: list[float]) -> Side:
        lines = [sample(i, {"exact_match": v}, filter_name="strict-match") for i, v in enumerate(strict)]
        lines += [sample(i, {"exact_match": v}, filter_name="flexible-extract") for i, v in enumerate(flexible)]
        numbers = means(strict, "exact_match", "strict-match") | means(flexible, "exact_match", "flexible-extract")
        return side(path, {"t": lines}, results={"t": numbers})

    sides = {"base": of(tmp_path / "b", [0, 0], [1, 0]), "tuned": of(tmp_path / "t", [1, 0], [1, 1])}
    records = compare("t", sides, FACTS, 1)
    assert list(records) == ["exact_match", "exact_match-flexible-extract"]
    assert records["exact_match"]["tuned"] == 0.5 and records["exact_match-flexible-extract"]["tuned"] == 1.0
    line = json.loads(item_lines("t", sides)[1])
    assert line["tuned"]["scores"] == {"exact_match": 0.0, "exact_match-flexible-extract": 1.0}
    assert line["tuned"]["correct"] is False and line["tuned"]["answer"] == "well, yes"


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_a_group_is_the_mean_of_its_items_or_of_its_tasks(tmp_path: Path, weight_by_size: bool) -> None:
    def of(path: Path, large: list[float], small: list[float]) -> Side:
        samples = {n: [sample(i, {"acc": v}) for i, v in enumerate(vs)] for n, vs in (("a", large), ("b", small))}
        everything = large + small
        mean = sum(everything) / 8 if weight_by_size else (sum(large) / 6 + sum(small) / 2) / 2
        group = {"acc,none": mean, "acc_stderr,none": 0.1, "alias": "g"}
        return side(
            path,
            samples,
            results={"a": means(large), "b": means(small), "g": group},
            groups={"g": group},
            group_subtasks={"g": ["inner"], "inner": ["a", "b"]},
            versions={"a": 1, "b": 1, "g": 3},
        )

    base, tuned = of(tmp_path / "b", [0] * 6, [0, 1]), of(tmp_path / "t", [1, 1, 1, 1, 1, 0], [1, 1])
    record = compare("g", {"base": base, "tuned": tuned}, FACTS, 1)["acc"]
    assert record["num_pairs"] == 8 and tuned.measured["g"].version == "3"
    assert groups_of(tuned) == {"a": "g", "b": "g"}
    assert record["difference"] == pytest.approx(6 / 8 if weight_by_size else (5 / 6 + 1 / 2) / 2)
    assert ("num_fixed" in record) == weight_by_size  # McNemar's test counts items that are alike
    assert record["verdict"] == "improved" or record["p_value"] > 0.05


def test_what_is_no_mean_is_compared_by_standard_errors(tmp_path: Path) -> None:
    def of(path: Path, bleu: float, stderr: float | str) -> Side:
        lines = [sample(i, {"bleu": ["ref", "pred"]}) for i in range(4)]
        return side(path, {"t": lines}, results={"t": {"bleu,none": bleu, "bleu_stderr,none": stderr, "alias": "t"}})

    sides = {"base": of(tmp_path / "b", 10.0, 1.5), "tuned": of(tmp_path / "t", 20.0, 2.0)}
    record = compare("t", sides, FACTS, 1)["bleu"]
    assert record["difference"] == 10.0 and record["verdict"] == "improved" and record["maximum"] == 100.0
    assert record["difference_low"] == pytest.approx(10 - 1.959964 * 2.5, abs=1e-5)
    assert record["p_value"] == pytest.approx(math.erfc(4 / math.sqrt(2)))
    assert record["num_items"] == record["num_pairs"] == 4 and record["verdict_in_words"] == "improved"
    close = {"base": of(tmp_path / "b3", 10.0, 1.5), "tuned": of(tmp_path / "t3", 12.0, 2.0)}
    assert "cannot tell with 4 items; about 50" in str(compare("t", close, FACTS, 1)["bleu"]["verdict_in_words"])
    unknown = {"base": of(tmp_path / "b2", 10.0, "N/A"), "tuned": of(tmp_path / "t2", 20.0, 2.0)}
    assert compare("t", unknown, FACTS, 1)["bleu"]["verdict"] == "cannot tell"


def test_lower_may_be_better(tmp_path: Path) -> None:
    def of(path: Path, values: list[float]) -> Side:
        lines = [sample(i, {"loss": v}) for i, v in enumerate(values)]
        return side(path, {"t": lines}, results={"t": means(values, "loss")}, higher_is_better={"t": {"loss": False}})

    base, tuned = (
        of(tmp_path / "b", [2.0 + i / 9 for i in range(9)]),
        of(tmp_path / "t", [1.0 + i / 9 for i in range(9)]),
    )
    record = compare("t", {"base": base, "tuned": tuned}, FACTS, 1)["loss"]
    assert (record["better"], record["verdict"]) == ("lower", "improved") and "num_fixed" not in record


def test_of_choices_the_likeliest_is_the_answer(tmp_path: Path) -> None:
    arguments = {f"gen_args_{i}": {"arg_0": "Sky?", "arg_1": f" {word}"} for i, word in enumerate(("red", "blue"))}
    resps = [[["-3.5", "False"]], [["-1.25", "True"]]]
    line = sample(0, {"acc": 1.0}, arguments=arguments, resps=resps, target="1")
    told = json.loads(item_lines("t", {"tuned": side(tmp_path / "t", {"t": [line]}, results={"t": means([1.0])})})[0])
    assert (told["tuned"]["answer"], told["reference"], told["prompt_tail"]) == ("blue", "blue", "Sky?")
    assert told["id"] == "t#0" and told["prompt_hash"] == "p0" and told["tuned"]["correct"] is True


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    base, tuned = binary(tmp_path / "b", [0, 1]), binary(tmp_path / "t", [0, 1, 1])
    with pytest.raises(EvaluateError, match="asked different items"):
        compare("t", {"base": base, "tuned": tuned}, FACTS, 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"results": "gone.json", "samples": {}}', "[" * 100_000])
def test_broken_files_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "done.json").write_text(content)
    with pytest.raises(EvaluateError, match="cannot be read"):
        read(Job(Chosen("t", {}, False, False), "tuned", tmp_path, "key", tmp_path))


def test_the_outermost_group_with_numbers_is_the_one_to_show(tmp_path: Path) -> None:
    numbers = means([1.0, 0.0])
    samples = {name: [sample(i, {"acc": 1.0 - i}) for i in range(2)] for name in ("law", "art", "stars", "alone")}
    results = dict.fromkeys((*samples, "mmlu", "humanities", "stem", "bare"), numbers)
    found = side(
        tmp_path / "t",
        samples,
        results=results,
        groups={"mmlu": numbers, "humanities": numbers, "stem": numbers, "bare": {"alias": "bare"}},
        group_subtasks={
            "mmlu": ["humanities", "stem"],
            "humanities": ["law", "art"],
            "stem": ["stars"],
            "bare": ["alone"],
        },
    )
    parts = ("humanities", "law", "art", "stem", "stars")
    assert groups_of(found) == dict.fromkeys(parts, "mmlu")


def test_names_fit_into_gate_rules() -> None:
    assert task_name("arc_easy") == "lm_eval.arc_easy"
    assert task_name("odd name.v1::x") == "lm_eval.odd_name_v1__x"
