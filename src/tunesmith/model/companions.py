"""What lies beside the weights of a checkpoint: tokenizer, chat template, generation settings.

A trained model is served with the very template it was trained on, and stops where it learned to stop.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.store import files

TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
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


def copy_companions(sources: Sequence[Path], target: Path) -> bool:
    """Copy tokenizer, chat template, generation settings and code, each from the first directory that has it.

    A tokenizer's own template goes with it.

    Returns:
        Whether there are both a tokenizer and a template now.
    """
    for source in reversed(sources):
        for code in source.glob("*.py"):
            shutil.copyfile(code, target / code.name)
    generation = next((s / GENERATION for s in sources if (s / GENERATION).is_file()), None)
    if generation is not None:
        shutil.copyfile(generation, target / GENERATION)
    owner = next((source for source in sources if _has_tokenizer(source)), None)
    if owner is None:
        return False
    for name in _TOKENIZER_FILES:
        if (owner / name).is_file():
            shutil.copyfile(owner / name, target / name)
    others = [source for source in sources if source != owner]
    for source in (owner, *others):
        named = source / TEMPLATES
        if (source / TEMPLATE).is_file():
            shutil.copyfile(source / TEMPLATE, target / TEMPLATE)
        elif template := _told_template(source):
            if source != owner:
                files.write_text(target / TEMPLATE, template)
        elif not named.is_dir():
            continue
        if named.is_dir():
            shutil.copytree(named, target / TEMPLATES, dirs_exist_ok=True)
        return True
    return False


def _has_tokenizer(directory: Path) -> bool:
    return any(
        (directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    )


def _told_template(directory: Path) -> str:
    """Return the chat template in a tokenizer's configuration; of several, the first."""
    settings = directory / "tokenizer_config.json"
    given = _read(settings).get("chat_template") if settings.is_file() else None
    if isinstance(given, list):
        given = next((entry.get("template") for entry in given if isinstance(entry, dict)), None)
    return given if isinstance(given, str) else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"the file cannot be read: {error}", where=str(path)) from None
    return document if isinstance(document, dict) else {}
