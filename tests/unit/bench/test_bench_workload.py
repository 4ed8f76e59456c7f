"""Prompts that are made up, lengths, and recorded arrivals."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_stream_server import ScriptedStreamServer, Stream
from tunesmith.bench.client import Target
from tunesmith.bench.levels import levels_of, num_prompts, trace_level
from tunesmith.bench.made_up import Measure, measure_words, prompts
from tunesmith.bench.trace import prompt_from, read_trace
from tunesmith.bench.traffic import Asking
from tunesmith.errors import BenchError, DataError
from tunesmith.recipe.lengths import parse_lengths
from tunesmith.recipe.schema import Bench


def text_of(prompt: Any) -> str:
    return str(prompt.messages[0]["content"])


def num_words(prompt: Any) -> int:
    return len(text_of(prompt).split())


def test_lengths_are_drawn_as_they_are_written() -> None:
    generator = random.Random(0)
    assert {parse_lengths(512).draw(generator) for _ in range(9)} == {512} == {parse_lengths("512").draw(generator)}
    uniform = [parse_lengths(" 10 - 19 ").draw(generator) for _ in range(4000)]
    assert set(uniform) == set(range(10, 20)) and sum(uniform) / 4000 == pytest.approx(14.5, abs=0.2)
    normal = [parse_lengths("100~20").draw(generator) for _ in range(4000)]
    mean = sum(normal) / 4000
    assert mean == pytest.approx(100, abs=1.5)
    assert (sum((n - mean) ** 2 for n in normal) / 4000) ** 0.5 == pytest.approx(20, rel=0.06)
    assert min(parse_lengths("2~50").draw(generator) for _ in range(500)) == 1, "never below one"


def test_the_longest_length_bounds_the_servers_room() -> None:
    assert [parse_lengths(w).longest for w in ("7", "5-90", "100~10")] == [7, 90, 140]


@pytest.mark.parametrize("written", ["", "many", "5-", "9-3", "0", "0-4", "-5", "5~", "1.5", "5~2~1"])
def test_what_is_no_length_is_said_so(written: str) -> None:
    with pytest.raises(ValueError, match="length"):
        parse_lengths(written)


class Counting(ScriptedStreamServer):
    """Counts a prompt as 2.5 tokens a word and 11 of a template."""

    def _end(self, stream: Stream, writer: Any) -> None:
        words = len(self.requests[-1]["messages"][-1]["content"].split())
        usage = {"prompt_tokens": 11 + words * 5 // 2, "completion_tokens": 1}
        self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        self._event(writer, {"choices": [], "usage": usage})
        writer.write(b"0\r\n\r\n")


def test_made_up_prompts_have_the_length_that_the_server_counts() -> None:
    asking = Asking("m", 8)
    with Counting(lambda request, number: Stream()) as server:
        measure = measure_words(Target(server.url, "m"), asking)
        assert len(server.requests) == 2 and server.requests[0]["max_tokens"] == 1
    assert measure.per_word == pytest.approx(2.5, rel=0.01) and measure.fixed == pytest.approx(11, abs=0.5)
    made = prompts("200-300", 50, measure, seed=1)
    counted = [11 + num_words(prompt) * 2.5 for prompt in made]
    assert all(198 <= count <= 302 for count in counted) and max(counted) - min(counted) > 50
    assert len({text_of(prompt)[:60] for prompt in made}) == 50, "no two begin alike"
    assert made == prompts("200-300", 50, measure, seed=1) != prompts("200-300", 50, measure, seed=2)


def test_without_counts_a_word_is_taken_for_a_token_and_silence_is_an_error() -> None:
    with ScriptedStreamServer(lambda request, number: Stream(usage=False)) as server:
        assert measure_words(Target(server.url, "m"), Asking("m", 8)) == Measure()
    with (
        ScriptedStreamServer(lambda request, number: Stream(status=401)) as server,
        pytest.raises(BenchError, match="401"),
    ):
        measure_words(Target(server.url, "m"), Asking("m", 8))
    with ScriptedStreamServer(lambda request, number: Stream(silent=True)) as server:
        target = Target(server.url, "m", timeout_seconds=0.3)
        with pytest.raises(BenchError, match="timeout"):
            measure_words(target, Asking("m", 8))


def test_wanted_answer_lengths_are_asked_for() -> None:
    bench = Bench(concurrency=(1,), num_requests=30, num_warmup_requests=0, output_tokens="5-9", max_tokens=200)
    (level,) = levels_of(bench, prompts(8, num_prompts(bench), Measure(), seed=0), Asking("m", 200), seed=0)
    bodies = [json.loads(request.body) for request in level.requests]
    assert {body["max_tokens"] for body in bodies} == {5, 6, 7, 8, 9}
    assert all(body["min_tokens"] == body["max_tokens"] and body["ignore_eos"] is True for body in bodies)


MOONCAKE = [
    {"timestamp": 3000, "input_length": 1100, "output_length": 7, "hash_ids": [0, 1, 5]},
    {"timestamp": 1000, "input_length": 1030, "output_length": 3, "hash_ids": [0, 1, 9]},
]
OWN = [{"time": 7.5, "prompt": "hi", "output_tokens": 4}, {"time": 9, "messages": [{"role": "user", "content": "x"}]}]
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,x\n45,GPT-4,80,9,89,x\n"
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.1805900,396,109\n"
)


def written(tmp_path: Path, rows: list[dict[str, Any]] | str) -> Path:
    path = tmp_path / ("trace.csv" if isinstance(rows, str) else "trace.jsonl")
    path.write_text(rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "seconds", "prompt_tokens", "output_tokens"),
    [
        (MOONCAKE, [0.0, 2.0], [1030, 1100], [3, 7]),
        (OWN, [0.0, 1.5], [None, None], [4, None]),
        (BURST, [0.0, 40.0], [472, 80], [18, 9]),
        (AZURE, [0.0, 0.5], [374, 396], [44, 109]),
    ],
)
def test_traces_are_read(tmp_path: Path, rows: Any, seconds: Any, prompt_tokens: Any, output_tokens: Any) -> None:
    found = read_trace(written(tmp_path, rows), limit=10)
    assert [recorded.seconds for recorded in found] == pytest.approx(seconds)
    assert [recorded.prompt_tokens for recorded in found] == prompt_tokens
    assert [recorded.output_tokens for recorded in found] == output_tokens
    assert len(read_trace(written(tmp_path, rows), limit=1)) == 1


def test_blocks_that_requests_share_are_text_that_they_share(tmp_path: Path) -> None:
    first, second = read_trace(written(tmp_path, MOONCAKE), limit=10)
    generator, measure = random.Random(0), Measure(fixed=6, per_word=1.0)
    one, two = (prompt_from(recorded, measure, generator) for recorded in (first, second))
    assert (num_words(one), num_words(two)) == (1024, 1094)
    same = [a == b for a, b in zip(text_of(one).split(), text_of(two).split(), strict=False)]
    assert all(same[:1024]) or same.index(False) >= 1024 - 6
    other = prompt_from(first, Measure(fixed=6, per_word=2.0), generator)
    assert num_words(other) == 512


def test_a_trace_is_replayed_at_its_moments_and_at_a_speed(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, MOONCAKE), limit=10)
    level = trace_level(Bench(trace_speed=4.0), trace, Asking("m", 100), Measure(), seed=0)
    assert (level.name, level.concurrency, level.rate) == ("trace", None, None)
    assert [request.due_seconds for request in level.requests] == [0.0, 0.5]
    assert [json.loads(request.body)["min_tokens"] for request in level.requests] == [3, 7]
    assert level.requests[0].name.endswith(":3"), "the line it stands in"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"prompt": "x"}', "no moment"),
        ('{"timestamp": "soon", "prompt": "x"}', "neither a number nor a date"),
        ('{"timestamp": 1}', "neither a prompt nor the length"),
        ('{"timestamp": 1, "input_length": "long"}', "`input_length` is not a number"),
        ('{"timestamp": 1, "messages": "x"}', "a list of objects"),
        ("", "holds no requests"),
    ],
)
def test_a_broken_trace_is_told_at_its_line(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=what) as problem:
        read_trace(path, limit=5)
    assert problem.value.where == (f"{path}:2" if line else str(path))
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl", limit=5)
