"""One item, asked: messages to the model, its calls carried out, results back, turn after turn.

A turn lasts until a reply holds no call. With the 21st reply that holds one the whole dialogue ends, and what was said
until then is the answer; unless it was the last turn, turns are missing then.

Source: `inference_multi_turn_FC` and `inference_multi_turn_prompting` in `bfcl_eval/model_handler/base_handler.py`, and
`openai_completion.py` beside it, gorilla at 6ea5797.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.decoding import Protocol
from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import LongContext
from tunesmith.evaluate.bfcl.multi_turn.checking import is_empty, scene_of
from tunesmith.evaluate.bfcl.multi_turn.functions import Function
from tunesmith.evaluate.bfcl.multi_turn.replies import calls_of
from tunesmith.evaluate.bfcl.multi_turn.world import World
from tunesmith.evaluate.bfcl.python_calls import Undecodable
from tunesmith.evaluate.client import Answer, Request
from tunesmith.evaluate.task import Dialogue
from tunesmith.rows.conversation import Message, Tool

MOST_STEPS = 20
_HINT = " Note that the provided function is in Python 3 syntax."
_MORE_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"


@dataclass(frozen=True)
class Manner:
    """How items are asked.

    Args:
        protocol: decides where functions are described, and what a reply is.
        functions: of every program by name.
        system_prompt: makes the text that comes before everything in `prompt`.
        tools: makes what the API is told in the other protocols.
        reply: returns what result files hold of an answer.
        max_tokens: of one reply.
        long_context: the official text where it is at hand.
    """

    protocol: Protocol
    functions: Mapping[str, Sequence[Function]]
    system_prompt: Callable[[Sequence[Function]], str]
    tools: Callable[[Sequence[Function]], tuple[Tool, ...]]
    reply: Callable[[Answer], Any]
    max_tokens: int
    long_context: LongContext | None = None

    @property
    def has_tools(self) -> bool:
        return self.protocol != "prompt"


def converse(item: Mapping[str, Any], manner: Manner) -> Dialogue:
    """Hold the dialogue of one item; what it returns are the replies of each turn, as official result files have them.

    Args:
        item: a line of the data.
        manner: how it is asked.
    """
    functions, held_out = _split(item, manner.functions)
    world = scene_of(item, manner.long_context).world("model")
    messages: list[Message] = []
    turns: list[list[Any]] = []
    for number, asked in enumerate(item["question"]):
        if number in held_out:
            functions = [*functions, *held_out[number]]
            asked = [{"role": "user", "content": _announcement(held_out[number], manner)}]
        if number == 0 and not manner.has_tools:
            asked = _with_system_prompt(asked, manner.system_prompt(functions))
        messages += asked
        tools = manner.tools(functions) if manner.has_tools else ()
        replies, is_over = yield from _turn(world, messages, tools, manner)
        turns.append(replies)
        if not is_over:
            break
    return turns


def _turn(
    world: World, messages: list[Message], tools: tuple[Tool, ...], manner: Manner
) -> Generator[Request, Answer, tuple[list[Any], bool]]:
    """Ask until a reply holds no call; return the replies, and whether that was so within the limit of steps."""
    replies: list[Any] = []
    for _ in range(MOST_STEPS + 1):
        answer = yield Request(tuple(messages), tools, manner.max_tokens)
        replies.append(manner.reply(answer))
        messages.append(_as_message(answer, manner))
        try:
            calls = calls_of(replies[-1], manner.protocol)
        except Undecodable:
            return replies, True
        if is_empty(calls):
            return replies, True
        messages += _results(calls, world.run(calls), manner)
    return replies, False


def _split(
    item: Mapping[str, Any], functions: Mapping[str, Sequence[Function]]
) -> tuple[list[Function], dict[int, list[Function]]]:
    """Return the functions on offer from the start, and by turn those that the item holds back until then."""
    offered = [function for name in item["involved_classes"] for function in functions[name]]
    held_out: dict[int, list[Function]] = {}
    for turn, names in item.get("missed_function", {}).items():
        held_out[int(turn)] = []
        for name in names:
            found = next((number for number, function in enumerate(offered) if function["name"] == name), None)
            if found is None:
                raise DataError(f"`missed_function` names {name!r}, which no program of the item has", where=item["id"])
            held_out[int(turn)].append(offered.pop(found))
    # Only these are told to be Python: the official hint is added after the others are taken out.
    return [function | {"description": function["description"] + _HINT} for function in offered], held_out


def _announcement(functions: Sequence[Function], manner: Manner) -> str:
    return _MORE_FUNCTIONS if manner.has_tools else f"{functions}\n{_MORE_FUNCTIONS}"


def _with_system_prompt(messages: Sequence[Message], prompt: str) -> list[Message]:
    """Return messages that begin with a system prompt; one that is there already comes after it in the same message."""
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{prompt}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def _as_message(answer: Answer, manner: Manner) -> Message:
    message: Message = {"role": "assistant", "content": answer.text}
    if manner.has_tools and answer.tool_calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def _results(calls: Sequence[str], results: Sequence[str], manner: Manner) -> list[Message]:
    """Return what the model is told: a message a call, or, where there are no tools, all in one message of the user."""
    if manner.has_tools:
        return [{"role": "tool", "content": result} for result in results]
    told = [{"role": "tool", "name": call, "content": result} for call, result in zip(calls, results, strict=True)]
    return [{"role": "user", "content": repr(told)}]
