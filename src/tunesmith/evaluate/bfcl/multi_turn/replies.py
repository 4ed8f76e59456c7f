"""From one reply of a model to call strings that the simulated programs can carry out.

Source: `default_decode_execute_prompting`, `decoded_output_to_execution_list` and `convert_to_function_call` in
`bfcl_eval/model_handler/utils.py`, gorilla at 6ea5797.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.bfcl.decoding import Protocol, decode_native, decode_text
from tunesmith.evaluate.bfcl.multi_turn.checking import is_empty
from tunesmith.evaluate.bfcl.python_calls import MOST_CHARACTERS, Undecodable


def turns_of(response: Any, protocol: Protocol) -> Any:
    """Return the call strings of each step of each turn; replies that are no calls are left out.

    Args:
        response: a list of turns, a turn being a list of replies; anything else is returned as it is.
        protocol: what a reply looks like. A list of call strings is accepted under every protocol.
    """
    if not isinstance(response, list):
        return response
    return [_steps_of(turn, protocol) for turn in response]


def _steps_of(turn: Any, protocol: Protocol) -> list[list[str]]:
    steps = []
    for reply in turn if isinstance(turn, list) else []:
        try:
            calls = calls_of(reply, protocol)
        except Undecodable:
            continue
        if not is_empty(calls):
            steps.append(calls)
    return steps


def calls_of(reply: Any, protocol: Protocol) -> list[str]:
    """Return the call strings of a reply.

    Args:
        reply: text, tool calls as `[{name: arguments}]`, or call strings already.
        protocol: decides how text is read; in `fc-openai-tools` text holds no calls.

    Raises:
        Undecodable: there are no calls in it.
    """
    if isinstance(reply, list) and all(isinstance(call, str) for call in reply):
        return list(reply)
    try:
        if protocol == "fc-openai-tools":
            return [_keyword_call(name, arguments) for name, arguments in _tool_calls(reply)]
        if protocol == "fc-native-template":
            return [_keyword_call(name, given) for call in decode_native(reply) for name, given in call.items()]
        return [_call(name, given) for call in decode_text(reply) for name, given in call.items()]
    except (RecursionError, ValueError, IndexError, AttributeError) as error:
        raise Undecodable(str(error)[:300]) from None


def _tool_calls(reply: Any) -> list[tuple[str, Mapping[str, Any]]]:
    entries = [reply] if isinstance(reply, dict) else reply
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Undecodable("the reply holds text instead of tool calls")
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, arguments in (pair for entry in entries for pair in entry.items()):
        if isinstance(arguments, str):
            if len(arguments) > MOST_CHARACTERS:
                raise Undecodable(f"{len(arguments):,} characters are more than any call has")
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise Undecodable(f"the arguments of {name!r} are no object")
        found.append((name, arguments))
    return found


def _keyword_call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({','.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_argument(value)}' for key, value in arguments.items())})"


def _argument(value: Any) -> str:
    """Return a decoded argument as source text.

    A nested call is decoded to `{name: {argument: value}}`, which a dictionary of dictionaries cannot be told from: it
    is taken for a call of its first key, too. An empty one has none, which makes the whole reply undecodable.
    """
    if not isinstance(value, dict):
        return repr(value)
    if not all(isinstance(item, dict) for item in value.values()):
        return "{" + ", ".join(f"'{key}': {_argument(item)}" for key, item in value.items()) + "}"
    if not value:
        raise Undecodable("an empty dictionary as an argument")
    name, arguments = next(iter(value.items()))
    return _call(str(name), arguments)
