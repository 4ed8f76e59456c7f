"""What clients ask for: OpenAI's request bodies, checked and turned into plain values.

Nothing is ignored silently: a parameter that would change the answer and is not supported is refused with its name.
Source: https://platform.openai.com/docs/api-reference/chat/create and /completions/create.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tunesmith.serve.embedded.sequence import Sampling

# Parameters that may be given because they ask for nothing, with the values that ask for nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "logit_bias": ({}, None),
    "best_of": (1, None),
    "suffix": ("", None),
    "modalities": (["text"], None),
    "store": (False, None),
    "service_tier": ("auto", "default", None),
    "min_p": (0, None),
    "functions": ([], None),
}
# Labels for the caller's own bookkeeping.
_LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
_COMMON = {"model", "stream", "stream_options", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop"} | {
    "ignore_eos",
    "min_tokens",
    "logprobs",
}
_CHAT = _COMMON | {
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_completion_tokens",
    "top_logprobs",
    "response_format",
}
_COMPLETION = _COMMON | {"prompt", "echo"}
_MAX_CHOICES = 128
_MAX_LOGPROBS = 20


class BadRequest(Exception):
    """A request that cannot be served; becomes an OpenAI error object."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI words it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Wish:
    """What chat and plain completions have in common. `max_tokens` None = as many as fit."""

    sampling: dict[str, Any]  # arguments of Sampling but max_tokens
    max_tokens: int | None
    num_choices: int
    stream: bool
    include_usage: bool
    continuous_usage: bool = False  # vLLM's: every chunk tells the usage so far

    def sampling_for(self, num_prompt_tokens: int, max_model_len: int, choice: int) -> Sampling:
        """Return the settings of one choice for a prompt of known length.

        Raises:
            BadRequest: prompt and answer do not fit into the model's length.
        """
        room = max_model_len - num_prompt_tokens
        wanted = self.max_tokens if self.max_tokens is not None else max(1, room)
        if wanted > room:
            asked = f" and {wanted} for the answer" if self.max_tokens is not None else ""
            raise BadRequest(
                f"This model's maximum context length is {max_model_len} tokens. However, you requested "
                f"{num_prompt_tokens} tokens in the prompt{asked}.",
                code="context_length_exceeded",
            )
        seed = self.sampling["seed"]
        settings = self.sampling | {"seed": None if seed is None else seed + choice}
        return Sampling(max_tokens=wanted, **settings)


@dataclass(frozen=True)
class ChatRequest:
    wish: Wish
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    parallel_tool_calls: bool = True
    forced: tuple[str, ...] = ()  # the answer must be a call of one of these
    wants_object: bool = False  # the answer must be a JSON object


@dataclass(frozen=True)
class CompletionRequest:
    wish: Wish
    prompts: tuple[str | list[int], ...]
    echo: bool = False


@dataclass
class _Body:
    """A request body whose values are read once, with their types checked."""

    values: dict[str, Any]
    known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if name in self.known or name in _LABELS:
                continue
            if name not in _WITHOUT_EFFECT:
                raise BadRequest(f"Unknown parameter: {name!r}.", param=name, code="unknown_parameter")
            if value not in _WITHOUT_EFFECT[name]:
                raise BadRequest(f"{name} is not supported by this server: leave it out.", param=name)

    def number(self, name: str, default: Any, low: float, high: float) -> Any:
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadRequest(f"{name} must be a number from {low:g} to {high:g}, not {value!r}.", param=name)
        return value

    def whole(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.number(name, default, low, high)
        if isinstance(value, float):
            raise BadRequest(f"{name} must be a whole number, not {value!r}.", param=name)
        return None if value is None else int(value)

    def switch(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadRequest(f"{name} must be true or false, not {value!r}.", param=name)
        return value


def parse_chat(document: Any) -> ChatRequest:
    """Check the body of a chat completion.

    Raises:
        BadRequest: something in it is wrong or not supported.
    """
    body = _Body(_mapping(document), _CHAT)
    messages = body.values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message.", param="messages")
    num_logprobs = None
    if body.switch("logprobs", False):
        num_logprobs = body.whole("top_logprobs", 0, 0, _MAX_LOGPROBS)
    elif body.values.get("top_logprobs"):
        raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    tools, forced = _tools(body)
    wants_object = _wants_object(body)
    if wants_object and tools:
        raise BadRequest("response_format cannot be combined with tools here.", param="response_format")
    limit = "max_completion_tokens" if body.values.get("max_completion_tokens") is not None else "max_tokens"
    return ChatRequest(
        wish=_wish(body, limit, num_logprobs),
        messages=tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages)),
        tools=tools,
        forced=forced,
        wants_object=wants_object,
        parallel_tool_calls=body.switch("parallel_tool_calls", True),
    )


def parse_completion(document: Any) -> CompletionRequest:
    """Check the body of a plain completion.

    Raises:
        BadRequest: something in it is wrong or not supported.
    """
    body = _Body(_mapping(document), _COMPLETION)
    echo = body.switch("echo", False)
    num_logprobs = body.whole("logprobs", None, 0, _MAX_LOGPROBS)
    wish = _wish(body, "max_tokens", num_logprobs, default_max_tokens=16)
    if echo and num_logprobs is not None:
        wish.sampling["prompt_logprobs"] = True
    if not echo and wish.max_tokens == 0:
        raise BadRequest("max_tokens must be at least 1 unless echo is true.", param="max_tokens")
    return CompletionRequest(wish, _prompts(body.values.get("prompt")), echo)


def _mapping(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    return document


def _wish(body: _Body, limit: str, num_logprobs: int | None, default_max_tokens: int | None = None) -> Wish:
    stream = body.switch("stream", False)
    options = body.values.get("stream_options") or {}
    if not isinstance(options, dict) or (options and not stream):
        raise BadRequest("stream_options must be an object, and needs stream to be true.", param="stream_options")
    unknown = set(options) - {"include_usage", "continuous_usage_stats", "include_obfuscation"}
    if unknown or options.get("include_obfuscation"):
        refused = ", ".join(sorted(unknown)) or "include_obfuscation"
        raise BadRequest(f"stream_options: {refused} is not supported by this server.", param="stream_options")
    stop = body.values.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(word, str) and word for word in stop):
        raise BadRequest("stop must be a string or a list of strings, none of them empty.", param="stop")
    ignore_eos = body.switch("ignore_eos", False)
    # Load generators ask for an exact length with both. An answer that nothing can end early needs no other care.
    if body.whole("min_tokens", 0, 0, 1 << 31) and (stop or not ignore_eos):
        raise BadRequest("min_tokens needs ignore_eos, and no stop, on this server.", param="min_tokens")
    sampling = {
        "temperature": float(body.number("temperature", 1.0, 0, 100)),
        "top_p": float(body.number("top_p", 1.0, 0, 1)),
        "top_k": max(0, body.whole("top_k", 0, -1, 1 << 31) or 0),
        "seed": body.whole("seed", None, -(1 << 63), (1 << 63) - 1 - _MAX_CHOICES),
        "stop": tuple(stop),
        "ignore_eos": ignore_eos,
        "num_logprobs": num_logprobs,
    }
    lowest = 0 if default_max_tokens is not None else 1
    return Wish(
        sampling=sampling,
        max_tokens=body.whole(limit, default_max_tokens, lowest, 1 << 31),
        num_choices=body.whole("n", 1, 1, _MAX_CHOICES) or 1,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
    )


def _tools(body: _Body) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Return the tools on offer, none under `tool_choice` none, and the names of which one must be called."""
    tools, choice = body.values.get("tools") or [], body.values.get("tool_choice")
    if not isinstance(tools, list):
        raise BadRequest("tools must be a list.", param="tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRequest(f"tools[{i}] must be {{type: function, function: {{name: …}}}}.", param=f"tools[{i}]")
    if choice in (None, "none") or (choice == "auto" and tools):
        return (() if choice == "none" else tuple(tools)), ()
    if choice in ("auto", "required") and not tools:
        raise BadRequest("tool_choice needs tools.", param="tool_choice")
    names = [tool["function"]["name"] for tool in tools]
    if choice == "required":
        return tuple(tools), tuple(dict.fromkeys(names))
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        allowed = 'none, auto, required or {"type": "function", "function": {"name": …}}'
        raise BadRequest(f"tool_choice must be {allowed}.", param="tool_choice")
    if function["name"] not in names:
        raise BadRequest(f"tool_choice names {function['name']!r}, which is not among the tools.", param="tool_choice")
    return tuple(tools), (function["name"],)


def _wants_object(body: _Body) -> bool:
    wanted = body.values.get("response_format")
    if wanted in (None, {"type": "text"}):
        return False
    if wanted == {"type": "json_object"}:
        return True
    raise BadRequest(
        "response_format is not supported by this server beyond {type: text} and {type: json_object}.",
        param="response_format",
    )


def _message(message: Any, where: str) -> dict[str, Any]:
    """Return a message in the form that templates read: text content, call arguments as a mapping."""
    roles = ("system", "developer", "user", "assistant", "tool")
    if not isinstance(message, dict) or message.get("role") not in roles:
        raise BadRequest(f"{where} must be an object with a role of {', '.join(roles)}.", param=where)
    taken = {key: value for key, value in message.items() if value is not None}
    taken["role"] = "system" if message["role"] == "developer" else message["role"]
    taken["content"] = _text(message.get("content"), where)
    calls = taken.pop("tool_calls", None)
    if calls:
        taken["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return taken


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        kinds = {part.get("type") if isinstance(part, dict) else None for part in content}
        if not kinds <= {"text"}:
            raise BadRequest(f"{where}.content may hold text only.", param=where)
        content = "".join(str(part.get("text", "")) for part in content)
    if content is not None and not isinstance(content, str):
        raise BadRequest(f"{where}.content must be text.", param=where)
    return content or ""


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"{where} must have a function with a name.", param=where)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise BadRequest(f"{where}.function.arguments is not JSON.", param=where) from None
    if not isinstance(arguments, dict):
        raise BadRequest(f"{where}.function.arguments must be a JSON object.", param=where)
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _prompts(prompt: Any) -> tuple[str | list[int], ...]:
    """Return the prompts: one text, several, one list of ids, or several."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and _is_ids(prompt)):
        return (prompt,)
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) or _is_ids(item) for item in prompt):
        return tuple(prompt)
    raise BadRequest("prompt must be a text, a list of texts, a list of token ids or a list of those.", param="prompt")


def _is_ids(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
