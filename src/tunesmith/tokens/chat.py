"""Conversations to token ids and to the flags that say which of them have a loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tunesmith.tokens.jinja import Span, TemplateProblem, render_with_spans
from tunesmith.tokens.templates import ChatTemplate
from tunesmith.tokens.tokenizer import ChatTokenizer
from tunesmith.tokens.turns import assistant_turns

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = [
    "MarkedText",
    "Segment",
    "TemplateProblem",
    "encode_conversation",
    "encode_preference",
    "encode_prompt",
    "mark",
    "render",
]

TrainOn = Literal["assistant", "completion", "all"]
Segment = tuple[list[int], list[bool]]
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class _Conversation(Protocol):
    """Messages with tools: `rows.conversation.Conversation`, which this room does not import."""

    @property
    def messages(self) -> Messages: ...
    @property
    def tools(self) -> Tools: ...


@dataclass(frozen=True)
class MarkedText:
    """A rendered conversation and the characters that have a loss."""

    text: str
    spans: tuple[Span, ...]


def render(
    template: ChatTemplate, messages: Messages, tools: Tools = (), *, add_generation_prompt: bool = False
) -> str:
    """Return the text that `apply_chat_template(tokenize=False)` of transformers returns.

    Raises:
        TemplateProblem: the template refuses the conversation.
    """
    text, _ = render_with_spans(
        template.text, template.special_tokens, messages, tools, add_generation_prompt=add_generation_prompt
    )
    return text


def mark(
    tokenizer: ChatTokenizer,
    template: ChatTemplate,
    conversation: _Conversation,
    train_on: TrainOn,
    *,
    first_turn: int = 0,
) -> MarkedText:
    """Render a conversation and mark what has a loss.

    Args:
        train_on: `assistant` is every assistant turn with its end token, `completion` the last one, `all` everything.
        first_turn: assistant turns before this one are context, whatever `train_on` says.

    Raises:
        TemplateProblem: the template refuses the conversation, or leaves out its tools or calls.
        DataError: the template's assistant turns cannot be told apart.
    """
    has_calls = any(message.get("tool_calls") for message in conversation.messages)
    if train_on == "all" and not first_turn and not has_calls:
        text = render(template, conversation.messages, conversation.tools)
        _check_tools_are_shown(text, conversation.tools)
        return MarkedText(text, ((0, len(text)),))
    text, turns = assistant_turns(tokenizer, template, conversation.messages, conversation.tools)
    _check_tools_are_shown(text, conversation.tools)
    if has_calls:
        _check_calls_are_shown(text, turns, conversation.messages)
    if train_on == "all" and not first_turn:
        return MarkedText(text, ((0, len(text)),))
    chosen = turns[-1:] if train_on == "completion" else turns[first_turn:]
    return MarkedText(text, tuple(span for turn in chosen for span in turn))


def segment_of(encoding: Encoding, spans: Sequence[Span]) -> Segment:
    """Return ids and flags of an encoded text; a token counts when any of its characters lies in a span.

    A token across the boundary (`\\n` of a header merged with one that begins the answer) is thereby trained, as in
    transformers' `return_assistant_tokens_mask`.
    """
    ids = list(encoding.ids)
    trained = [False] * len(ids)
    for start, end in spans:
        first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
        last = next((t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None), None)
        if first is None or last is None:
            continue
        # A character of several tokens is found by its first: take the others along.
        while last + 1 < len(ids) and (characters := encoding.token_to_chars(last + 1)) and characters[0] < end:
            last += 1
        trained[first : last + 1] = [True] * (last + 1 - first)
    return ids, trained


def encode_conversation(
    tokenizer: ChatTokenizer, template: ChatTemplate, conversation: _Conversation, train_on: TrainOn
) -> Segment:
    """Return the ids of a conversation and, for each, whether it has a loss.

    Raises:
        TemplateProblem, DataError: as `mark`.
    """
    marked = mark(tokenizer, template, conversation, train_on)
    return segment_of(tokenizer.encoding(marked.text), marked.spans)


def mark_preference(
    tokenizer: ChatTokenizer, template: ChatTemplate, prompt: _Conversation, answers: Sequence[Messages]
) -> list[MarkedText]:
    """Render the prompt with each answer and mark the assistant turns of the answer.

    Raises:
        TemplateProblem, DataError: as `mark`.
    """
    first_turn = sum(message["role"] == "assistant" for message in prompt.messages)
    return [
        mark(tokenizer, template, _Chat((*prompt.messages, *answer), prompt.tools), "assistant", first_turn=first_turn)
        for answer in answers
    ]


def preference_segments(chosen: Segment, rejected: Segment) -> list[Segment]:
    """Split two encoded conversations with one beginning into prompt, chosen and rejected.

    The prompt ends before the first token that has a loss or differs: a token that spans the boundary belongs to the
    answers, so that joining a prompt and an answer gives exactly the tokens of the whole text.
    """
    (chosen_ids, chosen_trained), (rejected_ids, rejected_trained) = chosen, rejected
    limit = min(_first_trained(chosen_trained), _first_trained(rejected_trained))
    size = next((t for t in range(limit) if chosen_ids[t] != rejected_ids[t]), limit)
    return [
        (chosen_ids[:size], [False] * size),
        (chosen_ids[size:], chosen_trained[size:]),
        (rejected_ids[size:], rejected_trained[size:]),
    ]


def encode_preference(
    tokenizer: ChatTokenizer, template: ChatTemplate, prompt: _Conversation, chosen: Messages, rejected: Messages
) -> list[Segment]:
    """Return prompt, chosen and rejected as ids and flags; the flags of the prompt are all false.

    Raises:
        TemplateProblem, DataError: as `mark`.
    """
    marked = mark_preference(tokenizer, template, prompt, (chosen, rejected))
    first, second = (segment_of(tokenizer.encoding(m.text), m.spans) for m in marked)
    return preference_segments(first, second)


def encode_prompt(tokenizer: ChatTokenizer, template: ChatTemplate, messages: Messages, tools: Tools = ()) -> list[int]:
    """Return the ids that a model is given to continue: the messages and the generation prompt.

    Raises:
        TemplateProblem: the template refuses the conversation.
    """
    return tokenizer.encode(render(template, messages, tools, add_generation_prompt=True))


def _check_tools_are_shown(text: str, tools: Tools) -> None:
    """Refuse a template that knows no tools: the model would learn to call what it was never told about."""
    for tool in tools:
        name = tool.get("function", tool).get("name", "")
        if not _shows(text, name):
            raise TemplateProblem(f"the chat template does not show the tool {name!r}: use one that knows tools")


def _check_calls_are_shown(text: str, turns: Sequence[Sequence[Span]], messages: Messages) -> None:
    """Refuse a template that knows no calls: the model would learn to answer with nothing."""
    answers = [message for message in messages if message["role"] == "assistant"]
    for message, spans in zip(answers, turns, strict=True):
        said = "".join(text[start:end] for start, end in spans)
        for call in message.get("tool_calls") or ():
            name = call["function"]["name"]
            if not _shows(said, name):
                raise TemplateProblem(f"the chat template does not show the call of {name!r}: use one that knows tools")


def _shows(text: str, name: str) -> bool:
    return any(form in text for form in (name, json.dumps(name, ensure_ascii=False)[1:-1], json.dumps(name)[1:-1]))


@dataclass(frozen=True)
class _Chat:
    messages: Messages
    tools: Tools


def _first_trained(trained: list[bool]) -> int:
    return trained.index(True) if True in trained else len(trained)
