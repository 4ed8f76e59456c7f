"""What lies beside the weights of a checkpoint: tokenizer, chat template, generation settings.

A trained model is served with the very template it was trained on, and stops where it learned to stop.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.store import files

TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json",
)  # fmt: skip


def write_companions(base: Path, target: Path, *, template: str, end_ids: tuple[int, ...]) -> None:
    """Copy a base model's companions into a directory, with the template and the end tokens of the training.

    Args:
        template: text of the chat template that was trained on; it takes the place of the base model's.
        end_ids: tokens that end an answer; the generation settings get those they lack.
    """
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    for code in base.glob("*.py"):
        shutil.copyfile(code, target / code.name)
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        document = _read(settings)
        if document.pop("chat_template", None) is not None:  # the file below holds it; two could differ
            files.write_json(settings, document)
    files.write_text(target / TEMPLATE, template)
    files.write_json(target / GENERATION, _generation(base, end_ids))


def _generation(base: Path, end_ids: tuple[int, ...]) -> dict[str, Any]:
    document = _read(base / GENERATION) if (base / GENERATION).is_file() else {}
    known = document.get("eos_token_id")
    if known is None:
        known = _read(base / "config.json").get("eos_token_id")
    ids = list(known) if isinstance(known, list) else [known] if isinstance(known, int) else []
    ids += [i for i in end_ids if i not in ids]
    if ids:
        document["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    return document


def copy_companions(source: Path, target: Path) -> None:
    """Copy what `write_companions` wrote."""
    for name in (*_TOKENIZER_FILES, TEMPLATE, GENERATION):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for code in source.glob("*.py"):
        shutil.copyfile(code, target / code.name)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"the file cannot be read: {error}", where=str(path)) from None
    return document if isinstance(document, dict) else {}
