from __future__ import annotations

import pytest

from tunesmith.track import console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.2, "4.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress("train", 10, "steps", every_seconds=0.0) as progress:
        progress.start_at(4)
        progress.advance(note="loss 1.23")
    told = capsys.readouterr()
    assert told.out == "", "results only go to stdout"
    assert "train: 5/10 steps" in told.err and "left" in told.err and "loss 1.23" in told.err


def test_a_resumed_rate_counts_new_work_only() -> None:
    progress = console.Progress("train", 1000, "steps")
    progress._started -= 10.0
    progress.start_at(900)
    progress.advance(20)
    assert "2.0 steps/s" in progress.line() or "1.9 steps/s" in progress.line()


def test_slow_steps_are_told_by_their_duration() -> None:
    progress = console.Progress("train", 100, "steps")
    progress._started -= 40.0
    progress.advance(4)
    assert ", 10 s per step, " in progress.line()


def test_credentials_are_not_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    console.warn("the server said hf_abcdefghijkl")
    assert "hf_abcdefghijkl" not in capsys.readouterr().err
