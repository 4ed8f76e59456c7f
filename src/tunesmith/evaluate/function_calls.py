"""Function-call accuracy on held-out tool conversations: the right functions with exactly the right arguments.

Every assistant turn with calls is one item: the messages before it are asked with the row's tools, and the calls that
come back are compared with the turn's (`calls.py` says how). A row that offers tools and never calls one is an item,
too, for its last assistant turn: there it is right to call nothing.

* `accuracy`: share of all items that are right.
* `bfcl_accuracy`: the same by the rules of BFCL's checker (`calls_by_bfcl.py`), which is more lenient with strings and
  numbers. Rows that contradict their own declarations, so that the checker refuses the expected calls, are left out.
* `call_accuracy`: of the items with an expected call, those whose calls are exactly the expected ones. A model that
  never calls anything scores 0 here, while `accuracy` credits it with the items where no tool fits.
* `name_accuracy`: of the items with an expected call, those whose functions are the expected ones.
* `argument_accuracy`: of the items with an expected call, the mean share of expected arguments that are given
  with an equal value.
* `made_a_call`: of the items with an expected call, those answered by a call that can be read.
* `abstention_accuracy`: of the items where no tool fits, those answered without a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.calls import Call, Unparsable, compare, parse_arguments
from tunesmith.evaluate.calls_by_bfcl import Reference
from tunesmith.evaluate.client import Answer
from tunesmith.evaluate.task import Item, Judgement, Metric, Transcript, mean_statistics
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import FunctionCallTask
from tunesmith.rows.conversation import Conversation, Message
from tunesmith.rows.examples import conversations
from tunesmith.tokens.tool_calls import parse_tool_calls

# Text that begins a call in one of the notations models use; seen in what is left over, the call could not be read.
_CALL_MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>", "<function=")


class FunctionCalls:
    """The task `evaluate.function_calls`."""

    name = "function_calls"
    metrics: tuple[Metric, ...] = (
        Metric("accuracy", is_binary=True),
        Metric("bfcl_accuracy", is_binary=True),
        Metric("call_accuracy", is_binary=True),
        Metric("name_accuracy", is_binary=True),
        Metric("argument_accuracy"),
        Metric("made_a_call", is_binary=True),
        Metric("abstention_accuracy", is_binary=True),
    )

    def __init__(self, settings: FunctionCallTask) -> None:
        self._settings = settings

    def items(self) -> list[Item]:
        """Return the items of all rows with tools, the first `limit` of them."""
        files = tuple(expand(file) for file in self._settings.files)
        rows = conversations(files)
        items = [item for where, row in rows for item in self._items_of(where, row)][: self._settings.limit]
        if not items:
            what = f"none of the {len(rows)} rows offers tools and holds an assistant turn"
            raise DataError(what, where=", ".join(files), do="check `evaluate.function_calls.files`")
        return items

    def _items_of(self, where: str, row: Conversation) -> Iterator[Item]:
        turns = [index for index, message in enumerate(row.messages) if index and message["role"] == "assistant"]
        calling = [index for index in turns if row.messages[index].get("tool_calls")]
        if not row.tools:
            return
        for turn in calling or turns[-1:]:
            expected = _expected(row.messages[turn])
            text = "\n".join(map(str, expected)) or "(no call)"
            before = row.messages[:turn]
            yield Item(f"{where}#{turn + 1}", before, row.tools, self._settings.max_tokens, expected, text)

    def judge(self, item: Item, said: Transcript) -> Judgement:
        answer = said.answer
        text = _answer_text(answer)
        given, failure = [], f"request_failed:{answer.error}" if answer.error else ""
        if not failure:
            try:
                given = _given(answer)
            except Unparsable:
                failure = "unparsable"
        judged = _judge(item.reference, given, failure)
        values = dict(judged.scores)
        if not item.reference:
            values["bfcl_accuracy"] = values["accuracy"]
        elif (reference := Reference(item.reference, item.tools)).can_judge:
            values["bfcl_accuracy"] = float(not failure and reference.verdict(given).valid)
        return Judgement(judged.correct, mean_statistics(values), values, text, judged.error)


def _judge(expected: list[Call], given: list[Call], failure: str) -> Judgement:
    """Score one turn; a failure (no answer, a call that cannot be read) is wrong whatever was expected."""
    if not expected:
        error = failure or ("unexpected_call" if given else "")
        values = {"accuracy": float(not error), "abstention_accuracy": float(not error)}
        return Judgement(not error, mean_statistics(values), values, error=error)
    comparison = compare(expected, given)
    error = failure or comparison.error
    values = {
        "accuracy": float(not error),
        "call_accuracy": float(not error),
        "name_accuracy": float(comparison.names_equal),
        "argument_accuracy": comparison.equal_arguments_fraction,
        "made_a_call": float(bool(given)),
    }
    return Judgement(not error, mean_statistics(values), values, error=error)


def _expected(message: Message) -> list[Call]:
    return [Call(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]


def _given(answer: Answer) -> list[Call]:
    """Return the calls of an answer, also those a server left standing in the text.

    Raises:
        Unparsable: a call is there, and it cannot be read.
    """
    if answer.tool_calls:
        return [Call(call.name, parse_arguments(call.arguments)) for call in answer.tool_calls]
    rest, calls = parse_tool_calls(answer.text)
    if any(marker in rest for marker in _CALL_MARKERS):
        raise Unparsable("a call that cannot be read")
    return [_read_call(call) for call in calls]


def _read_call(call: dict[str, Any]) -> Call:
    return Call(str(call["name"]), dict(call["arguments"]))


def _answer_text(answer: Answer) -> str:
    calls = [f"{call.name}({call.arguments})" for call in answer.tool_calls]
    return "\n".join(([answer.text] if answer.text else []) + calls)
