"""A checkpoint's tokenizer with what chat needs to know about it.

Reads `tokenizer.json` through the `tokenizers` library, without transformers. Special tokens are never added by
`encode`; a chat template writes them itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, missing_extra

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTokenizer:
    """Text to ids and back.

    Attributes:
        path: the directory it came from.
        eos_ids: every id that ends an answer, from generation_config.json, config.json and the tokenizer's `eos_token`.
        bos_id, pad_id: None where the tokenizer has none.
        vocab_size: ids stay below it.
        special_tokens: what a chat template sees as `bos_token`, `eos_token`, …
        model_template: the model's own chat template, or None; `model_templates` holds all of them by name.
    """

    def __init__(self, path: Path, backend: Tokenizer, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.special_tokens = _special_tokens(path, config)
        self._backend = _plain(backend)
        self.bos_id = self.token_id(self.special_tokens.get("bos_token"))
        self.pad_id = self.token_id(self.special_tokens.get("pad_token"))
        self.eos_ids = self._eos_ids()
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.model_templates = _model_templates(path, config)

    @property
    def model_template(self) -> str | None:
        return self.model_templates.get("default") or next(iter(self.model_templates.values()), None)

    @property
    def backend(self) -> Tokenizer:
        """The library's tokenizer, adding nothing and changing nothing; read it, do not set it."""
        return self._backend

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that changes ids: vocabulary, merges, added tokens, and the tokens with a role."""
        from tunesmith.store import files

        content = self._backend.to_str()
        return files.fingerprint([content, self.special_tokens, sorted(self.eos_ids)])

    @cached_property
    def special_texts(self) -> dict[str, int]:
        """Added tokens that are special, by their text."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    @cached_property
    def id_limit(self) -> int:
        """One more than the largest id; above `vocab_size` where the vocabulary has holes."""
        return max([*self._backend.get_vocab(with_added_tokens=True).values(), -1]) + 1

    def token_id(self, text: str | None) -> int | None:
        """Return the id of a token given by its exact text, or None."""
        found: int | None = self._backend.token_to_id(text) if text is not None else None
        return found

    def token_text(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it."""
        return str(self._backend.id_to_token(token_id))

    def encode(self, text: str) -> list[int]:
        """Return ids; tokens such as `<|im_end|>` written in the text are recognised, none is added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts with the tokenizer's own threads."""
        return [list(encoding.ids) for encoding in self.encodings(texts)]

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """Like `encode_batch`, with the characters that each token stands for."""
        encoded: list[Encoding] = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return encoded

    def encoding(self, text: str) -> Encoding:
        """Like `encode`, with the characters that each token stands for."""
        return self._backend.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of ids."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def _eos_ids(self) -> tuple[int, ...]:
        found: list[int] = []
        for name in ("generation_config.json", "config.json"):
            value = _read_json(self.path / name).get("eos_token_id")
            found += [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
        own = self.token_id(self.special_tokens.get("eos_token"))
        found += [own] if own is not None else []
        return tuple(dict.fromkeys(found))


def load_tokenizer(path: Path) -> ChatTokenizer:
    """Read the tokenizer of a checkpoint directory.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    config = _read_json(path / "tokenizer_config.json")
    file = path / "tokenizer.json"
    if not file.exists():
        return ChatTokenizer(path, _converted(path), config)
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a broken file
        raise DataError(f"the tokenizer cannot be read: {error}", where=str(file)) from None
    return ChatTokenizer(path, backend, config)


def _converted(path: Path) -> Tokenizer:
    """Convert a tokenizer that has no tokenizer.json, through transformers."""
    if not any(path.glob("*token*")) and not any(path.glob("vocab*")):
        do = "give a checkpoint directory with tokenizer.json"
        raise DataError("there is no tokenizer in this directory", where=str(path), do=do)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_extra(
            "transformers", "train", needed_for=f"a tokenizer without tokenizer.json ({path})"
        ) from None
    try:
        backend: Tokenizer = AutoTokenizer.from_pretrained(str(path)).backend_tokenizer
    except Exception as error:  # noqa: BLE001 - whatever the conversion meets is about this directory
        raise DataError(f"the tokenizer cannot be converted: {error}", where=str(path)) from None
    return backend


def _plain(backend: Tokenizer) -> Tokenizer:
    """Switch off what would change ids or hide characters: truncation, padding, trimmed offsets."""
    from tokenizers import processors

    backend.no_truncation()
    backend.no_padding()
    # Some byte-level post-processors (Llama 3) take white space out of a token's characters: it would leave the loss.
    # Post-processors only add special tokens otherwise, and none is wanted.
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _special_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    listed = _read_json(path / "special_tokens_map.json") | config
    texts: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        value = listed.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts


def _model_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return the model's templates by name; files beside the configuration win, as in transformers."""
    templates: dict[str, str] = {}
    given = config.get("chat_template")
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        templates = {e["name"]: e["template"] for e in given if isinstance(e, dict) and {"name", "template"} <= set(e)}
    file = path / "chat_template.jinja"
    if file.exists():
        templates["default"] = file.read_text(encoding="utf-8")
    for extra in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[extra.stem] = extra.read_text(encoding="utf-8")
    return templates


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path)) from None
    return document if isinstance(document, dict) else {}
