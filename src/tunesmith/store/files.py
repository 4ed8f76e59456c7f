"""Files that are either whole or not there.

Every write goes to a temporary name in the same directory, is flushed to the disk and renamed into place: a crash
leaves the old content or the new one, never a mixture. What a crash may lose is the write that was under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content atomically, making its directory when needed."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Like `write_bytes`, in UTF-8; what UTF-8 cannot hold (half of a surrogate pair) becomes a question mark."""
    write_bytes(path, content.encode(errors="replace"))


def write_json(path: Path, document: Any) -> None:
    """Like `write_text`, indented and with a final newline."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, it becomes `path`; otherwise it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # not a name that nobody has seen
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        flush(temporary)
        temporary.replace(path)
        flush_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; when the block ends well, it replaces `path` as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                flush(file)
        replace_directory(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_directory(finished: Path, path: Path) -> None:
    """Let a directory beside `path`, whose files are on the disk, take its place as a whole."""
    finished.chmod(0o755)
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        path.replace(old / path.name)
        finished.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        finished.replace(path)
    flush_directory(path.parent)


def flush(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Force a directory's entries to the disk, where the system allows it."""
    with contextlib.suppress(OSError):
        flush(path)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(document: Any) -> str:
    """Return a short hash (16 hexadecimal digits) of JSON-ready data, independent of key order."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # Text read from JSON may hold half of a surrogate pair.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class HashCache:
    """SHA-256 of files, remembered by (path, size, modification time, inode) between commands.

    Args:
        path: JSON file that holds the memory; a broken or missing one is an empty memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(path.read_text())
            self._known = document if isinstance(document, dict) else {}

    def known(self, file: Path) -> str | None:
        """Return the SHA-256 of an unchanged file that was hashed before, without reading it."""
        known = self._known.get(str(file.resolve()))
        if isinstance(known, list) and known[:3] == _state(file) and len(known) == 4:
            return str(known[3])
        return None

    def sha256(self, file: Path) -> str:
        """Return the file's SHA-256, reading it only when it changed since the last time."""
        known = self.known(file)
        if known is not None:
            return known
        state, digest = _state(file), sha256(file)
        self._known[str(file.resolve())] = [*state, digest]
        with contextlib.suppress(OSError):
            write_json(self._path, self._known)
        return digest


def _state(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` by a hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """Link or copy every file of a directory into another, atomically as a whole."""
    with writing_directory(target) as temporary:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                link_or_copy(file, temporary / file.relative_to(source))
