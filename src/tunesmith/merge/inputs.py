"""Whether the base model's files are what they should be, as far as anything says what that is.

Lengths and headers are always checked. A flipped bit is found where a hash is known: by the manifest of a merged model,
by the Hub's cache (files of the cache are named by their SHA-256, downloads into a directory note it), or by what the
pipeline remembered when it first read them. Without any of these a flipped bit is a weight like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.hardware import num_cpus
from tunesmith.model.headers import read_headers, weight_files
from tunesmith.store import files

_SHA256 = re.compile(r"[0-9a-f]{64}")

Known = Callable[[Path], str | None]


def verify(directory: Path, remembered: Known, *, advance: Callable[[int], None] = lambda num_bytes: None) -> int:
    """Hash the weight files for which a hash is known.

    Args:
        remembered: what else knows a file's hash.
        advance: called with the size of each file that was hashed.

    Returns:
        The number of files that were hashed.

    Raises:
        ModelError: a file is missing, cut short or damaged; it is named.
    """
    read_headers(directory)
    manifest = _manifest(directory)
    expected: dict[Path, tuple[str, str]] = {}
    for file in weight_files(directory):
        found = _known(file, manifest) or _or_none(remembered(file), "it had when it was first read")
        if found:
            expected[file] = found
    with ThreadPoolExecutor(max(1, min(num_cpus(), len(expected)))) as pool:
        for file, digest in zip(expected, pool.map(files.sha256, expected), strict=True):
            told, by = expected[file]
            if digest != told:
                what = f"the file is damaged: its SHA-256 is {digest[:16]}…, and {told[:16]}… is the one {by}"
                raise ModelError(what, where=str(file), do="copy the checkpoint again")
            advance(file.stat().st_size)
    return len(expected)


def _known(file: Path, manifest: dict[str, str]) -> tuple[str, str] | None:
    if file.name in manifest:
        return manifest[file.name], "in manifest.json beside it"
    blob = file.resolve().name
    if file.is_symlink() and _SHA256.fullmatch(blob):
        return blob, "that the Hub's cache names it by"
    note = file.parent / ".cache/huggingface/download" / f"{file.name}.metadata"
    if note.is_file():
        # https://github.com/huggingface/huggingface_hub/blob/v1.0.0/src/huggingface_hub/_local_folder.py: commit, etag,
        # time; the etag of a large file is its SHA-256. A file that was changed on purpose is newer than its note.
        lines = note.read_text(errors="replace").split()
        if len(lines) >= 2 and _SHA256.fullmatch(lines[1]) and file.stat().st_mtime <= note.stat().st_mtime + 1:
            return lines[1], "that the Hub gave when it was downloaded"
    return None


def _or_none(digest: str | None, by: str) -> tuple[str, str] | None:
    return (digest, by) if digest else None


def _manifest(directory: Path) -> dict[str, str]:
    """Return the hashes that a merge wrote beside the weights."""
    try:
        document = json.loads((directory / "manifest.json").read_bytes())
        return {str(name): str(digest) for name, digest in document["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
