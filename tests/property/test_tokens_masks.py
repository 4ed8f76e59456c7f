"""Whatever is said: ids and flags align, the model's words are trained and nothing else is; shards give it all back."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.families import write_family
from tests.fixtures.named_references import NAMED
from tests.fixtures.wild_templates import WILD
from tunesmith.rows.conversation import Conversation
from tunesmith.tokens.chat import encode_conversation, encode_preference, mark, render
from tunesmith.tokens.shards import Shards, ShardWriter
from tunesmith.tokens.templates import ChatTemplate, template_for
from tunesmith.tokens.tokenizer import ChatTokenizer, load_tokenizer

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ue000\ue001"), min_size=1, max_size=30)
WORDS = TEXTS.filter(lambda text: bool(text.strip()))
ARGUMENTS = st.dictionaries(
    TEXTS, st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS, max_size=2), max_size=3
)


@st.composite
def conversations(draw: st.DrawFn, *, with_tools: bool) -> Conversation:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(WORDS)})
    for turn in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(WORDS)})
        if with_tools and draw(st.booleans()):
            identity = f"call{turn:05d}"
            function = {"name": draw(WORDS), "arguments": draw(ARGUMENTS)}
            call = {"id": identity, "type": "function", "function": function}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": draw(TEXTS), "tool_call_id": identity})
        messages.append({"role": "assistant", "content": draw(WORDS)})
    return Conversation(tuple(messages))


@cache
def tokenizer_of(family: str) -> ChatTokenizer:
    with tempfile.TemporaryDirectory() as directory:
        return load_tokenizer(write_family(Path(directory), family))


def said_by_hand(pieces: list[tuple[str, bool]]) -> str:
    return "".join(text for text, said in pieces if said)


@pytest.mark.parametrize("name", sorted(NAMED))
@settings(max_examples=40, deadline=None)
@given(conversation=conversations(with_tools=True))
def test_named_templates_mark_what_the_model_says(name: str, conversation: Conversation) -> None:
    tokenizer = tokenizer_of(name)
    template = template_for(tokenizer, name)
    pieces = NAMED[name](list(conversation.messages), [])
    marked = mark(tokenizer, template, conversation, "assistant")
    assert marked.text == "".join(text for text, _ in pieces)
    assert "".join(marked.text[start:end] for start, end in marked.spans) == said_by_hand(pieces)
    ids, trained = encode_conversation(tokenizer, template, conversation, "assistant")
    assert len(ids) == len(trained) and ids == tokenizer.encode(marked.text)
    assert any(i in tokenizer.eos_ids for i, flag in zip(ids, trained, strict=True) if flag)


@pytest.mark.parametrize("name", ["mistral", "chatml", "phi3", "llama31", "deepseek"])
@settings(max_examples=40, deadline=None)
@given(conversation=conversations(with_tools=False))
def test_templates_without_markers_too(name: str, conversation: Conversation) -> None:
    family, text, by_hand, _, _ = WILD[name]
    tokenizer = tokenizer_of(family)
    template = ChatTemplate(text, tokenizer.special_tokens)
    pieces = by_hand(list(conversation.messages), [])
    marked = mark(tokenizer, template, conversation, "assistant")
    assert marked.text == "".join(piece for piece, _ in pieces) == render(template, conversation.messages)
    assert "".join(marked.text[start:end] for start, end in marked.spans) == said_by_hand(pieces)


@settings(max_examples=40, deadline=None)
@given(conversation=conversations(with_tools=True), better=WORDS, worse=WORDS)
def test_pairs_join_to_whole_conversations(conversation: Conversation, better: str, worse: str) -> None:
    tokenizer = tokenizer_of("qwen")
    template = template_for(tokenizer, "qwen")
    prompt = Conversation((*conversation.messages, {"role": "user", "content": "Next"}))
    answers = [({"role": "assistant", "content": text},) for text in (better, worse)]
    segments = encode_preference(tokenizer, template, prompt, *answers)
    for (ids, trained), answer in zip(segments[1:], answers, strict=True):
        whole = encode_conversation(tokenizer, template, Conversation((*prompt.messages, *answer)), "completion")
        assert (segments[0][0] + ids, segments[0][1] + trained) == whole


ROWS = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(0, 70_000), st.booleans()), max_size=9), st.integers(1, 3)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, num_segments=st.integers(1, 3))
def test_shards_round_trip(rows: list[tuple[list[tuple[int, bool]], int]], num_segments: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shards"
        with ShardWriter(path, num_segments) as writer:
            for tokens, repeats in rows:
                segment = ([i for i, _ in tokens], [flag for _, flag in tokens])
                writer.add([segment] * num_segments, repeats=repeats)
            writer.close({"rows": len(rows)})
        shards = Shards(path)
        expected = [tokens for tokens, repeats in rows for _ in range(repeats)]
        assert len(shards) == len(expected) and shards.lengths.shape == (len(expected), num_segments)
        for n, tokens in enumerate(expected):
            for s in range(num_segments):
                ids, trained = shards.segment(n, s)
                assert list(zip(ids.tolist(), trained.tolist(), strict=True)) == tokens
        assert np.array_equal(shards.num_trained[:, 0], [sum(flag for _, flag in tokens) for tokens in expected])
