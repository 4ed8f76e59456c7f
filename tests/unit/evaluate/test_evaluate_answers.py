"""Answers survive a crash; a broken line costs one answer."""

from __future__ import annotations

from pathlib import Path

from tunesmith.evaluate.answers import AnswerStore
from tunesmith.evaluate.client import Answer, ToolCall

WITH_CALL = Answer("", (ToolCall("f", '{"city": "Zürich"}'),), "tool_calls")


def test_answers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    with AnswerStore(path) as store:
        store.put("a", Answer("line\nbreak \u2028 and \x85"))
        store.put("b", WITH_CALL)
    with AnswerStore(path) as store:
        assert store.get("a") == Answer("line\nbreak \u2028 and \x85")
        assert store.get("b") == WITH_CALL
        assert store.get("c") is None


def test_each_answer_is_on_disk_at_once(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.jsonl") as store:
        store.put("a", WITH_CALL)
        with AnswerStore(tmp_path / "answers.jsonl") as reader:
            assert reader.get("a") == WITH_CALL


def test_a_line_cut_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path) as store:
        store.put("a", Answer("one"))
        store.put("b", Answer("two"))
    for num_bytes_lost in range(1, 30, 7):
        whole = path.read_bytes()
        path.write_bytes(whole[:-num_bytes_lost])
        with AnswerStore(path) as store:
            assert store.get("a") == Answer("one")
            assert store.get("b") in (None, Answer("two"))  # losing the newline alone loses nothing
            store.put("c", Answer("three"))
        with AnswerStore(path) as store:
            assert store.get("a") == Answer("one")
            assert store.get("c") == Answer("three")
        path.write_bytes(whole)


def test_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'\xff\n[]\n{"key": "a"}\n{"key": "a", "answer": {"text": "x", "tool_calls": [], "new": 1}}\n\n')
    with AnswerStore(path) as store:
        assert store.get("a") is None


def test_runs_share_the_answers_of_one_model(tmp_path: Path) -> None:
    shared = tmp_path / "cache" / "base.jsonl"
    with AnswerStore(tmp_path / "one.jsonl", shared) as store:
        store.put("a", Answer("one", num_completion_tokens=3))
    with AnswerStore(tmp_path / "two.jsonl", shared) as store:
        store.put("b", WITH_CALL)
        found = store.get("a")
        assert found == Answer("one") and found is not None and found.num_completion_tokens == 3
    with AnswerStore(tmp_path / "two.jsonl") as store:  # copied: a run is complete in itself
        assert store.get("a") == Answer("one") and store.get("b") == WITH_CALL
    assert len(shared.read_bytes().splitlines()) == 2


def test_two_processes_may_write_to_the_shared_file(tmp_path: Path) -> None:
    shared = tmp_path / "base.jsonl"
    with AnswerStore(tmp_path / "one.jsonl", shared) as one, AnswerStore(tmp_path / "two.jsonl", shared) as two:
        for number in range(50):
            one.put(f"1-{number}", Answer("x" * 20_000))
            two.put(f"2-{number}", Answer("y" * 20_000))
    with AnswerStore(tmp_path / "three.jsonl", shared) as store:
        assert all(store.get(f"{which}-{number}") for which in (1, 2) for number in range(50))
