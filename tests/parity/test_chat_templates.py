"""Rendered text, ids and trained tokens of seven families, against references computed in other ways.

Three references: text put together by hand; the flags of a plain walk over offsets; and, for templates with markers,
transformers' own `return_assistant_tokens_mask`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from tests.fixtures.families import FAMILIES, write_family
from tests.fixtures.named_references import NAMED
from tests.fixtures.wild_templates import WILD, Piece
from tunesmith.rows.conversation import Conversation
from tunesmith.tokens.chat import encode_conversation, encode_prompt, mark, render, segment_of
from tunesmith.tokens.jinja import render_with_spans
from tunesmith.tokens.templates import ChatTemplate, named_templates, template_for
from tunesmith.tokens.tokenizer import ChatTokenizer, load_tokenizer
from tunesmith.tokens.turns import landmarks_of, span_by_difference, spans_by_landmarks

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather, <b>bold</b> & 'quoted'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def call(name: str, arguments: dict[str, Any], call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "You are terse. Answer in 你好 or äöü."}
CHAT = [
    {"role": "user", "content": "Hello\nthere, what is the weather?"},
    {"role": "assistant", "content": "Where do you live? 🙂"},
    {"role": "user", "content": "In Berlin"},
    {"role": "assistant", "content": "  It is sunny:\n\n- 21 degrees\n"},
]
TOOL_CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I help you?"},
    {"role": "user", "content": "Weather in Berlin?"},
    {"role": "assistant", "content": "", "tool_calls": [call("get_weather", {"city": "Berlin"}, "abcdef123")]},
    {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "abcdef123"},
    {"role": "assistant", "content": "It is 21 degrees."},
    {"role": "user", "content": "And in Paris?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [call("get_weather", {"city": "Paris", "unit": "°C"}, "abcdef124")],
    },
    {"role": "tool", "content": '{"degrees": 25}', "tool_call_id": "abcdef124"},
    {"role": "assistant", "content": "25 degrees."},
]
PARALLEL = [
    {"role": "user", "content": "Weather in Berlin and Paris?"},
    {
        "role": "assistant",
        "content": "I will look.",
        "tool_calls": [
            call("get_weather", {"city": "Berlin"}, "aaaaaaaa1"),
            call("get_weather", {"city": "Paris"}, "aaaaaaaa2"),
        ],
    },
    {"role": "tool", "content": "21", "tool_call_id": "aaaaaaaa1"},
    {"role": "tool", "content": "25", "tool_call_id": "aaaaaaaa2"},
    {"role": "assistant", "content": "21 and 25 degrees."},
]
THINKING = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "<think>\nalso easy\n</think>\n\n6"},
]
WITH_TOOLS = {
    "tools": Conversation(tuple(TOOL_CHAT), (TOOL,)),
    "tools+system": Conversation((SYSTEM, *TOOL_CHAT), (TOOL, TOOL)),
}
PLAIN = {"chat": Conversation(tuple(CHAT)), "thinking": Conversation(tuple(THINKING))}
EVERY = {
    **PLAIN,
    **WITH_TOOLS,
    "chat+system": Conversation((SYSTEM, *CHAT)),
    "parallel": Conversation(tuple(PARALLEL), (TOOL,)),
    "ends with a question": Conversation((*CHAT, {"role": "user", "content": "Thanks?"})),
    "quotes the template": Conversation(
        (
            {"role": "user", "content": "What do <|im_end|>, <|eot_id|> and <|im_start|>assistant\n mean?"},
            {"role": "assistant", "content": "They end turns: <|im_end|> and </s>, <end_of_turn>, <|end|>."},
        )
    ),
}
STRIPPED = re.compile(r"[ \t]*\{%-?\s*(?:end)?generation\s*-?%\}\n")


@cache
def directory() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="tunesmith-families-"))


@cache
def tokenizer_of(family: str) -> ChatTokenizer:
    return load_tokenizer(write_family(directory() / family, family))


def reference(tokenizer: ChatTokenizer, pieces: list[Piece]) -> tuple[str, list[int], list[bool]]:
    """Return text, ids and flags: a token is trained when one of its characters is said by the model."""
    text = "".join(piece for piece, _ in pieces)
    said = [flag for piece, flag in pieces for _ in piece]
    encoding = tokenizer.encoding(text)
    flags = [any(said[start:end]) for start, end in encoding.offsets]
    return text, list(encoding.ids), flags


def shown(tokenizer: ChatTokenizer, ids: list[int], flags: list[bool]) -> list[tuple[str, bool]]:
    return [(tokenizer.token_text(i), flag) for i, flag in zip(ids, flags, strict=True)]


def named_cases() -> list[Any]:
    return [pytest.param(name, key, id=f"{name}-{key}") for name in NAMED for key in EVERY]


def test_every_named_template_has_a_reference() -> None:
    assert sorted(NAMED) == named_templates()


@pytest.mark.parametrize(("name", "key"), named_cases())
@pytest.mark.parametrize("markers", [True, False], ids=["markers", "stripped"])
def test_named_template_trains_what_the_reference_says(name: str, key: str, markers: bool) -> None:
    tokenizer, conversation = tokenizer_of(name), EVERY[key]
    template = template_for(tokenizer, name)
    assert template.has_generation_markers
    if not markers:
        template = ChatTemplate(STRIPPED.sub("", template.text), template.special_tokens)
        assert not template.has_generation_markers
    text, ids, flags = reference(tokenizer, NAMED[name](list(conversation.messages), list(conversation.tools)))
    assert render(template, conversation.messages, conversation.tools) == text
    ours = encode_conversation(tokenizer, template, conversation, "assistant")
    assert shown(tokenizer, *ours) == shown(tokenizer, ids, flags)


def wild_cases() -> list[Any]:
    cases = []
    for name, (_, _, _, takes_tools, takes_system) in WILD.items():
        for key, conversation in EVERY.items():
            has_system = conversation.messages[0]["role"] == "system"
            if (conversation.tools and not takes_tools) or (has_system and not takes_system) or key == "parallel":
                continue
            cases.append(pytest.param(name, key, id=f"{name}-{key}"))
    return cases


@pytest.mark.parametrize(("name", "key"), wild_cases())
def test_template_without_markers_trains_what_the_reference_says(name: str, key: str) -> None:
    family, template_text, by_hand, _, _ = WILD[name]
    tokenizer, conversation = tokenizer_of(family), EVERY[key]
    template = ChatTemplate(template_text, tokenizer.special_tokens)
    text, ids, flags = reference(tokenizer, by_hand(list(conversation.messages), list(conversation.tools)))
    assert render(template, conversation.messages, conversation.tools) == text
    ours = encode_conversation(tokenizer, template, conversation, "assistant")
    assert shown(tokenizer, *ours) == shown(tokenizer, ids, flags)


@pytest.mark.parametrize(("name", "key"), wild_cases())
def test_landmarks_and_difference_agree(name: str, key: str) -> None:
    family, template_text, _, _, _ = WILD[name]
    tokenizer, conversation = tokenizer_of(family), EVERY[key]
    template = ChatTemplate(template_text, tokenizer.special_tokens)
    messages, tools = conversation.messages, conversation.tools
    text, _ = render_with_spans(template.text, template.special_tokens, messages, tools)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    landmarks = landmarks_of(tokenizer, template)
    quick = spans_by_landmarks(landmarks, text, messages, tools, len(turns))
    if quick is None:
        pytest.skip("landmarks do not settle this one")
    assert quick == [span_by_difference(landmarks, template, text, messages, tools, i) for i in turns]


@pytest.mark.parametrize("name", ["qwen3", "llama31", "gemma", "phi3", "chatml"])
def test_landmarks_settle_the_common_case(name: str) -> None:
    family, template_text, _, _, _ = WILD[name]
    tokenizer = tokenizer_of(family)
    template = ChatTemplate(template_text, tokenizer.special_tokens)
    text = render(template, CHAT)
    assert spans_by_landmarks(landmarks_of(tokenizer, template), text, CHAT, (), 2) is not None


def transformers_tokenizer(family: str, chat_template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer_of(family)  # writes it
    facts = FAMILIES[family]
    tokens = {"eos_token": facts.eos} | ({"bos_token": facts.bos} if facts.bos else {})
    file = str(directory() / family / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=file, chat_template=chat_template, **tokens)
    # With offsets that lose their white space transformers leaves a turn's leading space out of its mask.
    theirs.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return theirs


@pytest.mark.parametrize(("name", "key"), named_cases())
def test_transformers_agrees_token_by_token(name: str, key: str) -> None:
    tokenizer, conversation = tokenizer_of(name), EVERY[key]
    template = template_for(tokenizer, name)
    theirs = transformers_tokenizer(name, template.text)
    messages, tools = list(conversation.messages), list(conversation.tools) or None
    assert theirs.apply_chat_template(messages, tools=tools, tokenize=False) == render(
        template, conversation.messages, conversation.tools
    )
    out = theirs.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = encode_conversation(tokenizer, template, conversation, "assistant")
    assert shown(tokenizer, *ours) == shown(tokenizer, out["input_ids"], [bool(m) for m in out["assistant_masks"]])


@pytest.mark.parametrize(("name", "key"), wild_cases())
def test_transformers_renders_and_prompts_alike(name: str, key: str) -> None:
    family, template_text, _, _, _ = WILD[name]
    tokenizer, conversation = tokenizer_of(family), EVERY[key]
    template = ChatTemplate(template_text, tokenizer.special_tokens)
    theirs = transformers_tokenizer(family, template_text)
    tools = list(conversation.tools) or None
    messages = list(conversation.messages)
    assert theirs.apply_chat_template(messages, tools=tools, tokenize=False) == render(template, messages, tools or ())
    messages = messages[: max(i for i, m in enumerate(messages) if m["role"] == "user") + 1]
    ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tokenizer, template, messages, tools or ()) == ids


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize("key", ["chat+system", "tools"])
def test_completion_trains_the_last_turn_and_all_trains_everything(name: str, key: str) -> None:
    tokenizer, conversation = tokenizer_of(name), EVERY[key]
    for text in (template_for(tokenizer, name).text, STRIPPED.sub("", template_for(tokenizer, name).text)):
        template = ChatTemplate(text, tokenizer.special_tokens)
        pieces = NAMED[name](list(conversation.messages), list(conversation.tools))
        last = max(n for n, (_, said) in enumerate(pieces) if said)
        _, ids, flags = reference(tokenizer, [(piece, n == last) for n, (piece, _) in enumerate(pieces)])
        ours = encode_conversation(tokenizer, template, conversation, "completion")
        assert shown(tokenizer, *ours) == shown(tokenizer, ids, flags)
        assert encode_conversation(tokenizer, template, conversation, "all") == (ids, [True] * len(ids))


@pytest.mark.parametrize("name", sorted(NAMED))
def test_start_is_written_once_and_the_end_is_trained(name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids, flags = encode_conversation(tokenizer, template_for(tokenizer, name), EVERY["chat"], "assistant")
    if tokenizer.bos_id is not None:
        assert ids.count(tokenizer.bos_id) == 1 and ids[0] == tokenizer.bos_id
    trained_ends = [i for i, flag in zip(ids, flags, strict=True) if flag and i in tokenizer.eos_ids]
    assert len(trained_ends) == 2


def test_markers_in_pieces_belong_to_their_turns() -> None:
    tokenizer = tokenizer_of("chatml")
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% generation %}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>"
        "{% endif %}\n{% endfor %}"
    )
    template = ChatTemplate(text, tokenizer.special_tokens)
    marked = mark(tokenizer, template, EVERY["chat"], "completion")
    assert "".join(marked.text[s:e] for s, e in marked.spans) == CHAT[-1]["content"] + "<|im_end|>"


def test_white_space_that_begins_a_turn_is_trained_with_trimmed_offsets() -> None:
    tokenizer = tokenizer_of("phi")
    answer = {"role": "assistant", "content": "\n\n  Hi"}
    conversation = Conversation(({"role": "user", "content": "Hi"}, answer))
    template = template_for(tokenizer, "phi")
    ids, flags = encode_conversation(tokenizer, template, conversation, "assistant")
    said = [i for i, flag in zip(ids, flags, strict=True) if flag]
    assert tokenizer.decode(said) == "\n\n  Hi<|end|>"


def test_character_of_several_tokens_is_trained_whole() -> None:
    tokenizer = tokenizer_of("chatml")
    text = "a龘b"
    encoding = tokenizer.encoding(text)
    assert len(encoding.ids) > 3
    ids, flags = segment_of(encoding, [(1, 2)])
    assert flags == [False] + [True] * (len(ids) - 2) + [False]
