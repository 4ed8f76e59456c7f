from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tunesmith.report import wording
from tunesmith.report.call_layout import lay_out
from tunesmith.report.curves import Series
from tunesmith.report.differences import marked_lines, marked_words
from tunesmith.report.examples import choose
from tunesmith.report.figures.bars import Bar, comparison, histogram, throughput
from tunesmith.report.figures.forest import NARROW, WIDE, Change, forest
from tunesmith.report.figures.funnel import funnel
from tunesmith.report.figures.latency import Level, latency_chart
from tunesmith.report.figures.lines import SMALL, Curve, line_chart, spans_decades
from tunesmith.report.figures.load import Line, over_load
from tunesmith.report.figures.scales import label, log_ticks, ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.11, 4.7), (-3, 8), (1e-6, 5e-4), (5, 5), (0, 0), (1, 1e9), (-7, -7), (0.1, 0.1000001)]
)
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 12
    assert marks[0] <= low + 1e-9 and marks[-1] >= high - 1e-9
    steps = {round((b - a) / (marks[1] - marks[0]), 4) for a, b in pairwise(marks)}
    assert steps == {1.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2e-4, "2e−4"),
        (0.05, "0.05"),
        (12_000, "12k"),
        (3e6, "3M"),
        (-1, "−1"),
        (1500, "1\u202f500"),
        (6e-3, "0.006"),
    ],
)
def test_tick_labels_are_short(value: float, text: str) -> None:
    assert label(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "–"), (0.1134, "0.1134"), (18922.1, "18\u202f922"), (7448, "7\u202f448"),
     (math.nan, "not finite"), (1.5e-7, "1.5e−7"), (-0.25, "−0.25"), (100.0, "100"), (0.00051234, "0.0005123")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert wording.number(value) == text


def test_differences_have_signs_and_zero_has_none() -> None:
    assert wording.difference(0.917, 1.0, is_share=True) == "+91.7"
    assert wording.difference(-0.0001, 1.0, is_share=True) == "0.0"
    assert wording.difference(-0.05, 1.0, is_share=False) == "−0.050"
    assert wording.difference(3.7, 100.0, is_share=False) == "+3.7"


def test_figures_are_well_formed_and_escape_names() -> None:
    hostile = '</svg><script>"&'
    drawn = [
        line_chart([Curve(hostile, [(1, 2.0), (2, None), (3, 1.0)], has_dots=True)], SMALL, title=hostile),
        comparison([Bar("base", 0.2, 0.1, 0.3), Bar("tuned", 0.9)], 1.0, told=hostile),
        throughput([(hostile, 92.0)], 100.0, told=hostile),
        latency_chart([Level(hostile, [1.0, 2.0], 1.0, 2.0, None)], 5.0, title=hostile),
        histogram([(32, 5), (64, 0)], limit=32),
    ]
    for figure in drawn:
        root = ElementTree.fromstring(str(figure))
        assert root.tag == "svg" and root.find("title") is not None
        assert not [child for child in root.iter() if child.tag == "script"]


def test_nothing_to_draw_is_none() -> None:
    assert line_chart([Curve("a", [(1, None)])], SMALL, title="a") is None
    assert latency_chart([], None, title="a") is None
    assert throughput([], None, told="a") is None
    assert histogram([(32, 0)], limit=None) is None


def test_one_point_is_a_dot() -> None:
    assert "<circle" in str(line_chart([Curve("a", [(7, 1.5)])], SMALL, title="a"))


def test_a_gap_interrupts_the_line() -> None:
    figure = str(line_chart([Curve("a", [(1, 1.0), (2, 2.0), (3, None), (4, 1.0), (5, 3.0)])], SMALL, title="a"))
    (data,) = [e.attrib["d"] for e in ElementTree.fromstring(figure).iter() if e.tag == "path"]
    assert data.count("M") == 2


def test_thinning_keeps_ends_extremes_and_gaps() -> None:
    values = [math.sin(step / 500) for step in range(100_000)]
    values[43_210], values[77_777] = 9.0, -9.0
    values[50_000:52_000] = [math.nan] * 2000
    points = Series(list(range(100_000)), values).points()
    assert len(points) < 500
    assert points[0] == (0, values[0]) and points[-1] == (99_999, values[-1])
    assert (43_210, 9.0) in points and (77_777, -9.0) in points
    assert any(value is None for _, value in points)
    assert [step for step, _ in points] == sorted(step for step, _ in points)


def test_smoothing_follows_without_lag() -> None:
    line = Series(list(range(1000)), [1000.0 - step for step in range(1000)])
    assert all(value == pytest.approx(1000 - step) for step, value in line.smoothed())
    assert Series([1, 2], [1.0, 2.0]).smoothed() == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('f({"b": 1, "a": "x"})', ["f(", '  a = "x"', "  b = 1", ")"]),
        ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"k": [1]}}]', ["f()", "g(", "  k = [1]", ")"]),
        ("f({})\ng({})", ["f()", "g()"]),
        ("just words", None),
        ('{"name": 3', None),
        ("[1, 2]", None),
        ("[" * 9999, None),
        ('f({"a": 1}) and more', None),
        ("", None),
    ],
)
def test_calls_are_laid_out_and_nothing_else_is(text: str, lines: list[str] | None) -> None:
    assert lay_out(text) == lines


def test_lines_that_differ_are_marked() -> None:
    reference, given = ["f(", "  a = 1", "  b = 2", ")"], ["f(", "  a = 1", "  b = 3", ")"]
    assert marked_lines(given, reference) == [False, False, True, False]
    assert marked_lines(["f(", ")", "f(", ")"], ["f(", ")"]) == [False, False, True, True]


def test_examples_share_the_room(tmp_path: Path) -> None:
    import json

    def item(index: int, base: bool, tuned: bool) -> str:
        return json.dumps({"id": str(index), "base": {"correct": base}, "tuned": {"correct": tuned}})

    path = tmp_path / "items.jsonl"
    rows = [(False, True)] * 20 + [(True, False)] * 1 + [(False, False)] * 20 + [(True, True)] * 5
    path.write_text("\n".join(item(index, *row) for index, row in enumerate(rows)))
    chosen, counts = choose(path, 8)
    kinds = [example.kind for example in chosen]
    assert (kinds.count("fixed"), kinds.count("broken"), kinds.count("wrong")) == (4, 1, 3)
    assert counts == {"fixed": 20, "broken": 1, "wrong": 20, "right": 5}
    assert choose(path, 0)[0] == []


def test_an_answer_that_never_came_is_neither_wrong_nor_broken(tmp_path: Path) -> None:
    import json

    right = {"correct": True, "answered": True, "answer": "a"}
    lost = {"correct": False, "answered": False, "answer": "", "error": "request_failed:timeout"}
    path = tmp_path / "items.jsonl"
    pairs = [(right, lost), (lost, right), (right, {"correct": False, "error": "request_failed:http_500"})]
    path.write_text("\n".join(json.dumps({"id": "i", "base": base, "tuned": tuned}) for base, tuned in pairs))
    chosen, counts = choose(path, 8)
    assert counts == {"unanswered": 3} and {example.title for example in chosen} == {"Not answered"}
    assert [answer.is_correct for answer in chosen[0].answers] == [True, None]


def test_words_that_differ_are_marked() -> None:
    reference = "Take shorter showers, fix leaks and collect rain water."
    pieces = marked_words("Take longer showers, fix leaks and collect rain water.", reference)
    assert [text for text, mark in pieces if mark] == ["longer "]
    assert "".join(text for text, _ in pieces) == "Take longer showers, fix leaks and collect rain water."
    assert marked_words("Nothing at all like it whatever", reference) == (("Nothing at all like it whatever", False),)
    assert marked_words(reference, reference) == ((reference, False),)
    assert marked_words("", reference) == ()
    long = "word " * 5000
    assert marked_words(long, reference) == ((long, False),)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[f(a=1, b='x')]", ["f(", "  a = 1", '  b = "x"', ")"]),
        ("math.area(2, unit=u)", ["math.area(", "  1 = 2", '  unit = "u"', ")"]),
        ('<tool_call>\n{"name": "f", "arguments": {"a": [1]}}\n</tool_call>', ["f(", "  a = [1]", ")"]),
        ("[f(), g()]", ["f()", "g()"]),
        ("I would call f(a=1)", None),
        ("f", None),
        ("[" * 10_000, None),
        ("f(" * 5_000, None),
        ("__import__('os').system('touch /tmp/owned')", ["__import__('os').system(", '  1 = "touch /tmp/owned"', ")"]),
    ],
)
def test_calls_in_other_notations_are_laid_out(text: str, lines: list[str] | None) -> None:
    assert lay_out(text) == lines


def test_forest_orders_changes_and_colours_them() -> None:
    changes = [
        Change("worse", -5.0, -9.0, -1.0, "regressed", "50 → 45"),
        Change("better", 20.0, 12.0, 28.0, "improved", "50 → 70"),
        Change("x" * 200, 1.0, None, None, "cannot tell", "50 → 51"),
    ]
    for size in (WIDE, NARROW):
        root = ElementTree.fromstring(str(forest(changes, size)))
        names = [e.text or "" for e in root.iter("text") if "name" in str(e.get("class"))]
        assert len(names) == 3
        dots = [str(e.get("class")) for e in root.iter("circle")]
        assert dots == ["dot good", "dot unsure", "dot bad"]
        places = [float(str(e.get("cx"))) for e in root.iter("circle")]
        assert places == sorted(places, reverse=True) and all(0 < place < size.width for place in places)
    assert forest([], WIDE) is None


def test_numbers_of_a_funnel_have_room() -> None:
    drawn = str(funnel(1_234_567, [], [("trained on", 1_234_567)]))
    ends = {words: float(x) for x, words in re.findall(r'<text x="([\d.]+)"[^>]*>([^<]+)<', drawn)}
    bar = max(float(x) + float(width) for x, width in re.findall(r'<rect x="([\d.]+)"[^>]*?width="([\d.]+)"', drawn))
    count, share = next(end for words, end in ends.items() if "567" in words), ends["100.0 %"]
    assert share - count >= 7 * 7.5 and count - bar >= 9 * 7.5, "a character of 12 pixels is at most 7.5 wide"


def test_funnel_accounts_for_every_row() -> None:
    root = ElementTree.fromstring(
        str(funnel(100, [("broken", 10), ("twice", 30)], [("held out", 6), ("trained on", 54)]))
    )
    bars = [(float(str(e.get("x"))), float(str(e.get("width")))) for e in root.iter("rect")]
    whole = bars[0][1]
    assert [round(100 * width / whole) for _, width in bars] == [100, 10, 30, 6, 54]
    ends = [round(100 * (x + width - bars[0][0]) / whole) for x, width in bars]
    assert ends == [100, 100, 90, 60, 54], "each bar begins where the one before it ends"
    assert funnel(0, [], []) is None


def drawn_over_load(levels: list[float], values: list[float | None]) -> tuple[list[float], list[str]]:
    """Return where the dots are, from left to right, and the loads that the axis names."""
    figure = over_load(levels, [Line("p95", values)], 500.0, title="t", axis="in flight", unit="ms")
    root = ElementTree.fromstring(str(figure))
    named = [e.text or "" for e in root.iter("text") if "middle" in str(e.get("class"))]
    return [float(str(e.get("cx"))) for e in root.iter("circle")], named


def test_levels_over_load() -> None:
    places, named = drawn_over_load([1, 8, 32], [100.0, None, 400.0])
    assert len(places) == 2 and named == ["32", "8", "1"]
    assert over_load([1], [Line("p95", [1.0])], None, title="t", axis="a", unit="ms") is None
    assert over_load([1, 2], [Line("p95", [None, None])], None, title="t", axis="a", unit="ms") is None


def test_loads_stand_where_their_size_puts_them() -> None:
    (a, b, c), _ = drawn_over_load([10, 12, 20], [1.0, 2.0, 3.0])
    assert (b - a) / (c - a) == pytest.approx(0.2, abs=0.01), "near each other: equal steps are equal differences"
    (a, b, c), _ = drawn_over_load([1, 4, 64], [1.0, 2.0, 3.0])
    assert (b - a) / (c - a) == pytest.approx(1 / 3, abs=0.01), "far apart: equal steps are equal factors"
    places, named = drawn_over_load([1.0, 1.01, 1.02, 40.0, 41.5, 640.0], [1.0] * 6)
    assert len(places) == 6 and named[0] == "640" and len(named) == 3, "texts that would touch are left out"


def test_loss_that_falls_by_decades_is_drawn_logarithmically() -> None:
    falling = [Curve("loss", [(step, 8.0 * math.exp(-step / 20)) for step in range(1, 200)])]
    assert spans_decades(falling)
    assert not spans_decades([Curve("loss", [(step, 2.0 + 1.0 / step) for step in range(1, 200)])])
    assert not spans_decades([Curve("margin", [(1, -1.0), (2, 5.0), (3, 0.0), (4, 9.0)])])
    root = ElementTree.fromstring(str(line_chart(falling, SMALL, title="loss", logarithmic=True)))
    path = next(e for e in root.iter("path") if "curve" in str(e.get("class")))
    heights = [float(pair.split()[1]) for pair in str(path.get("d"))[1:].split("L")]
    steps = [b - a for a, b in pairwise(heights)]
    assert max(steps) - min(steps) < 0.2, "exponential decay is a straight line"


@pytest.mark.parametrize(("low", "high"), [(0.003, 8.0), (1.0, 1.0), (0.5, 0.6), (1e-9, 1e9), (2.0, 20.0)])
def test_log_ticks_enclose(low: float, high: float) -> None:
    marks = log_ticks(low, high)
    assert len(marks) >= 2 and marks[0] <= low * 1.0001 and marks[-1] >= high * 0.9999
    assert marks == sorted(marks)
