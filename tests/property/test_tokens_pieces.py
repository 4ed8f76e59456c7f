"""Texts in pieces have the ids, and the flags, of texts encoded whole: for every pattern that is taken apart."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.property.test_tokens_masks import conversations, tokenizer_of
from tunesmith.rows.conversation import Conversation
from tunesmith.tokens import pieces
from tunesmith.tokens.bulk import BulkTokenizer
from tunesmith.tokens.chat import MarkedText, mark, segment_of
from tunesmith.tokens.pieces import PieceTokenizer, piece_tokenizer
from tunesmith.tokens.templates import template_for

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im_end|>x", "<think>", "[INST]")
# Everything that a rule about cutting speaks of, and what stands just beyond it.
_PLAIN = (
    "a Zoé word don't 's 'S 'ſ ’s rock'n'roll 7 1234567 ½ ٣ . , !? ' '' / ( )) < <| _ … “ € 🙂 你好 ひらがな äö ÅÄ ß"
)
_SPACES = (" ", "  ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u3000", "\u200b", "\x00", "\x7f")
FRAGMENTS = st.sampled_from((*SPECIALS, *_PLAIN.split(), *_SPACES, " ", "\n", "e\u0301"))
TEXTS = st.lists(FRAGMENTS | st.text(st.characters(exclude_categories=("Cs",)), max_size=3), max_size=14).map("".join)

_DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", pieces._WORD_PATTERNS["deepseek"]]
PATTERNS: dict[str, list[Any]] = {name: [pattern] for name, pattern in pieces._WORD_PATTERNS.items()} | {
    "deepseek": _DEEPSEEK,
    "gpt2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
}


@cache
def backend_of(name: str) -> Tokenizer:
    steps = [
        pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else step for step in PATTERNS[name]
    ]
    has_words = name not in ("gpt2", "smollm")
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not has_words)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    corpus = ["word a 1234567 don't\n\n  word!?\n/ (word) \t ...  \r\n\r\n 77\n\n\n7 Zoé’s 你好 ſ''s" * 3] * 9
    pairs = [f"{a}{b}" for a in " \n\t.'" for b in " \n\t.'"]
    backend.train_from_iterator([*corpus, *pairs * 9], trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return backend


def tokenizer_by_pieces(backend: Tokenizer) -> PieceTokenizer:
    found = piece_tokenizer(backend)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(PATTERNS))
@settings(max_examples=250, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_pieces_have_the_ids_and_the_words_of_the_whole(name: str, texts: list[str]) -> None:
    backend = backend_of(name)
    by_pieces = tokenizer_by_pieces(backend)
    for text in texts:
        assert "".join(by_pieces.cut(text)) == text
        if not any(special in text for special in SPECIALS):
            split = backend.pre_tokenizer.pre_tokenize_str
            assert [word for piece in by_pieces.cut(text) for word, _ in split(piece)] == [w for w, _ in split(text)]
    expected = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    for _ in range(2):  # once learning, once remembering
        assert [list(memoryview(ids).cast(pieces.ID_TYPE)) for ids in by_pieces.encode(texts)] == expected


@pytest.mark.parametrize("family", ["chatml", "qwen", "llama3", "phi", "gemma", "mistral"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), data=st.data())
def test_flags_are_those_of_offsets(family: str, texts: list[str], data: st.DataObject) -> None:
    tokenizer = tokenizer_of(family)
    marked = []
    for text in texts:
        borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        marked.append(MarkedText(text, tuple(zip(borders[::2], borders[1::2], strict=False))))
    expected = [segment_of(tokenizer.encoding(one.text), one.spans) for one in marked]
    found = BulkTokenizer(tokenizer).segments(marked)
    assert [(ids.tolist(), flags.tolist()) for ids, flags in found] == expected


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(conversations(with_tools=True), min_size=1, max_size=4))
def test_whole_conversations_too(rows: list[Conversation]) -> None:
    tokenizer = tokenizer_of("qwen")
    template = template_for(tokenizer, "qwen")
    marked = [mark(tokenizer, template, row, "assistant") for row in rows]
    expected = [segment_of(tokenizer.encoding(one.text), one.spans) for one in marked]
    found = BulkTokenizer(tokenizer).segments(marked)
    assert [(ids.tolist(), flags.tolist()) for ids, flags in found] == expected


def changed(**parts: Any) -> Tokenizer:
    backend = Tokenizer.from_str(backend_of("gpt2").to_str())
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def test_a_composing_normalizer_is_accepted_for_texts_it_leaves_alone() -> None:
    backend = changed(normalizer=normalizers.NFC())
    assert piece_tokenizer(backend) is not None
    assert pieces.keeps_text(backend, "é 你好") and not pieces.keeps_text(backend, "e\u0301")


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.NFKC()},
        {"normalizer": normalizers.Replace(" ", "▁")},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(".+"), "isolated")])},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"model": models.BPE({"a": 0}, [], dropout=0.1)},
        {"model": models.WordLevel({"a": 0}, unk_token="a")},
    ],
)
def test_others_are_encoded_whole(parts: dict[str, Any]) -> None:
    assert piece_tokenizer(changed(**parts)) is None


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<x>", lstrip=True, normalized=False),
        AddedToken("<x>", rstrip=True, normalized=False),
        AddedToken("<x>", single_word=True, normalized=False),
        AddedToken("<x y>", normalized=False),
        AddedToken("foo1", normalized=False),
        AddedToken("  ", normalized=False),
        AddedToken("<x>", normalized=True),
    ],
)
def test_added_tokens_that_look_beyond_themselves_are_not_taken_apart(token: AddedToken) -> None:
    backend = changed()
    backend.add_tokens([token])
    assert piece_tokenizer(backend) is None
