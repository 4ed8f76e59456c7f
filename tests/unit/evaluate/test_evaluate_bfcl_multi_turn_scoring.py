"""`tunesmith bfcl score` on multi-turn answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.app import main

PROGRAM = {"root": {"w": {"type": "directory", "contents": {"a.txt": {"type": "file", "content": "one"}}}}}
WANTED = [["cd(folder='/')", "cat(file_name='a.txt')"], [], ["rm('a.txt')"]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("multi_turn_base", "multi_turn_long_context"):
        item: dict[str, Any] = {
            "question": [[{"role": "user", "content": "Show a.txt."}], [], [{"role": "user", "content": "Remove it."}]],
            "involved_classes": ["GorillaFileSystem"],
            "initial_config": {"GorillaFileSystem": PROGRAM},
        }
        write(tmp_path / f"BFCL_v4_{name}.json", [item | {"id": f"{name}_{n}"} for n in range(5)])
        answers = [{"id": f"{name}_{n}", "ground_truth": WANTED} for n in range(5)]
        write(tmp_path / "possible_answer" / f"BFCL_v4_{name}.json", answers)
    return tmp_path


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def score(data: Path, responses: list[Any], *more: str, name: str = "multi_turn_base") -> list[dict[str, Any]]:
    answers = [{"id": f"{name}_{n}", "response": response} for n, response in enumerate(responses)]
    command = ["--category", name, "--responses", str(write(data / "answers.jsonl", answers))]
    assert main(["bfcl", "score", *command, "--out", str(data / "v.jsonl"), "--data", str(data), *more]) == 0
    return [json.loads(line) for line in (data / "v.jsonl").read_text().splitlines()]


def test_replies_lists_of_calls_and_failures(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = "[cd(folder='/'), cat(file_name='a.txt')]"
    responses = [
        [[first, "There it is."], ["I see."], ["[rm(file_name='a.txt')]", "Done."]],
        [[turn] if turn else [] for turn in WANTED],
        [[first], [], ["rm('a.txt')"]],  # as text: an argument without its name is dropped
        [[first], []],
        "Error during inference: no answer",
    ]
    verdicts = score(data, responses)
    assert [(line["id"], line["valid"], line["error_type"]) for line in verdicts] == [
        ("multi_turn_base_0", True, ""),
        ("multi_turn_base_1", True, ""),
        ("multi_turn_base_2", False, "multi_turn:instance_state_mismatch"),
        ("multi_turn_base_3", False, "multi_turn:force_terminated"),
        ("multi_turn_base_4", False, "multi_turn:inference_error"),
    ]
    assert (
        list(verdicts[2]) == ["id", "valid", "error_type", "error"] and "GorillaFileSystem.root" in verdicts[2]["error"]
    )
    assert "multi_turn_base: 40.00 % (2 of 5 right)" in capsys.readouterr().out


def test_tool_calls(data: Path) -> None:
    turns = [
        [[{"cd": '{"folder": "/"}'}], [{"cat": '{"file_name": "a.txt"}'}], "There."],
        ["Yes."],
        [[{"rm": '{"file_name": "a.txt"}'}]],
    ]
    (verdict,) = score(data, [turns], "--protocol", "fc-openai-tools")
    assert verdict["valid"]


def test_long_context_is_told_whose_it_was(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = [[turn] if turn else [] for turn in WANTED]
    (verdict,) = score(data, [right], "--json", name="multi_turn_long_context")
    assert verdict["valid"] and json.loads(capsys.readouterr().out)["long_context_text"] == "own"
    (data / "long_context.py").write_text("nothing = 5")
    answers = write(data / "answers.jsonl", [{"id": "multi_turn_long_context_0", "response": right}])
    command = ["--category", "multi_turn_long_context", "--responses", str(answers), "--out", str(data / "w.jsonl")]
    assert main(["bfcl", "score", *command, "--data", str(data)]) == 3
    assert "not the official file of constants" in capsys.readouterr().err and not (data / "w.jsonl").exists()
