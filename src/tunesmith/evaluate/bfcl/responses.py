"""Score answers that exist already: a file of `{"id", "response"}` lines to a file of verdicts, one line each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, UsageError, nearest
from tunesmith.evaluate import all_cores
from tunesmith.evaluate.bfcl import format_sensitivity
from tunesmith.evaluate.bfcl.categories import Category
from tunesmith.evaluate.bfcl.dataset import Dataset, Entry, load
from tunesmith.evaluate.bfcl.decoding import Protocol
from tunesmith.evaluate.bfcl.scoring import judge
from tunesmith.evaluate.bfcl.verdicts import Verdict
from tunesmith.store import files

Judged = Callable[[str, Entry, Any], Verdict]  # of an answer's id, its item and the response

_MOST_PROBLEMS_TOLD = 10


@dataclass(frozen=True)
class Scored:
    """The outcome of scoring one file.

    Attributes:
        error_types: how often each kind of mistake occurs, the commonest first.
        num_missing: items of the category for which there was no answer; they are not in `total_count`.
    """

    category: str
    protocol: Protocol
    data_version: str
    correct_count: int
    total_count: int
    num_missing: int
    error_types: dict[str, int]
    extra: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return self.correct_count / self.total_count

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under the official score file's names, with what they were obtained under."""
        return {
            "category": self.category,
            "protocol": self.protocol,
            "data_version": self.data_version,
            "accuracy": self.accuracy,
            "correct_count": self.correct_count,
            "total_count": self.total_count,
            "num_missing": self.num_missing,
            "error_types": self.error_types,
            **self.extra,
        }


@dataclass(frozen=True)
class Answers:
    """What a file of answers holds, ready to be judged.

    Attributes:
        items: id, item and response of each answer, in the file's order.
        judged: the verdict on one of them.
        num_items: of the category.
        extra: what the category's numbers are labelled with.
    """

    category: Category
    protocol: Protocol
    data_version: str
    items: list[tuple[str, Entry, Any]]
    judged: Judged
    num_items: int
    extra: dict[str, Any]


def score(category: Category, directory: Path, responses: Path, out: Path, protocol: Protocol = "prompt") -> Scored:
    """Write the verdict on each answer of a file, in the file's order; nothing is written when the file is not usable.

    Args:
        category: of the answered items.
        directory: the data, see `dataset.load`.
        responses: JSON Lines of `id` and `response` (official result files call it `result`).
        out: replaced as a whole.
        protocol: how the answers were asked for.

    Raises:
        UsageError: the category is scored in another way, or not under this protocol.
        DataError: data or answers cannot be read; ids are unknown or repeated.
        EnvironmentProblem: Java or JavaScript, and tree-sitter is not installed.
    """
    (scored,) = score_all([answers_of(category, directory, responses, protocol)], [out])
    return scored


def score_all(answers: Sequence[Answers], out: Sequence[Path]) -> list[Scored]:
    """Write the verdicts on all answers of several files, on all cores when that is faster.

    Raises:
        EnvironmentProblem: Java or JavaScript, and tree-sitter is not installed; nothing is written.
    """
    items = [(each.judged, *item) for each in answers for item in each.items]
    told = iter(all_cores.results(_told, items))
    return [_written(each, list(islice(told, len(each.items))), path) for each, path in zip(answers, out, strict=True)]


def answers_of(category: Category, directory: Path, responses: Path, protocol: Protocol) -> Answers:
    """Read a file of answers, and the items that they are answers to.

    Raises:
        UsageError, DataError: as `score`.
    """
    if category.scorer == "format_sensitivity":
        if protocol != "prompt":
            raise UsageError("format sensitivity is about prompts", do="leave --protocol out")
        known: dict[str, Entry] = format_sensitivity.load_entries(directory)
        version = format_sensitivity.version(directory)
    elif category.scorer in ("calls", "irrelevance", "relevance", "multi_turn"):
        dataset = load(category, directory)
        known, version = entries_by_id(dataset), dataset.version
    else:
        do = "choose a single-turn or multi-turn category"
        raise UsageError(f"{category.name} is not scored from answers alone", do=do)
    judged, extra = _judge_of(category, directory, protocol)
    items = [(identifier, known[identifier], said) for identifier, said in read(responses, known)]
    return Answers(category, protocol, version, items, judged, len({id(entry) for entry in known.values()}), extra)


def _told(item: tuple[Judged, str, Entry, Any]) -> tuple[bool, str, bytes]:
    """Return whether an answer is right, its mistake, and the line that says both and more."""
    judged, identifier, entry, said = item
    valid, error_type, error = judged(identifier, entry, said)
    document = {"id": identifier, "valid": valid, "error_type": error_type, "error": error}
    return valid, error_type, json.dumps(document).encode("ascii") + b"\n"


def _written(answers: Answers, told: Sequence[tuple[bool, str, bytes]], out: Path) -> Scored:
    files.write_bytes(out, b"".join(line for _, _, line in told))
    mistakes = Counter(error_type for valid, error_type, _ in told if not valid)
    extra = answers.extra
    if answers.category.scorer == "format_sensitivity":
        extra = format_sensitivity.spread(
            {name: valid for (name, _, _), (valid, _, _) in zip(answers.items, told, strict=True)}
        )
    return Scored(
        answers.category.name,
        answers.protocol,
        answers.data_version,
        sum(valid for valid, _, _ in told),
        len(told),
        answers.num_items - len(told),
        dict(mistakes.most_common()),
        extra,
    )


def _judge_of(category: Category, directory: Path, protocol: Protocol) -> tuple[Judged, dict[str, Any]]:
    """Return what judges one answer, and what the category's numbers are labelled with."""
    if category.scorer == "format_sensitivity":
        return format_sensitivity.judge, {}
    if category.scorer == "multi_turn":
        # The simulated programs are a third of this module's imports, and a single-turn file is scored in less time.
        from tunesmith.evaluate.bfcl.multi_turn import scoring as multi_turn

        reading = multi_turn.reading_of(category, directory)
        return lambda _, entry, response: multi_turn.judge(entry, response, protocol, reading.text), dict(reading.facts)
    return lambda _, entry, response: judge(category, entry, response, protocol), {}


def entries_by_id(dataset: Dataset) -> dict[str, Entry]:
    """Return the items by every id they go by: answers of before a category was renamed are found, too."""
    found = {}
    category = dataset.category
    for entry in dataset.entries:
        for name in category.names:
            number = entry.id.removeprefix(next(n for n in category.names if entry.id.startswith(f"{n}_")))
            found[f"{name}{number}"] = entry
        found[entry.id] = entry
    return found


def read(path: Path, known: Mapping[str, Entry]) -> list[tuple[str, Any]]:
    """Return the answers of a file by id, in its order.

    Raises:
        DataError: the file is missing or empty, or lines of it cannot be used; the message names them.
    """
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), do="give a JSON Lines file of `id` and `response`")
    found: dict[str, tuple[int, Any]] = {}
    seen: dict[int, str] = {}  # by item: one item may go by two ids
    problems: list[str] = []
    for number, document in _documents(path, problems):
        problem = _problem(document, known)
        if not problem and (earlier := found.get(seen.get(id(known[document["id"]]), ""))):
            problem = f"{document['id']!r} is answered a second time, first in line {earlier[0]}"
        if problem:
            problems.append(f"line {number}: {problem}")
        else:
            seen[id(known[document["id"]])] = document["id"]
            found[document["id"]] = (number, document["response" if "response" in document else "result"])
    if problems:
        told = "\n  ".join(problems[:_MOST_PROBLEMS_TOLD])
        more = len(problems) - _MOST_PROBLEMS_TOLD
        what = f"{len(problems)} of its lines cannot be used\n  {told}" + (f"\n  and {more} more" if more > 0 else "")
        raise DataError(what, where=str(path), do="repair or remove these lines; nothing was written")
    if not found:
        raise DataError("the file holds no answer", where=str(path))
    return [(identifier, response) for identifier, (_, response) in found.items()]


def _documents(path: Path, problems: list[str]) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                problems.append(f"line {number}: no JSON: {error}"[:200])


def _problem(document: Any, known: Mapping[str, Entry]) -> str:
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        return 'not of the form {"id": …, "response": …}'
    if "response" not in document and "result" not in document:
        return f"{document['id']!r} has no `response`"
    if document["id"] not in known:
        guess = nearest(document["id"], list(known)) if len(document["id"]) < 200 else None
        return f"there is no item {document['id'][:200]!r}" + (f" (nearest: {guess!r})" if guess else "")
    return ""
