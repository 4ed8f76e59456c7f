"""Categories of the leaderboard as tasks of an evaluation: `bfcl.simple_python`, `bfcl.multiple`, …"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Which
from tunesmith.evaluate.bfcl import format_sensitivity
from tunesmith.evaluate.bfcl.categories import Accuracy, Category, aggregate, expand
from tunesmith.evaluate.bfcl.dataset import Entry, load
from tunesmith.evaluate.bfcl.location import locate
from tunesmith.evaluate.bfcl.multi_turn.asking import Asking
from tunesmith.evaluate.bfcl.prompts import request
from tunesmith.evaluate.bfcl.scoring import judge
from tunesmith.evaluate.bfcl.verdicts import Verdict
from tunesmith.evaluate.client import Answer
from tunesmith.evaluate.summary import Outcome
from tunesmith.evaluate.task import Item, Judgement, Metric, Transcript, mean_statistics
from tunesmith.recipe.environment import expand as expand_variables
from tunesmith.recipe.schema import BfclTask
from tunesmith.store import files

PREFIX = "bfcl."


def tasks(settings: BfclTask) -> list[Leaderboard]:
    """Return one task per category asked for; `recipe.check` has seen to it that they go with the protocol."""
    return [Leaderboard(settings, category) for category in expand(settings.categories)]


class Leaderboard:
    """One category: single-turn, multi-turn, or format sensitivity."""

    metrics: tuple[Metric, ...] = (Metric("accuracy", is_binary=True),)

    def __init__(self, settings: BfclTask, category: Category) -> None:
        self.category = category
        self.name = f"{PREFIX}{category.name}"
        self._settings = settings
        self._version = ""
        self._asking: Asking | None = None  # of multi-turn items

    def items(self) -> list[Item]:
        """Return the category's items, the first `limit` of them.

        Raises:
            DataError: the data is nowhere, or a file of it cannot be read.
        """
        directory = locate(expand_variables(self._settings.data) if self._settings.data else None)
        if self.category.scorer == "format_sensitivity":
            self._version = format_sensitivity.version(directory)
            entries = list(format_sensitivity.load_entries(directory).values())
            limit = self._settings.limit and self._settings.limit * len(format_sensitivity.FORMS)
        else:
            dataset = load(self.category, directory)
            self._version, entries, limit = dataset.version, list(dataset.entries), self._settings.limit
        if self.category.scorer == "multi_turn":
            protocol, max_tokens = self._settings.protocol, self._settings.max_tokens
            reply = functools.partial(response_of, protocol=protocol)
            self._asking = Asking(self.category, directory, protocol, reply, max_tokens)
            return [self._asking.item(entry) for entry in entries[:limit]]
        return [self._item(entry) for entry in entries[:limit]]

    def _item(self, entry: Entry) -> Item:
        settings, form = self._settings, format_sensitivity.DEFAULT_FORM
        if self.category.scorer == "format_sensitivity":
            form = format_sensitivity.form_of(entry.id.split(":")[1])
        asked = request(self.category, entry, settings.protocol, settings.max_tokens, form)
        expected = "\n".join(json.dumps(call, ensure_ascii=False) for call in entry.ground_truth)
        text = expected or ("(a call)" if self.category.scorer == "relevance" else "(no call)")
        return Item(entry.id, asked.messages, asked.tools, asked.max_tokens, entry, text, request=asked)

    def judge(self, item: Item, said: Transcript) -> Judgement:
        entry: Entry = item.reference
        response = response_of(said.answer, self._settings.protocol)
        text = _told(response)
        if said.error:
            return Judgement(False, mean_statistics({"accuracy": 0.0}), answer_text=text)
        if self._asking:
            return _judgement(self._asking.verdict(entry, said), _told(said.result))
        if self.category.scorer == "format_sensitivity":
            verdict = format_sensitivity.judge(entry.id, entry, response)
        else:
            verdict = judge(self.category, entry, response, self._settings.protocol)
        return _judgement(verdict, text)

    def method(self) -> dict[str, str]:
        """Return what every number of this task is labelled with."""
        told = {"benchmark": "BFCL", "protocol": self._settings.protocol, "data_version": self._version}
        if self._settings.limit:
            told["items"] = f"the first {self._settings.limit}"
        return told | (self._asking.facts if self._asking else {})

    def write_results(
        self, directory: Path, run_name: str, items: Sequence[Item], outcomes: Mapping[Which, Sequence[Outcome]]
    ) -> None:
        """Write one small file per model: counts, accuracy, and what they were obtained under."""
        for which, of_model in outcomes.items():
            document = self._result(items, of_model)
            name = f"bfcl_{run_name}-{which}_{self.category.name}_{len(of_model)}.json"
            files.write_json(directory / name, document)

    def _result(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        total = len(outcomes)
        errors = sum(bool(outcome.said.error) for outcome in outcomes)
        correct = sum(outcome.judgement.correct for outcome in outcomes)
        document: dict[str, Any] = {
            "dataset": f"{self._version}_{self.category.name}",
            "total": total,
            "correct": correct,
            "incorrect": total - correct - errors,
            "errors": errors,
            "accuracy": correct / total,
            "success_rate": (total - errors) / total,
            "protocol": self._settings.protocol,
        }
        if self.category.scorer == "format_sensitivity":
            verdicts = {item.id: o.judgement.correct for item, o in zip(items, outcomes, strict=True)}
            document |= format_sensitivity.spread(verdicts)
        return document


def _judgement(verdict: Verdict, text: str) -> Judgement:
    statistics = mean_statistics({"accuracy": float(verdict.valid)})
    return Judgement(verdict.valid, statistics, answer_text=text, error=verdict.error_type, note=verdict.error)


def _told(response: Any) -> str:
    """Return an answer for people: text as it is, calls and turns one a line."""
    if isinstance(response, list):
        return "\n".join(json.dumps(part, ensure_ascii=False) for part in response)
    return response or ""


def response_of(answer: Answer, protocol: str) -> Any:
    """Return an answer the way `scoring.judge` takes it under a protocol.

    A server may have parsed calls where their text is wanted: they are written back in the one notation that holds any
    name and any arguments.
    """
    if not answer.tool_calls:
        return answer.text
    if protocol == "fc-openai-tools":
        return [{call.name: call.arguments} for call in answer.tool_calls]
    return "\n".join(
        f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'
        for call in answer.tool_calls
    )


def leaderboard_numbers(
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, dict[str, float | int | str | None]]]:
    """Return the leaderboard's summary numbers, such as `bfcl.non_live`, from the records of tasks; {} without any.

    A number of which a category was not evaluated is left out: the leaderboard counts it as 0, which says nothing
    about a model.
    """
    of_tasks = {name.removeprefix(PREFIX): found for name, found in measured.items() if name.startswith(PREFIX)}
    records = {name: found["accuracy"] for name, found in of_tasks.items()}
    made: dict[str, dict[str, float | int | str | None]] = {}
    for which in ("base", "tuned"):
        of_model = {
            name: Accuracy(float(record[which]), int(record["num_items"]))
            for name, record in records.items()
            if record.get(which) is not None
        }
        for name, accuracy in aggregate(of_model).items():
            if accuracy.is_complete:
                record = made.setdefault(name, {"base": None, "num_items": accuracy.num_items, "better": "higher"})
                record |= {which: accuracy.value, "maximum": 1.0}
    return {PREFIX.rstrip("."): made} if made else {}
