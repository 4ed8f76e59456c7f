"""What can be known to go wrong after training is told before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tunesmith.cli.app import main
from tunesmith.recipe.dump import dump_yaml

ROW = {"prompt": "a question", "completion": "an answer"}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ONLY_A_CALL = {
    "messages": [{"role": "user", "content": "call f"}, {"role": "assistant", "tool_calls": [CALL]}],
    "tools": [TOOL],
}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"evaluate": {"text": {"files": ["calls.jsonl"]}}}, "calls.jsonl:1: the row has no assistant answer in words"),
        ({"evaluate": {"function_calls": {"files": ["rows.jsonl"]}}}, "rows.jsonl"),
        ({"evaluate": {"bfcl": {"data": ".", "categories": ["simple_python"]}}}, "BFCL"),
        ({"bench": {"prompts": ["none.jsonl"]}}, "there is no file none.jsonl"),
        ({"bench": {"trace": "rows.jsonl", "concurrency": []}}, "rows.jsonl:1"),
    ],
)
def test_before_the_first_stage(
    section: dict[str, Any],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_model(Path("model"))
    Path("rows.jsonl").write_text(json.dumps(ROW) + "\n")
    Path("calls.jsonl").write_text(json.dumps(ONLY_A_CALL) + "\n")
    recipe: dict[str, Any] = {"name": "x", "model": "model", "data": {"train": "rows.jsonl"}, "train": {"max_steps": 1}}
    Path("recipe.yaml").write_text(dump_yaml(recipe | section))
    assert main(["run", "recipe.yaml"]) == 3
    assert told in capsys.readouterr().err
    for run in Path("outputs/runs").glob("*/run.json"):
        state = json.loads(run.read_text())
        assert (state["state"], state["stages"]) == ("failed", {})
