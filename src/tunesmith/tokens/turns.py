"""Where the assistant speaks in a rendered conversation.

A template with `{% generation %}` markers says so itself. Most templates have none; then a turn is found in one of two
ways:

1. By landmarks: the generation prompt (`<|im_start|>assistant\\n`) stands in the text once per assistant turn, and the
   next token that ends turns closes it. One rendering, for the common case.
2. By difference: render the conversation again with this turn replaced. Where both texts part and meet again, the
   turn's words begin and end, however the template rewrites other turns (Mistral moves the tools, Qwen 3 drops old
   thoughts). The beginning is then moved back to what the model saw when it began to speak: the rendering of the
   messages before, with a generation prompt.

A turn begins behind the generation prompt and ends with its end-of-turn token, without the line break that follows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tunesmith.errors import DataError
from tunesmith.tokens.jinja import Span, TemplateProblem, render_with_spans
from tunesmith.tokens.templates import ChatTemplate
from tunesmith.tokens.tokenizer import ChatTokenizer

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

# Tokens that end a turn although not every checkpoint of the family lists them as an end of sequence.
_KNOWN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "</s>", "<|end|>", "<|endoftext|>", "<|eot|>")

# Private-use characters: no template writes them, so a changed turn differs from the real one at its very first and
# very last character.
_FIRST, _LAST = "\ue000", "\ue001"
_OTHER_TEXT = f"{_FIRST}x{_LAST}"
_LONGEST_LITERAL = 200  # characters that a template may write between a header and the words of a turn


@dataclass(frozen=True)
class _Landmarks:
    header: str  # the generation prompt; empty where the template has none
    ends: tuple[str, ...]
    specials: tuple[str, ...]


def assistant_turns(
    tokenizer: ChatTokenizer, template: ChatTemplate, messages: Messages, tools: Tools
) -> tuple[str, list[list[Span]]]:
    """Return the rendered text and, for each assistant message in order, the characters that the model would write.

    Raises:
        TemplateProblem: the template refuses this conversation.
        DataError: the template has no markers, and its turns cannot be told apart.
    """
    text, marked = render_with_spans(template.text, template.special_tokens, messages, tools)
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if template.has_generation_markers:
        marked = [span for span in marked if span[0] < span[1]]
        return text, _by_marker(template, text, marked, messages, tools, indices)
    landmarks = landmarks_of(tokenizer, template)
    spans = spans_by_landmarks(landmarks, text, messages, tools, len(indices))
    if spans is None:
        spans = [span_by_difference(landmarks, template, text, messages, tools, i) for i in indices]
    return text, [[span] if span else [] for span in spans]


def landmarks_of(tokenizer: ChatTokenizer, template: ChatTemplate) -> _Landmarks:
    """Return what marks the turns of a template: its generation prompt and the tokens that end a turn."""
    specials = tuple(sorted(tokenizer.special_texts, key=len, reverse=True))
    own_ends = tuple(tokenizer.token_text(i) for i in tokenizer.eos_ids)
    tokens = tuple(sorted(template.special_tokens.items()))
    return _landmarks(template.text, tokens, own_ends, specials)


@lru_cache(maxsize=16)
def _landmarks(
    template_text: str,
    special_tokens: tuple[tuple[str, str], ...],
    own_ends: tuple[str, ...],
    specials: tuple[str, ...],
) -> _Landmarks:
    question: dict[str, Any] = {"role": "user", "content": "x"}
    answer: dict[str, Any] = {"role": "assistant", "content": _OTHER_TEXT}
    tokens = dict(special_tokens)
    header, closing = "", ""
    try:
        asked, _ = render_with_spans(template_text, tokens, [question], ())
        prompted, _ = render_with_spans(template_text, tokens, [question], (), add_generation_prompt=True)
        header = prompted[_border(prompted, _shared(asked, prompted), specials) :]
        answered, _ = render_with_spans(template_text, tokens, [question, answer], ())
        closing = answered.rpartition(_LAST)[2].lstrip()
    except TemplateProblem:
        pass  # a template that cannot show the shortest chat has no landmarks; its turns are found by difference
    closes = next((token for token in specials if closing.startswith(token)), None)
    ends = {*own_ends, *_KNOWN_ENDS} | ({closes} if closes else set())
    return _Landmarks(header, tuple(sorted(ends)), specials)


def _border(text: str, position: int, specials: tuple[str, ...]) -> int:
    """Move a position that lies inside a special token back to the token's first character."""
    begins = (position - back for token in specials for back in range(1, len(token)) if back <= position)
    return min(
        (b for b in begins if any(text.startswith(t, b) and b + len(t) > position for t in specials)), default=position
    )


def _by_marker(
    template: ChatTemplate, text: str, marked: list[Span], messages: Messages, tools: Tools, indices: list[int]
) -> list[list[Span]]:
    """Share marked spans among the assistant messages; a template may mark a turn in several pieces or not at all."""
    if len(marked) == len(indices):
        return [[span] for span in marked]
    turns: list[list[Span]] = [[] for _ in indices]
    begins = [_difference(template, text, messages, tools, i) for i in indices]
    for span in marked:
        owners = [n for n, begin in enumerate(begins) if begin is not None and begin[0] < span[1]]
        if owners:
            turns[owners[-1]].append(span)
    return turns


def spans_by_landmarks(
    landmarks: _Landmarks, text: str, messages: Messages, tools: Tools, num_turns: int
) -> list[Span | None] | None:
    """Return one span per assistant turn, or None when the landmarks do not settle it."""
    header, ends = landmarks.header, landmarks.ends
    if not header.strip() or text.count(header) != num_turns or mentions([messages, tools], (header.strip(), *ends)):
        return None
    closing = re.compile("|".join(re.escape(end) for end in ends))
    starts = [match.end() for match in re.finditer(re.escape(header), text)]
    spans: list[Span | None] = []
    for start, limit in zip(starts, [*starts[1:], len(text) + len(header)], strict=True):
        end = closing.search(text, start)
        if end is None or end.end() > limit - len(header):
            return None
        spans.append((start, end.end()))
    return spans


def mentions(value: Any, words: tuple[str, ...]) -> bool:
    """Return whether any text inside a JSON value contains one of the words."""
    if isinstance(value, str):
        return any(word in value for word in words)
    if isinstance(value, Mapping):
        return any(mentions(item, words) for item in value.values())
    return isinstance(value, list | tuple) and any(mentions(item, words) for item in value)


def span_by_difference(
    landmarks: _Landmarks, template: ChatTemplate, text: str, messages: Messages, tools: Tools, index: int
) -> Span | None:
    """Return the span of one assistant message, or None when the template does not show it.

    Raises:
        DataError: it cannot be told where the turn begins.
    """
    difference = _difference(template, text, messages, tools, index)
    if difference is None:
        return None
    first, last, plain = difference
    start = _begin(landmarks, template, text, messages[:index], tools, (first, plain))
    if start is None:
        do = "use a named template, or add {% generation %} markers around what the assistant says"
        what = (
            "this chat template has no {% generation %} markers, and it cannot be told where its assistant turns begin"
        )
        raise DataError(what, where="data.chat_template", do=do)
    return start, _finish(landmarks, text, last, plain)


def _difference(
    template: ChatTemplate, text: str, messages: Messages, tools: Tools, index: int
) -> tuple[int, int, bool] | None:
    """Return where a turn's words begin and end, and whether a plain text took their place (else: other calls).

    Raises:
        TemplateProblem: the template accepts no change of this turn.
    """
    problem: TemplateProblem | None = None
    for other in _replacements(messages[index]):
        changed = [*messages[:index], other, *messages[index + 1 :]]
        try:
            alternative, _ = render_with_spans(template.text, template.special_tokens, changed, tools)
        except TemplateProblem as error:
            problem = error
            continue
        if alternative == text:
            return None
        first = _shared(text, alternative)
        longest = min(len(text), len(alternative)) - first
        same = _shared(text[::-1][:longest], alternative[::-1][:longest])
        return first, len(text) - same, "tool_calls" not in other
    assert problem is not None
    raise problem


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    low, high = 0, size  # the first `low` characters agree, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _replacements(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    others: list[dict[str, Any]] = [{"role": "assistant", "content": _OTHER_TEXT}]
    if message.get("tool_calls"):
        # Some templates count turns without calls and insist on an order: keep the calls, change what they say.
        calls = [
            {**call, "function": {"name": _OTHER_TEXT, "arguments": {_FIRST: _LAST}}} for call in message["tool_calls"]
        ]
        others.append({**message, "tool_calls": calls})
    return others


def _begin(
    landmarks: _Landmarks,
    template: ChatTemplate,
    text: str,
    before: Messages,
    tools: Tools,
    difference: tuple[int, bool],
) -> int | None:
    first, plain = difference
    header = landmarks.header
    try:
        prompt, _ = render_with_spans(template.text, template.special_tokens, before, tools, add_generation_prompt=True)
    except TemplateProblem:
        prompt = ""
    if prompt and text.startswith(prompt) and len(prompt) <= first:
        literal = text[len(prompt) : first]
        if header or not plain or not literal.strip():
            return len(prompt)
        # The template has a header for assistants but no generation prompt: the words begin behind the header.
        return first
    tails = [header]
    last_special = max((prompt.rfind(special) for special in landmarks.specials), default=-1)
    if last_special >= 0:
        tails.insert(0, prompt[last_special:])
    for tail in filter(None, tails):
        position = text.rfind(tail, 0, first)
        if position >= 0 and first - position - len(tail) <= _LONGEST_LITERAL:
            return position + len(tail)
    if any(text[:first].endswith(header[:size]) for size in range(len(header), 0, -1)):
        return first  # the generation prompt goes on where a finished turn does not, as in `<|Assistant|><think>`
    return first if plain else None


def _finish(landmarks: _Landmarks, text: str, last: int, plain: bool) -> int:
    """Return the end of the turn's end token, or of its words where no such token follows."""
    found = [(text.find(end, last), len(end)) for end in landmarks.ends]
    position, length = min((pair for pair in found if pair[0] >= 0), default=(-1, 0))
    between = text[last:position] if position >= 0 else ""
    if position < 0 or (between.strip() if plain else len(between) > _LONGEST_LITERAL):
        return last
    return position + length
