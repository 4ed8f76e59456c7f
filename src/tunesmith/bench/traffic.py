"""What is sent, and when: prompts from rows in an order that the seed fixes, as requests of either endpoint."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tunesmith.errors import BenchError
from tunesmith.recipe.schema import Recipe, Source
from tunesmith.rows.conversation import Conversation, Message
from tunesmith.rows.examples import conversations
from tunesmith.rows.reading import read_examples
from tunesmith.rows.sources import BadRow

_MOST_ROWS = 2000  # enough variety for any load; reading more would only take time


@dataclass(frozen=True)
class Prompt:
    """One request's content. `name` says where it comes from: `file:line`."""

    name: str
    messages: tuple[dict[str, Any], ...]  # as the API wants them
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Request:
    """One request as it goes over the wire."""

    PATHS: ClassVar[dict[str, str]] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

    name: str
    path: str
    body: bytes
    due_seconds: float = 0.0  # since the level began; in an open loop only


@dataclass(frozen=True)
class Asking:
    """What every request asks for."""

    model: str
    max_tokens: int
    api: Literal["chat", "completions"] = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)  # into every request; None leaves a key out

    @property
    def path(self) -> str:
        return Request.PATHS[self.api]

    def request(self, prompt: Prompt, due_seconds: float = 0.0, *, num_output_tokens: int | None = None) -> Request:
        """Return the request of a prompt: greedy, streamed, with the server's count of tokens at the end.

        Args:
            prompt: what is asked.
            due_seconds: when, in an open loop.
            num_output_tokens: just so many, from servers that know `ignore_eos`; at most `max_tokens` when None.
        """
        document: dict[str, Any] = {"model": self.model}
        if self.api == "chat":
            document["messages"] = list(prompt.messages)
        else:
            document["prompt"] = "\n\n".join(str(message.get("content") or "") for message in prompt.messages)
        document |= {
            "max_tokens": num_output_tokens or self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if num_output_tokens is not None:
            document |= {"ignore_eos": True, "min_tokens": num_output_tokens}
        if prompt.tools and self.api == "chat":
            document["tools"] = list(prompt.tools)
        document = {key: value for key, value in (document | dict(self.extra)).items() if value is not None}
        body = json.dumps(document, ensure_ascii=False).encode(errors="replace")
        return Request(prompt.name, self.path, body, due_seconds)


def moments(rate: float, count: int, arrivals: Literal["poisson", "constant"], *, seed: int) -> list[float]:
    """Return when each of `count` requests is due, in seconds: on average `rate` per second.

    Poisson arrivals have independent, exponentially distributed gaps, as requests of many unrelated users do.
    """
    if arrivals == "constant":
        return [index / rate for index in range(count)]
    generator = random.Random(seed)
    return list(itertools.accumulate(generator.expovariate(rate) for _ in range(count)))


def conversations_of(recipe: Recipe) -> list[tuple[str, Conversation]]:
    """Return the conversations that `bench.prompts` names, or those of the validation or training rows.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    assert recipe.bench is not None
    if recipe.bench.prompts:
        return conversations(recipe.bench.prompts, limit=_MOST_ROWS)
    found: list[tuple[str, Conversation]] = []
    for source in recipe.data.validation or recipe.data.train:
        found += _of_source(source, _MOST_ROWS - len(found))
    return found


def choose(
    rows: Sequence[tuple[str, Conversation]], count: int, *, seed: int, fits: Callable[[Conversation], bool]
) -> tuple[list[Prompt], int]:
    """Return `count` prompts in random order, and how many rows were passed over because they do not fit.

    A row's prompt ends before its last assistant turn. When there are fewer rows than requests, they are sent again.

    Raises:
        BenchError: no row fits.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    chosen: list[Prompt] = []
    num_unfit = 0
    for index in order:
        name, row = rows[index]
        question = Conversation(question_of(row.messages), row.tools)
        if not question.messages or not fits(question):
            num_unfit += 1
            continue
        chosen.append(Prompt(name, tuple(_wired(question.messages)), question.tools))
        if len(chosen) == count:
            break
    if not chosen:
        what = (
            f"none of {len(rows)} rows gives a prompt that fits" if rows else "there are no rows to take prompts from"
        )
        raise BenchError(what, where="bench.prompts", do="give rows whose prompts fit into serve.max_model_len")
    return [chosen[i % len(chosen)] for i in range(count)], num_unfit


def question_of(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return what comes before the last assistant turn; all of it when no assistant speaks."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return tuple(messages[:last])


def _of_source(source: Source, limit: int) -> Iterator[tuple[str, Conversation]]:
    _, examples = read_examples(source)
    for example in examples:
        if limit <= 0:
            return
        if isinstance(example, BadRow):
            continue  # the data stage has counted it
        content = example.content
        limit -= 1
        yield f"{example.file}:{example.line}", content if isinstance(content, Conversation) else content.prompt


def _wired(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """Yield messages in OpenAI's form: call arguments as JSON text, results naming the call they answer."""
    num_calls = 0
    unanswered: list[str] = []
    for message in messages:
        wired = dict(message)
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                num_calls += 1
                identifier = str(call.get("id") or f"call_{num_calls}")
                unanswered.append(identifier)
                function = dict(call["function"])
                if not isinstance(function["arguments"], str):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                calls.append({"id": identifier, "type": "function", "function": function})
            wired["tool_calls"] = calls
        elif message["role"] == "tool" and "tool_call_id" not in wired:
            wired["tool_call_id"] = unanswered.pop(0) if unanswered else "call_0"
        yield wired
