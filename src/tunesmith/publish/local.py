"""Publish into a directory: `DIRECTORY/NAME/`, there as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import PublishError
from tunesmith.publish.package import MANIFEST, Package, manifest_bytes
from tunesmith.store import files

_LINK_FROM_BYTES = 1 << 20


def deliver(package: Package, directory: str) -> dict[str, Any]:
    """Put a package into a directory, replacing an earlier one of the same name.

    Large files are hard links where the file system allows it; small ones are copies, so that editing a published
    configuration never reaches back into the run.

    Raises:
        PublishError: the place is taken by something else, or cannot be written.
    """
    target = Path(directory) / package.name
    told = {
        "target": "local",
        "location": str(target),
        "num_files": len(package.files),
        "num_bytes": package.num_bytes,
    }
    try:
        _refuse_foreign(target)
        if _is_there(package, target):
            return told | {"unchanged": True}
        with files.writing_directory(target) as temporary:
            for name, source in package.files.items():
                if name != MANIFEST:
                    _place(source, temporary / name)
            (temporary / MANIFEST).write_bytes(manifest_bytes(package.manifest))
    except OSError as error:
        do = "check the path, its rights and the free space, or change `publish.local`"
        raise PublishError(f"cannot write: {error.strerror or error}", where=str(target), do=do) from None
    return told | {"unchanged": False}


def _place(source: Path, target: Path) -> None:
    if source.stat().st_size >= _LINK_FROM_BYTES:
        files.link_or_copy(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _refuse_foreign(target: Path) -> None:
    """Never replace what was not published from here: a directory without our manifest is someone's own."""
    if target.is_dir() and not target.is_symlink() and (not any(target.iterdir()) or _manifest(target) is not None):
        return
    if target.exists() or target.is_symlink():
        do = "move it away, or change `publish.local` or `name`"
        raise PublishError("something else is there, without a manifest of ours", where=str(target), do=do)


def _manifest(target: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((target / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and "files" in document else None


def _is_there(package: Package, target: Path) -> bool:
    """Whether exactly this package is there, with its content intact."""
    if _manifest(target) != package.manifest:
        return False
    there = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    return there == set(package.files) and all(
        (target / name).samefile(package.files[name]) or files.sha256(target / name) == facts["sha256"]
        for name, facts in package.manifest["files"].items()
    )
