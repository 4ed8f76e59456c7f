from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tunesmith.track.jsonl import Line, MetricsFile, keep_until, read_metrics


def _steps(path: Path) -> list[int]:
    return [line.step for line in read_metrics(path)]


def test_lines_are_strict_json_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path)
    file.write(1, {"train/loss": float("nan"), "a": float("inf"), "b": -float("inf"), "c": 1e-9})
    (text,) = path.read_text().splitlines()  # flushed before it is closed
    assert json.loads(text, parse_constant=pytest.fail)["train/loss"] == "NaN"
    (line,) = read_metrics(path)
    assert math.isnan(line.metrics["train/loss"])
    assert (line.metrics["a"], line.metrics["b"], line.metrics["c"]) == (math.inf, -math.inf, 1e-9)
    assert line.time_seconds > 1.7e9


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"step": 1}', '{"step": "x", "time": 1}', '{"step": 1, "time": 1, "a": []}']
)
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Line.from_json(text)


def test_later_lines_and_broken_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "time": 1.0, "train/loss": 2.0}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join([whole[0], "{cut", *whole[1:]]) + '\n{"step": 5, "ti')
    keep_until(path, 3)
    assert path.read_text() == "\n".join(whole[:3]) + "\n"
    keep_until(path, None)
    assert path.read_text() == ""


def test_a_last_line_without_its_newline_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 1.0, "a": 1.0}\n{"step": 2, "time": 1.0, "a": 1.2}')
    keep_until(path, 2)
    assert _steps(path) == [1]


def test_nothing_is_rewritten_when_nothing_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 1.0, "a": 1.0}\n')
    inode = path.stat().st_ino
    keep_until(path, 1)
    assert path.stat().st_ino == inode
    keep_until(tmp_path / "missing.jsonl", 1)
    assert not (tmp_path / "missing.jsonl").exists()


def test_a_number_is_written_once_per_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    first.write(9, {"a": 1.0})
    first.write(10, {"a": 1.0})
    first.write(10, {"b": 2.0})
    first.close()
    second = MetricsFile(path)  # restarted at step 10
    assert second.write(10, {"a": 5.0}) is None
    line = second.write(10, {"b": 5.0, "c": 3.0})
    assert line is not None and line.metrics == {"c": 3.0}
    assert second.write(11, {"a": 4.0}) is not None
    with pytest.raises(AssertionError, match="step 10"):
        second.write(10, {"d": 1.0})
