"""Rendering refusals, preferences, and templates whose turns cannot be told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.families import write_family
from tests.fixtures.wild_templates import CHATML, GEMMA, LLAMA31
from tunesmith.errors import DataError
from tunesmith.rows.conversation import Conversation
from tunesmith.tokens.chat import (
    TemplateProblem,
    TrainOn,
    encode_conversation,
    encode_preference,
    encode_prompt,
    render,
)
from tunesmith.tokens.templates import ChatTemplate, template_for
from tunesmith.tokens.tokenizer import ChatTokenizer, load_tokenizer

USER = {"role": "user", "content": "Hello there"}
GOOD = {"role": "assistant", "content": "Hello! How are you?"}
BAD = {"role": "assistant", "content": "Hello! Go away."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return load_tokenizer(write_family(tmp_path_factory.mktemp("t"), "chatml"))


def test_preference_shares_the_prompt(tokenizer: ChatTokenizer) -> None:
    template = template_for(tokenizer, "chatml")
    segments = encode_preference(tokenizer, template, Conversation((USER,)), (GOOD,), (BAD,))
    (prompt, _), (chosen, chosen_flags), (rejected, _) = segments
    assert prompt == encode_prompt(tokenizer, template, [USER])
    assert prompt + chosen == encode_conversation(tokenizer, template, Conversation((USER, GOOD)), "all")[0]
    assert prompt + rejected == encode_conversation(tokenizer, template, Conversation((USER, BAD)), "all")[0]
    assert not any(segments[0][1]) and tokenizer.decode(
        [i for i, t in zip(chosen, chosen_flags, strict=True) if t]
    ) == ("Hello! How are you?<|im_end|>")


def test_preference_keeps_earlier_turns_out_of_the_loss(tokenizer: ChatTokenizer) -> None:
    template = template_for(tokenizer, "chatml")
    prompt = Conversation((USER, GOOD, {"role": "user", "content": "Again"}))
    more = ({"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Sure?"}, GOOD)
    segments = encode_preference(tokenizer, template, prompt, more, (BAD,))
    said = [i for i, t in zip(*segments[1], strict=True) if t]
    assert tokenizer.decode(said) == "Yes.<|im_end|>Hello! How are you?<|im_end|>"
    assert not any(segments[0][1])


def test_token_over_the_boundary_belongs_to_the_answer(tokenizer: ChatTokenizer) -> None:
    # "\n" of the header and "\n\n" of the answer may be one token.
    template = template_for(tokenizer, "chatml")
    chosen = {"role": "assistant", "content": "\nyes"}
    segments = encode_preference(tokenizer, template, Conversation((USER,)), (chosen,), (BAD,))
    whole = encode_conversation(tokenizer, template, Conversation((USER, chosen)), "all")[0]
    assert segments[0][0] + segments[1][0] == whole


@pytest.mark.parametrize(
    ("family", "text", "messages", "reason"),
    [
        ("gemma", GEMMA, [{"role": "system", "content": "x"}, USER], "System role not supported"),
        ("gemma", GEMMA, [USER, USER], "must alternate"),
        ("llama3", LLAMA31, [USER, GOOD | {"tool_calls": []}], "single tool-calls"),
        ("chatml", "{{ messages[5].content }}", [USER], "has no"),
        ("chatml", "{{ messages[0].content + 1 }}", [USER], "can only concatenate"),
        ("chatml", "{{ 1 // 0 }}", [USER], "division"),
        ("chatml", "{{ messages.append(1) }}", [USER], "unsafe|safely"),
        ("chatml", "{{ ''.__class__.__mro__ }}", [USER], "unsafe|safely|undefined"),
    ],
)
def test_what_a_template_refuses_is_a_reason(
    tmp_path: Path, family: str, text: str, messages: list[dict[str, str]], reason: str
) -> None:
    tokenizer = load_tokenizer(write_family(tmp_path, family))
    with pytest.raises(TemplateProblem, match=reason):
        render(ChatTemplate(text, tokenizer.special_tokens), messages)


def test_turns_that_cannot_be_told_apart_are_refused(tokenizer: ChatTokenizer) -> None:
    # The call's name stands behind text that no generation prompt announces, and a plain answer is refused.
    text = (
        "{% for m in messages %}{% if m.tool_calls %}{{ 'A long text of which nobody can say who wrote it. ' * 9 }}"
        "{{ m.tool_calls[0].function.name }}{% elif m.role == 'assistant' %}{{ raise_exception('no') }}"
        "{% else %}{{ raise_exception('x') if messages|length == 1 else m.content }}{% endif %}{% endfor %}"
    )
    calls = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    with pytest.raises(DataError, match="cannot be told where") as caught:
        encode_conversation(tokenizer, ChatTemplate(text), Conversation((USER, calls)), "assistant")
    assert "generation" in caught.value.do


TOOL = {"type": "function", "function": {"name": "look_up", "description": "", "parameters": {"type": "object"}}}
LOOK_UP = {"type": "function", "function": {"name": "look_up", "arguments": {"x": 1}}}


@pytest.mark.parametrize("train_on", ["assistant", "completion", "all"])
def test_a_template_that_hides_tools_or_calls_is_refused(tokenizer: ChatTokenizer, train_on: TrainOn) -> None:
    blind = ChatTemplate(CHATML, tokenizer.special_tokens)
    with pytest.raises(TemplateProblem, match="does not show the tool 'look_up'"):
        encode_conversation(tokenizer, blind, Conversation((USER, GOOD), (TOOL,)), train_on)
    deaf = ChatTemplate("{{ tools | tojson }}\n" + CHATML, tokenizer.special_tokens)
    call = {"role": "assistant", "content": "", "tool_calls": [LOOK_UP]}
    calling = Conversation((USER, call, {"role": "tool", "content": "2"}, GOOD), (TOOL,))
    with pytest.raises(TemplateProblem, match="does not show the call of 'look_up'"):
        encode_conversation(tokenizer, deaf, calling, train_on)
    assert encode_conversation(tokenizer, template_for(tokenizer, "chatml"), calling, train_on)


def test_messages_are_not_changed_by_rendering(tokenizer: ChatTokenizer) -> None:
    message = {"role": "user", "content": "x", "extra": {"a": [1]}}
    render(ChatTemplate("{{ messages[0].pop('extra', none) if false else '' }}{{ messages }}"), [message])
    assert message == {"role": "user", "content": "x", "extra": {"a": [1]}}


def test_a_turn_that_is_not_shown_has_no_trained_token(tokenizer: ChatTokenizer) -> None:
    text = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    ids, flags = encode_conversation(tokenizer, ChatTemplate(text), Conversation((USER, GOOD)), "assistant")
    assert ids and not any(flags)


def test_a_template_without_end_tokens_ends_turns_with_their_words(tokenizer: ChatTokenizer) -> None:
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% endif %}"
    ids, flags = encode_conversation(tokenizer, ChatTemplate(text), Conversation((USER, GOOD, USER)), "assistant")
    assert tokenizer.decode([i for i, t in zip(ids, flags, strict=True) if t]).strip() == "Hello! How are you?"
