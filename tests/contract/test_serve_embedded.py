"""The embedded server as OpenAI's own client sees it, over HTTP, in a process of its own."""

from __future__ import annotations

import concurrent.futures
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fakes.tiny_checkpoint import make_checkpoint
from tunesmith.bench.traffic import Asking, Prompt
from tunesmith.serve.engine import ServedModel
from tunesmith.serve.process import ServerProcess
from tunesmith.serve.stage import serving

MAX_MODEL_LEN = 300
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model with a space") / "tiny")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[ServerProcess]:
    model = ServedModel(checkpoint, "tiny", dtype="float32", max_model_len=MAX_MODEL_LEN)
    with serving(model, engine="embedded", log=checkpoint.parent / "server.log", timeout_seconds=120) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


class Reference:
    """transformers' own answers."""

    def __init__(self, path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def chat_ids(self, text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def answer(self, ids: list[int], num_tokens: int) -> list[int]:
        prompt = torch.tensor([ids])
        made = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=num_tokens
        )
        return list(made[0, len(ids) :].tolist())

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


def question(seed: int) -> str:
    generator = random.Random(seed)
    return "".join(generator.choice("abcdefgh ij klm") for _ in range(generator.randint(1, 80)))


def chat(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **options)


def test_models_and_health(client: openai.OpenAI, server: ServerProcess) -> None:
    (card,) = client.models.list().data
    assert card.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_sixteen_at_once_answer_as_transformers_would(
    client: openai.OpenAI, reference: Reference, server: ServerProcess
) -> None:
    questions = [question(seed) for seed in range(16)]
    lengths = [4 + 3 * (i % 9) for i in range(16)]

    def ask(i: int) -> Any:
        return chat(client, questions[i], temperature=0, max_tokens=lengths[i], logprobs=True)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    for text, length, answer in zip(questions, lengths, answers, strict=True):
        ids = reference.chat_ids(text)
        expected = reference.answer(ids, length)
        ended = expected[-1] == reference.tokenizer.eos_token_id
        choice = answer.choices[0]
        assert choice.finish_reason == ("stop" if ended else "length")
        assert answer.usage.prompt_tokens == len(ids)
        assert answer.usage.completion_tokens == len(expected)
        assert answer.usage.total_tokens == len(ids) + len(expected)
        # A letter that the limit has cut in two is shown by one server and left out by another.
        assert choice.message.content.rstrip("\ufffd") == reference.text(expected).rstrip("\ufffd")
        if server.engine.name == "embedded":
            made = [token.token for token in choice.logprobs.content]
            assert made == [reference.tokenizer.decode([i]) for i in (expected[:-1] if ended else expected)]


def test_a_stream_says_what_the_whole_says(client: openai.OpenAI) -> None:
    whole = chat(client, "stream me", temperature=0, max_tokens=20)
    chunks = list(
        chat(client, "stream me", temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])


def test_a_stream_ends_with_done_and_without_usage_unless_asked(server: ServerProcess) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": True}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert not any("usage" in json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def test_usage_in_every_chunk_when_asked(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(chat(client, "count", temperature=0, max_tokens=6, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] > 0


def test_stop_strings_end_an_answer_before_them(client: openai.OpenAI) -> None:
    free = chat(client, "stop here", temperature=0, max_tokens=30).choices[0].message.content
    stop = free[7:9]
    expected = free[: free.index(stop)]
    stopped = chat(client, "stop here", temperature=0, max_tokens=30, stop=[stop, "never"])
    assert stopped.choices[0].message.content == expected
    assert stopped.choices[0].finish_reason == "stop"
    streamed = chat(client, "stop here", temperature=0, max_tokens=30, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == expected


def test_answers_of_an_exact_length_as_load_tests_ask_for_them(server: ServerProcess) -> None:
    prompt = Prompt("row", ({"role": "user", "content": "talk"},))
    request = Asking("tiny", 64).request(prompt, num_output_tokens=37)
    answer = httpx.post(f"{server.url}{request.path}", content=request.body, timeout=60)
    last = [line for line in answer.text.splitlines() if '"usage"' in line][-1]
    assert json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"] == 37


def test_seeds_repeat_and_choices_differ(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 1.2, "top_p": 0.95, "seed": 5, "n": 3}
    first, second = chat(client, "vary", **options), chat(client, "vary", **options)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.completion_tokens <= 48
    assert chat(client, "vary", **(options | {"seed": 6})).choices[0].message.content != texts[0]


def test_logprobs_of_a_chat(client: openai.OpenAI, reference: Reference) -> None:
    answer = chat(client, "log", temperature=0, max_tokens=5, logprobs=True, top_logprobs=4)
    ids = reference.chat_ids("log")
    with torch.inference_mode():
        expected = reference.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    token = answer.choices[0].logprobs.content[0]
    assert token.logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [t.logprob for t in token.top_logprobs] == pytest.approx(expected.topk(4).values.tolist(), abs=1e-4)
    assert bytes(token.bytes).decode() == token.token


def test_completions_take_texts_and_ids_and_echo_with_logprobs(
    client: openai.OpenAI, reference: Reference, server: ServerProcess
) -> None:
    ids = [list(b"one"), list(b"another one")]
    ids = [reference.tokenizer.encode(bytes(i).decode()) for i in ids]
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=6, temperature=0)
    by_text = client.completions.create(model="tiny", prompt=["one", "another one"], max_tokens=6, temperature=0)
    expected = [reference.text(reference.answer(i, 6)).rstrip("\ufffd") for i in ids]
    for answered in (by_ids, by_text):
        assert [choice.text.rstrip("\ufffd") for choice in answered.choices] == expected
    scored = client.completions.create(model="tiny", prompt=ids[1], max_tokens=0, echo=True, logprobs=1)
    with torch.inference_mode():
        logprobs = reference.model(torch.tensor([ids[1]])).logits[0].log_softmax(-1)
    found = scored.choices[0].logprobs
    assert found is not None and found.token_logprobs is not None and found.text_offset is not None
    assert scored.choices[0].text == "another one"
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx(
        [float(logprobs[t, token]) for t, token in enumerate(ids[1][1:])], abs=1e-4
    )
    assert found.text_offset == list(range(len("another one")))
    assert scored.usage is not None
    assert scored.usage.completion_tokens == (0 if server.engine.name == "embedded" else 1)  # vLLM counts one


def test_completions_stream(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="abc", max_tokens=9, temperature=0)
    parts = client.completions.create(model="tiny", prompt="abc", max_tokens=9, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_tools_are_shown_to_the_model_and_left_out_when_not_wanted(client: openai.OpenAI) -> None:
    plain = chat(client, "call", temperature=0, max_tokens=4)
    offered = chat(client, "call", temperature=0, max_tokens=4, tools=[TOOL], tool_choice="auto")
    refused = chat(client, "call", temperature=0, max_tokens=4, tools=[TOOL], tool_choice="none")
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens == refused.usage.prompt_tokens
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "call"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL], max_tokens=4)
    assert answer.usage is not None and answer.usage.prompt_tokens > offered.usage.prompt_tokens


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": None}, 400, "model is missing"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"model": "other"}, 404, "'other' does not exist"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 400, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text only"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 2.5}, 400, "max_tokens"),
        ({"n": 1000}, 400, "n must"),
        ({"stop": [1]}, 400, "stop"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"stream": True, "stream_options": {"include_all": True}}, 400, "include_all is not supported"),
        ({"top_logprobs": 3}, 400, "logprobs"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty is not supported"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, 400, "response_format is not supported"),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias is not supported"),
        ({"tools": [TOOL], "tool_choice": "always"}, 400, "tool_choice"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, 400, "combined with tools"),
        ({"tools": [{"type": "function"}]}, 400, "tools[0]"),
        ({"temprature": 0}, 400, "Unknown parameter: 'temprature'"),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, 400, "maximum context length is 300 tokens"),
        ({"max_tokens": 290}, 400, "and 290 for the answer"),
        ({"min_tokens": 2}, 400, "min_tokens needs ignore_eos"),
        ({"min_tokens": 2, "ignore_eos": True, "stop": "x"}, 400, "min_tokens needs ignore_eos, and no stop"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_name(
    server: ServerProcess, body: dict[str, Any], status: int, said: str
) -> None:
    whole = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3} | body
    response = httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(whole))
    assert response.status_code == status
    assert said in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_client_raises_its_own_errors(client: openai.OpenAI, server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError) as told:
        chat(client, "x" * 1000)
    if server.engine.name == "embedded":  # as OpenAI says it; vLLM's code is 400
        assert told.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=[999_999], max_tokens=2)


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_json_object_are_refused(server: ServerProcess, content: bytes) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content)
    assert response.status_code == 400 and "error" in response.json()


def test_unknown_paths_and_methods(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").status_code == 404
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405


def test_a_client_that_leaves_frees_its_place(server: ServerProcess, client: openai.OpenAI) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "stream": True}
    begin = len(server.log.read_text())
    for _ in range(40):  # more than there are places
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            next(response.iter_raw())
    answer = chat(client, "still there?", temperature=0, max_tokens=2)
    assert answer.usage.completion_tokens > 0
    deadline = time.monotonic() + 10
    while server.log.read_text()[begin:].count("client left") < 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.log.read_text()[begin:].count(" 499 ") >= 20
    assert all(len(line) < 300 for line in server.log.read_text().splitlines())
