"""Row formats: how to tell them apart, and how each becomes a conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, get_args

from tunesmith.errors import DataError
from tunesmith.recipe.schema import RowFormat
from tunesmith.rows.chatgpt_export import chatgpt_messages
from tunesmith.rows.conversation import Conversation, Message, Preference
from tunesmith.rows.messages import BadShape, read_messages, read_tools, require_answer

__all__ = ["BadShape", "detect", "format_of", "to_conversation"]

# Columns people have under other names, and the renaming that makes them readable.
_SUGGESTIONS = (
    (("question", "answer"), "{question: prompt, answer: completion}"),
    (("query", "response"), "{query: prompt, response: completion}"),
    (("prompt", "response"), "{response: completion}"),
    (("input", "output"), "{input: prompt, output: completion}"),
    (("instruction", "response"), "{response: output}"),
    (("conversation",), "{conversation: messages}"),
    (("dialog",), "{dialog: messages}"),
)


def detect(values: list[dict[str, Any]]) -> RowFormat:
    """Return the format of rows, by the keys they have.

    Args:
        values: the first rows; those of no known format are left to become bad rows, as long as others are known.

    Raises:
        DataError: none is of a known format, they are of several, or they carry a label that training would ignore.
    """
    found = Counter(name for value in values if (name := format_of(value)) is not None)
    if len(found) == 1:
        return next(iter(found))
    if found:
        names = ", ".join(f"{name} ({count} rows)" for name, count in found.most_common())
        do = "split the file, or set `format` and let the others be quarantined"
        raise DataError(f"rows of several formats are mixed: {names}", do=do)
    keys = sorted({key for value in values for key in value})
    shown = ", ".join(keys[:12]) or "none"
    if any(isinstance(value.get("label"), bool) for value in values):
        do = "keep the rows whose label is true, or set `format: messages` to train on all of them"
        raise DataError("the rows have a label (good or bad answers), which no objective here uses", do=do)
    raise DataError(f"the row format is not known; keys found: {shown}", do=_advice(set(keys)))


def format_of(value: dict[str, Any]) -> RowFormat | None:
    """Return the format that a row's keys speak for, or None."""
    keys = {key for key, item in value.items() if item is not None}
    if {"chosen", "rejected"} <= keys or {"chosen_messages", "rejected_messages"} <= keys:
        return "preference"
    if "mapping" in keys:
        return "chatgpt_export"
    if "messages" in keys:
        return None if isinstance(value.get("label"), bool) else "messages"
    if "conversations" in keys:
        return "sharegpt"
    if {"prompt", "completion"} <= keys:
        return "prompt_completion"
    return "instruction" if {"instruction", "output"} <= keys else None


def to_conversation(value: dict[str, Any], format: RowFormat) -> Conversation | Preference:
    """Return what a row says.

    Raises:
        BadShape: the row is not of this format, or what it says cannot be trained on.
    """
    return _READ[format](value)


def _advice(keys: set[str]) -> str:
    for columns, renaming in _SUGGESTIONS:
        if set(columns) <= keys:
            return f"set `columns: {renaming}`"
    return f"rename the columns with `columns`, or set `format` to one of {', '.join(get_args(RowFormat))}"


def _field(value: dict[str, Any], name: str) -> Any:
    if value.get(name) is None:
        filled = sorted(key for key, item in value.items() if item is not None)
        raise BadShape(f"the row has no {name!r}; what it has: {', '.join(filled) or 'nothing'}")
    return value[name]


def _text(value: dict[str, Any], name: str, *, required: bool = True) -> str:
    text = _field(value, name) if required else value.get(name) or ""
    if not isinstance(text, str):
        raise BadShape(f"{name!r} must be text")
    if required and not text.strip():
        raise BadShape(f"{name!r} is empty")
    return text


def _system(value: dict[str, Any]) -> list[Message]:
    text = _text(value, "system", required=False)
    return [{"role": "system", "content": text}] if text.strip() else []


def _with_system(value: dict[str, Any], messages: list[Message]) -> list[Message]:
    """Put the `system` column first, unless the messages bring their own."""
    return messages if messages and messages[0]["role"] == "system" else _system(value) + messages


def _conversation(value: dict[str, Any], messages: Sequence[Message]) -> Conversation:
    require_answer(messages)
    return Conversation(tuple(messages), read_tools(value.get("tools") or value.get("functions")))


def _messages(value: dict[str, Any]) -> Conversation:
    return _conversation(value, _with_system(value, read_messages(_field(value, "messages"))))


def _sharegpt(value: dict[str, Any]) -> Conversation:
    return _conversation(value, _with_system(value, read_messages(_field(value, "conversations"))))


def _prompt_completion(value: dict[str, Any]) -> Conversation:
    messages = _with_system(value, _prompt(value))
    return _conversation(value, [*messages, *_answer(value, "completion")])


def _instruction(value: dict[str, Any]) -> Conversation:
    output = {"role": "assistant", "content": _text(value, "output")}
    return _conversation(value, [*_asked(value), output])


def _asked(value: dict[str, Any]) -> list[Message]:
    """Return system, history and instruction of an instruction row."""
    question = _text(value, "instruction")
    extra = _text(value, "input", required=False)
    content = f"{question}\n{extra}" if extra.strip() else question
    return [*_system(value), *_history(value.get("history")), {"role": "user", "content": content}]


def _history(history: Any) -> list[Message]:
    messages: list[Message] = []
    for number, pair in enumerate(history or (), 1):
        if not (
            isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) and t.strip() for t in pair)
        ):
            raise BadShape(f"history {number} is not a pair of a question and an answer")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _prompt(value: dict[str, Any]) -> list[Message]:
    prompt = _field(value, "prompt")
    if isinstance(prompt, str):
        return [{"role": "user", "content": _text(value, "prompt")}]
    return read_messages(prompt)


def _answer(value: dict[str, Any], name: str) -> list[Message]:
    """Return an answer given as text, as one message or as several."""
    answer = _field(value, name)
    if isinstance(answer, str) and not answer.lstrip().startswith("[{"):
        return [{"role": "assistant", "content": _text(value, name)}]
    try:
        return read_messages([answer] if isinstance(answer, dict) else answer, begins_inside=True)
    except BadShape as error:
        if isinstance(answer, str):  # a text that only looks like a list of messages
            return [{"role": "assistant", "content": answer}]
        raise BadShape(f"{name}: {error}") from None


def _preference(value: dict[str, Any]) -> Preference:
    if "chosen_messages" in value:
        prompt = read_messages(_field(value, "prompt_messages"))
        chosen, rejected = _answer(value, "chosen_messages"), _answer(value, "rejected_messages")
    else:
        prompt = _preference_prompt(value)
        chosen, rejected = _answer(value, "chosen"), _answer(value, "rejected")
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        prompt, chosen, rejected = _split(prompt, chosen, rejected)
    prompt = _with_system(value, prompt)
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadShape("the prompt must end with a message that an assistant answers")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[0]["role"] != "assistant":
            raise BadShape(f"{name} does not begin with an assistant message")
    if chosen == rejected:
        raise BadShape("chosen and rejected are equal")
    return Preference(Conversation(tuple(prompt), read_tools(value.get("tools"))), tuple(chosen), tuple(rejected))


def _preference_prompt(value: dict[str, Any]) -> list[Message]:
    for name in ("conversations", "messages"):
        if value.get(name) is not None:
            return read_messages(value[name])
    if value.get("prompt") is not None:
        return _prompt(value)
    return _asked(value) if value.get("instruction") is not None else []


def _split(
    prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Take the shared beginning out of two whole conversations: it is the prompt."""
    size = 0
    while size < min(len(chosen), len(rejected)) and chosen[size] == rejected[size]:
        size += 1
    while size and (size == min(len(chosen), len(rejected)) or chosen[size - 1]["role"] == "assistant"):
        size -= 1
    shared = chosen[:size]
    asked = [message for message in prompt if message["role"] != "system"]
    if asked and asked != [message for message in shared if message["role"] != "system"][: len(asked)]:
        raise BadShape("chosen and rejected are whole conversations that do not begin with the prompt")
    own_system = [m for m in prompt if m["role"] == "system" and not any(s["role"] == "system" for s in shared)]
    return own_system + shared, chosen[size:], rejected[size:]


def _chatgpt_export(value: dict[str, Any]) -> Conversation:
    return _conversation(value, chatgpt_messages(_field(value, "mapping"), value.get("current_node")))


_READ: dict[RowFormat, Callable[[dict[str, Any]], Conversation | Preference]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "instruction": _instruction,
    "preference": _preference,
    "chatgpt_export": _chatgpt_export,
}
