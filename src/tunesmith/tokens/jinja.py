"""Chat templates rendered as transformers renders them, character by character, without transformers.

The environment follows `render_jinja_template` of
https://github.com/huggingface/transformers/blob/v5.2.0/src/transformers/utils/chat_template_utils.py: an immutable
sandbox, trimmed blocks, loop controls, its own `tojson`, `raise_exception`, `strftime_now`, and the `{% generation %}`
tag that marks what an assistant says. `tests/parity/test_chat_templates.py` holds the two together.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import cache, lru_cache
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Span = tuple[int, int]  # characters [start, end) of a rendered text

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_DICT_ATTRIBUTES = frozenset(dir(dict))


class TemplateProblem(Exception):
    """A template refused a conversation (`raise_exception`) or stumbled over it."""


class _Recording:
    """What one rendering has written so far, and where its `{% generation %}` blocks stand in it."""

    def __init__(self) -> None:
        self.num_characters = 0
        self.spans: list[Span] = []


_recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)
_fixed_time: ContextVar[datetime | None] = ContextVar("fixed_time", default=None)


@contextlib.contextmanager
def at_time(moment: datetime) -> Iterator[None]:
    """Let templates that write the date write this one while the block runs."""
    token = _fixed_time.set(moment)
    try:
        yield
    finally:
        _fixed_time.reset(token)


def render_with_spans(
    template_text: str,
    special_tokens: Mapping[str, str],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
) -> tuple[str, list[Span]]:
    """Return the rendered text and the spans of its `{% generation %}` blocks.

    Raises:
        TemplateProblem: the template raised an exception of its own or an error while rendering.
    """
    from jinja2 import TemplateError

    recording = _Recording()
    pieces: list[str] = []
    token = _recording.set(recording)
    try:
        template = compile_template(template_text)
        for piece in template.generate(
            **special_tokens,
            messages=[_as_transformers_passes_it(message) for message in messages],
            tools=[_plain(tool) for tool in tools] or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        ):
            pieces.append(piece)
            recording.num_characters += len(piece)
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise TemplateProblem(f"the chat template says: {str(error) or type(error).__name__}") from None
    finally:
        _recording.reset(token)
    return "".join(pieces), recording.spans


@lru_cache(maxsize=64)
def compile_template(text: str) -> Template:
    """Compile a template once.

    Raises:
        jinja2.TemplateSyntaxError: the text is not a template.
    """
    return _environment().from_string(text)


@cache
def _environment() -> Environment:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}…{% endgeneration %}`: what the assistant says."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Parser) -> nodes.CallBlock:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            block = nodes.CallBlock(self.call_method("_mark"), [], [], body)
            block.set_lineno(line)
            return block

        def _mark(self, caller: Callable[[], str]) -> str:
            text = caller()
            recording = _recording.get()
            if recording is not None:
                recording.spans.append((recording.num_characters, recording.num_characters + len(text)))
            return text

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class SandboxedEnvironment(ImmutableSandboxedEnvironment):
        """Goes the short way where the result is the same: templates are rendered millions of times."""

        def getattr(self, obj: Any, attribute: str) -> Any:
            if type(obj) is not dict or attribute in _DICT_ATTRIBUTES:
                return super().getattr(obj, attribute)
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
            if type(__obj) is MethodType and __obj.__func__ is GenerationTag._mark:
                return __obj(kwargs["caller"])  # ours: safe, and asks for neither context nor environment
            return super().call(__context, __obj, *args, **kwargs)

    environment = SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: (_fixed_time.get() or datetime.now()).strftime(format)
    return environment


def _as_transformers_passes_it(message: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None and give reasoning under every name that templates read."""
    given = {key: value if type(value) is str else _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING_FIELDS if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Copy JSON values, so that no template can hold on to what it was given."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
