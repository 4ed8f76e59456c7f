"""Answers worth looking at: what tuning fixed, what it broke, and what is wrong still."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.report.call_layout import lay_out
from tunesmith.report.differences import marked_lines, marked_words
from tunesmith.report.wording import printable

_MAX_CHARACTERS = 1200
_MAX_LINES = 40  # of calls
_NOTICEABLE = 0.1  # change of the mean score that counts as closer or further

KINDS = {
    "fixed": "Fixed by tuning",
    "broken": "Broken by tuning",
    "closer": "Closer to the reference",
    "further": "Further from the reference",
    "wrong": "Wrong in both",
    "right": "Right in both",
    "unanswered": "Not answered",
}
# Without the base model's answers there is only right and wrong.
_ALONE = {"wrong": "Wrong", "right": "Right", "unanswered": "Not answered"}
# Which kinds get the room, the most telling first.
_ORDER = ("broken", "fixed", "wrong", "further", "closer", "unanswered")


@dataclass(frozen=True)
class Text:
    """A text as shown, in pieces that are marked or not, and how much of it was left out."""

    pieces: tuple[tuple[str, bool], ...]
    is_code: bool = False
    num_hidden: int = 0


@dataclass(frozen=True)
class Given:
    """One model's answer."""

    model: str  # base | tuned
    text: Text
    is_correct: bool | None
    note: str = ""


@dataclass(frozen=True)
class Example:
    id: str
    kind: str
    title: str
    prompt: Text
    reference: Text
    answers: tuple[Given, ...]


def choose(path: Path, num_examples: int) -> tuple[list[Example], dict[str, int]]:
    """Return the examples of a task, and how many items of each kind there are.

    Lines that cannot be read are passed over. The room is shared evenly among the kinds that occur; what one does not
    need goes to the others.
    """
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    counts = dict.fromkeys(KINDS, 0)
    for item in _items(path):
        kind = _kind(item)
        counts[kind] += 1
        if len(kinds[kind]) < num_examples:
            kinds[kind].append(item)
    taken = dict.fromkeys(KINDS, 0)
    order = [kind for kind in _ORDER if kinds[kind]] or [kind for kind in ("right",) if kinds[kind]]
    left = num_examples
    while left > 0 and any(taken[kind] < len(kinds[kind]) for kind in order):
        for kind in order:
            if left > 0 and taken[kind] < len(kinds[kind]):
                taken[kind] += 1
                left -= 1
    shown = sorted(order, key=list(KINDS).index)
    chosen = [_example(item, kind) for kind in shown for item in kinds[kind][: taken[kind]]]
    return chosen, {kind: number for kind, number in counts.items() if number}


def kind_names(*, with_base: bool) -> dict[str, str]:
    return KINDS if with_base else _ALONE


def _items(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    item = json.loads(line)
                except ValueError:
                    continue
                if isinstance(item, dict):
                    yield item
    except OSError:
        return


def _kind(item: dict[str, Any]) -> str:
    base, tuned = _answer(item, "base"), _answer(item, "tuned")
    if not all(_is_answered(answer) for answer in (base, tuned) if answer):
        return "unanswered"  # a server that fails tells nothing about a model
    before, after = bool(base.get("correct")), bool(tuned.get("correct"))
    if not base:
        return "right" if after else "wrong"
    if before != after:
        return "fixed" if after else "broken"
    if after:
        return "right"
    change = _mean_score(tuned) - _mean_score(base)
    return "closer" if change >= _NOTICEABLE else "further" if change <= -_NOTICEABLE else "wrong"


def _answer(item: dict[str, Any], model: str) -> dict[str, Any]:
    value = item.get(model)
    return value if isinstance(value, dict) else {}


def _is_answered(answer: dict[str, Any]) -> bool:
    return answer.get("answered") is not False and not str(answer.get("error", "")).startswith("request_failed")


def _mean_score(answer: dict[str, Any]) -> float:
    scores = answer.get("scores")
    values = [float(v) for v in scores.values() if isinstance(v, int | float)] if isinstance(scores, dict) else []
    return sum(min(1.0, value) for value in values) / len(values) if values else 0.0


def _example(item: dict[str, Any], kind: str) -> Example:
    models = [model for model in ("base", "tuned") if _answer(item, model)]
    reference = _plain(item.get("reference", ""))
    tuned = _answer(item, "tuned")
    # What the tuned answer should have had and lacks is marked in the reference, as what it has too much is in itself.
    lacking = lay_out(_plain(tuned.get("answer", ""))) if tuned.get("correct") is False else None
    return Example(
        id=printable(str(item.get("id", ""))),
        kind=kind,
        title=kind_names(with_base="base" in models).get(kind, KINDS[kind]),
        prompt=_text(_plain(item.get("prompt_tail", ""))),
        reference=_text(reference, lines_of_other=lacking),
        answers=tuple(_given(_answer(item, model), model, reference) for model in models),
    )


def compared(before: dict[str, Any], after: dict[str, Any], *, kind: str, names: tuple[str, str]) -> Example:
    """Return one item as two runs' tuned models answered it, each answer under its run's name."""
    whole = _example(after, kind)
    answers = [
        _given(_answer(item, "tuned"), name, _plain(item.get("reference", "")))
        for item, name in zip((before, after), names, strict=True)
    ]
    return replace(whole, title=kind.capitalize(), answers=tuple(answers))


def _given(answer: dict[str, Any], model: str, reference: str) -> Given:
    correct = answer.get("correct")
    notes = [str(answer[key]).replace("_", " ") for key in ("error", "detail") if answer.get(key)]
    if answer.get("finish_reason") == "length":
        notes.append("cut at max_tokens")
    is_correct = correct if isinstance(correct, bool) and _is_answered(answer) else None
    text = _text(_plain(answer.get("answer", "")), lines_of_other=lay_out(reference), other=reference)
    return Given(model, text, is_correct, printable(" · ".join(notes))[:200])


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text.strip())


def _text(text: str, *, lines_of_other: list[str] | None = None, other: str = "") -> Text:
    """Return what is shown of a text: calls laid out, and what differs from the other text marked."""
    lines = lay_out(text)
    if lines is None:
        shown = text[:_MAX_CHARACTERS]
        return Text(marked_words(shown, other), num_hidden=len(text) - len(shown))
    marks = marked_lines(lines, lines_of_other) if lines_of_other else [False] * len(lines)
    kept = [line[:_MAX_CHARACTERS] for line in lines[:_MAX_LINES]]
    ended = [f"{line}\n" for line in kept[:-1]] + kept[-1:]
    hidden = sum(map(len, lines)) - sum(map(len, kept))
    return Text(tuple(zip(ended, marks, strict=False)), is_code=True, num_hidden=hidden)
