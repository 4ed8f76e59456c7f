"""Which rows become which items, and how answers to them are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError, EnvironmentProblem
from tunesmith.evaluate.client import Answer, ToolCall
from tunesmith.evaluate.function_calls import FunctionCalls
from tunesmith.evaluate.stage import tasks_of
from tunesmith.evaluate.task import Transcript
from tunesmith.evaluate.text import TextAnswers, jaccard
from tunesmith.recipe.schema import Evaluate, FunctionCallTask, TextTask

TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def turn(role: str, content: str = "", *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return message


# ── text ─────────────────────────────────────────────────────────────────────


def text_task(tmp_path: Path, rows: list[dict[str, Any]], *metrics: Any, limit: int | None = None) -> TextAnswers:
    return TextAnswers(TextTask((write(tmp_path / "rows.jsonl", rows),), metrics or ("exact_match",), limit, 32))


def test_text_items_ask_what_precedes_the_last_answer(tmp_path: Path) -> None:
    asked = [turn("system", "s"), turn("user", "1"), turn("assistant", "2"), turn("user", "3")]
    messages = [*asked, turn("assistant", "4"), turn("user", "thanks")]
    files = (
        write(tmp_path / "a.jsonl", [{"prompt": "say a", "completion": "a"}]),
        write(tmp_path / "b.jsonl", [{"messages": messages}]),
    )
    one, two = TextAnswers(TextTask(files, ("exact_match",), None, 32)).items()
    assert one.id.endswith("a.jsonl:1#2") and one.reference == "a" and one.max_tokens == 32
    assert [dict(message) for message in one.messages] == [turn("user", "say a")]
    assert two.id.endswith("b.jsonl:1#5") and two.reference == "4" and list(two.messages) == asked


def test_text_limit_and_empty_file(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "a"} for i in range(5)]
    assert len(text_task(tmp_path, rows, limit=2).items()) == 2
    with pytest.raises(DataError):
        text_task(tmp_path, []).items()


def test_text_row_without_words_to_compare_with(tmp_path: Path) -> None:
    row = {"messages": [turn("user", "go"), turn("assistant", "", ("f", {}))], "tools": [TOOL]}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*no assistant answer in words"):
        text_task(tmp_path, [row]).items()


def test_text_judgement(tmp_path: Path) -> None:
    metrics = ("exact_match", "jaccard", "rouge", "bleu")
    task = text_task(tmp_path, [{"prompt": "p", "completion": "the cat sat on the mat"}], *metrics)
    assert [m.name for m in task.metrics] == ["exact_match", "jaccard", "rouge1", "rouge2", "rougeL", "bleu"]
    (item,) = task.items()
    same = task.judge(item, Transcript((Answer(" the cat sat on the mat\n"),)))
    assert same.correct
    assert same.scores == pytest.approx(dict.fromkeys(same.scores, 1.0) | {"bleu": 100.0})
    other = task.judge(item, Transcript((Answer("The cat sat on a mat"),)))
    assert not other.correct and 0 < other.scores["bleu"] < 100
    assert other.scores["jaccard"] == pytest.approx(5 / 6)
    failed = task.judge(item, Transcript((Answer(error="timeout"),)))
    assert not failed.correct and set(failed.scores.values()) == {0.0}
    assert set(failed.statistics) == {m.name for m in task.metrics}


def test_named_sets_are_tasks_of_their_own(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", [{"prompt": n, "completion": n}] * 3) for n in ("test", "dev", "hard")]
    settings = TextTask((files[0],), ("exact_match",), 2, sets={"dev": (files[1],), "adversarial": (files[2],)})
    tasks = tasks_of(Evaluate(text=settings))
    assert [task.name for task in tasks] == ["text", "text.dev", "text.adversarial"]
    assert [[item.reference for item in task.items()] for task in tasks] == [["test"] * 2, ["dev"] * 2, ["hard"] * 2]
    only_sets = Evaluate(text=TextTask((), ("exact_match",), sets={"dev": (files[1],)}))
    assert [task.name for task in tasks_of(only_sets)] == ["text.dev"]
    empty = TextTask((), ("exact_match",), sets={"dev": (write(tmp_path / "none.jsonl", []),)})
    with pytest.raises(DataError, match=r"evaluate\.text\.sets\.dev"):
        TextAnswers(empty, "dev").items()


def test_only_wanted_metrics_are_summed(tmp_path: Path) -> None:
    task = text_task(tmp_path, [{"prompt": "p", "completion": "a"}], "jaccard")
    (item,) = task.items()
    assert set(task.judge(item, Transcript((Answer("a"),))).statistics) == {"jaccard"} == {m.name for m in task.metrics}


@pytest.mark.parametrize(
    ("left", "right", "overlap"),
    [
        ("a b", "B  a\n", 1.0),
        ("a b c", "a", 1 / 3),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("a a a", "a", 1.0),
        ("a.", "a", 0.0),
    ],
)
def test_jaccard(left: str, right: str, overlap: float) -> None:
    assert jaccard(left, right) == pytest.approx(overlap)


@pytest.mark.parametrize(("metric", "package"), [("rouge", "rouge-score"), ("bleu", "sacrebleu")])
def test_missing_library_is_named(metric: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rouge_score.rouge_scorer", "rouge_score", "sacrebleu.metrics", "sacrebleu"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(EnvironmentProblem, match=rf"{package}.*\n.*tunesmith\[eval\]"):
        TextAnswers(TextTask(("x",), (metric,)))


# ── function calls ───────────────────────────────────────────────────────────


def call_task(tmp_path: Path, rows: list[dict[str, Any]], limit: int | None = None) -> FunctionCalls:
    return FunctionCalls(FunctionCallTask((write(tmp_path / "rows.jsonl", rows),), limit, 32))


CALLING = {
    "messages": [
        turn("user", "1"),
        turn("assistant", "", ("f", {"a": 1})),
        turn("tool", "ok"),
        turn("assistant", "done"),
        turn("user", "2"),
        turn("assistant", "I will", ("f", {"a": 2}), ("g", {})),
    ],
    "tools": [TOOL],
}
TALKING = {"messages": [turn("user", "hi"), turn("assistant", "hello")], "tools": [TOOL]}


def test_call_items_are_the_calling_turns(tmp_path: Path) -> None:
    one, two, three = call_task(tmp_path, [CALLING, {**TALKING, "tools": []}, TALKING]).items()
    assert [item.id.rsplit(":", 1)[1] for item in (one, two, three)] == ["1#2", "1#6", "3#2"]
    assert [len(item.messages) for item in (one, two, three)] == [1, 5, 1]
    assert one.tools == (TOOL,)
    assert two.reference_text == 'f({"a": 2})\ng({})'
    assert three.reference == [] and three.reference_text == "(no call)"


def test_call_limit_counts_items(tmp_path: Path) -> None:
    assert len(call_task(tmp_path, [CALLING, TALKING], limit=2).items()) == 2


def test_rows_without_tools_are_no_items(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 1 rows offers tools"):
        call_task(tmp_path, [{**TALKING, "tools": []}]).items()


RIGHT = ToolCall("f", '{"a": 1.0}')


@pytest.mark.parametrize(
    ("answer", "error", "made_a_call"),
    [
        (Answer(tool_calls=(RIGHT,)), "", 1),
        (Answer('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'), "", 1),  # left in the text
        (Answer("I call f with a = 1"), "no_call", 0),
        (Answer(tool_calls=(RIGHT, RIGHT)), "wrong_count", 1),
        (Answer(tool_calls=(ToolCall("g", '{"a": 1}'),)), "wrong_name", 1),
        (Answer(tool_calls=(ToolCall("f", "{}"),)), "missing_argument", 1),
        (Answer(tool_calls=(ToolCall("f", '{"a": 1, "b": 1}'),)), "extra_argument", 1),
        (Answer(tool_calls=(ToolCall("f", '{"a": "1"}'),)), "wrong_value", 1),
        (Answer(tool_calls=(ToolCall("f", "{'a': 1}"),)), "unparsable", 0),
        (Answer(tool_calls=(ToolCall("f", "__import__('os').system('touch /tmp/x')"),)), "unparsable", 0),
        (Answer('<tool_call>\n{"name": "f", "arguments": {"a": 1}'), "unparsable", 0),
        (Answer(error="http_500"), "request_failed:http_500", 0),
    ],
)
def test_call_judgement(tmp_path: Path, answer: Answer, error: str, made_a_call: int) -> None:
    task = call_task(tmp_path, [CALLING], limit=1)
    (item,) = task.items()
    judged = task.judge(item, Transcript((answer,)))
    assert judged.error == error
    assert judged.correct is (error == "") and judged.scores["accuracy"] == (error == "")
    assert judged.scores["made_a_call"] == made_a_call
    assert "abstention_accuracy" not in judged.statistics


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer("hello"), ""),
        (Answer(""), ""),
        (Answer(tool_calls=(RIGHT,)), "unexpected_call"),
        (Answer("<tool_call>{"), "unparsable"),
        (Answer(error="timeout"), "request_failed:timeout"),
    ],
)
def test_calling_nothing_can_be_right(tmp_path: Path, answer: Answer, error: str) -> None:
    task = call_task(tmp_path, [TALKING])
    (item,) = task.items()
    judged = task.judge(item, Transcript((answer,)))
    assert (judged.correct, judged.error) == (error == "", error)
    assert set(judged.statistics) == {"accuracy", "bfcl_accuracy", "abstention_accuracy"}
