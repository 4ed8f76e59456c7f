"""The last look before anything leaves: no file of a package may hold a credential."""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import PublishError
from tunesmith.publish.package import Package
from tunesmith.recipe.secrets import find_secrets

_LARGEST_HEADER_BYTES = 16 << 20


def refuse_secrets(package: Package) -> None:
    """Read every file but the weights themselves (their headers are read) and look for credentials.

    Raises:
        PublishError: a file holds one; its kind, file and line are named, its value never.
    """
    found = [(name, finding) for name, path in package.files.items() for finding in find_secrets(_text(path))]
    if not found:
        return
    name, first = found[0]
    others = f", and {len(found) - 1} more" if len(found) > 1 else ""
    raise PublishError(
        f"{first.kind} stands in line {first.line} of {name}{others}: nothing was sent",
        where=str(package.files[name]),
        do="remove it from the recipe or from the base model's files, and revoke it: it may have been seen already",
    )


def _text(path: Path) -> str:
    """Return what a file says; of weights the header, which may carry any text under `__metadata__`."""
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return file.read().decode("utf-8", "replace")
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, _LARGEST_HEADER_BYTES)).decode("utf-8", "replace")
