"""Chat templates: the model's own, one of the named ones, or a file.

The named templates follow the formats that the families' makers published, and mark what the assistant says with
`{% generation %}`. Each lies in `named/NAME.jinja`, readable as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tunesmith.errors import DataError, nearest
from tunesmith.tokens.tokenizer import ChatTokenizer

_NAMED = Path(__file__).parent / "named"
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

# The token that ends a turn of each named template. The tokenizer must know it as one token.
_TURN_ENDS = {
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "phi": "<|end|>",
    "qwen": "<|im_end|>",
}
# Not in every vocabulary of the family under one id, so read from the tokenizer: the end-of-sequence token.
_ENDS_WITH_EOS = ("alpaca", "mistral")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and the special tokens it may name (`bos_token`, `eos_token`, …)."""

    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    name: str = "model"

    @cached_property
    def has_generation_markers(self) -> bool:
        return _MARKER.search(self.text) is not None

    @cached_property
    def fingerprint(self) -> str:
        from tunesmith.store import files

        return files.fingerprint([self.text, dict(self.special_tokens)])


def named_templates() -> list[str]:
    """Return the names a recipe may give as `data.chat_template`."""
    return sorted(file.stem for file in _NAMED.glob("*.jinja"))


def template_for(tokenizer: ChatTokenizer, chat_template: str) -> ChatTemplate:
    """Return the template a recipe asks for.

    Args:
        chat_template: `model`, a name out of `named_templates()`, or the path of a Jinja file.

    Raises:
        DataError: there is no such template, it is not valid Jinja, or the tokenizer has no token that ends a turn.
    """
    if chat_template == "model":
        text, where = _of_model(tokenizer), str(tokenizer.path)
    elif chat_template in named_templates():
        text, where = (_NAMED / f"{chat_template}.jinja").read_text(encoding="utf-8"), chat_template
        _check_turn_end(tokenizer, chat_template)
    else:
        text, where = _of_file(chat_template), chat_template
    _check_syntax(text, where)
    return ChatTemplate(text, tokenizer.special_tokens, chat_template)


def _of_model(tokenizer: ChatTokenizer) -> str:
    templates = tokenizer.model_templates
    # A model with several templates keeps the one that can show tools under this name; it shows plain chats as well.
    chosen = templates.get("tool_use") or tokenizer.model_template
    if chosen is None:
        do = f"set data.chat_template to a name ({', '.join(named_templates())}) or to a Jinja file"
        raise DataError("the model has no chat template", where=str(tokenizer.path), do=do)
    return chosen


def _of_file(chat_template: str) -> str:
    path = Path(chat_template)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        near = nearest(chat_template, [*named_templates(), "model"])
        do = f"give `model`, one of {', '.join(named_templates())}, or a Jinja file"
        hint = f"did you mean {near!r}? Else {do}" if near else do
        reason = "is neither a known name nor a file" if not path.exists() else f"cannot be read: {error}"
        raise DataError(f"the chat template {chat_template!r} {reason}", where="data.chat_template", do=hint) from None
    if text.startswith("\ufeff"):  # every conversation would begin with it, unseen
        what = "the chat template begins with a byte-order mark, which would become part of every conversation"
        raise DataError(what, where=str(path), do="save it as UTF-8 without a byte-order mark")
    return text


def _check_turn_end(tokenizer: ChatTokenizer, name: str) -> None:
    end = tokenizer.special_tokens.get("eos_token") if name in _ENDS_WITH_EOS else _TURN_ENDS[name]
    if end is not None and tokenizer.token_id(end) is not None:
        return
    fitting = [other for other, text in _TURN_ENDS.items() if tokenizer.token_id(text) is not None]
    fitting += list(_ENDS_WITH_EOS) if "eos_token" in tokenizer.special_tokens else []
    what = f"the template {name!r} ends a turn with {end or 'eos_token'}, for which the tokenizer has no token"
    raise DataError(
        what, where=str(tokenizer.path), do=f"templates that fit this tokenizer: {', '.join(fitting) or 'none'}"
    )


def _check_syntax(text: str, where: str) -> None:
    from jinja2 import TemplateSyntaxError

    from tunesmith.tokens.jinja import compile_template

    try:
        compile_template(text)
    except TemplateSyntaxError as error:
        raise DataError(
            f"the chat template is not valid Jinja: {error.message}", where=f"{where}:{error.lineno}"
        ) from None
