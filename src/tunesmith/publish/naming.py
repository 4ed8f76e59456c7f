"""Names that may be shown to others: Hub ids as they are, of paths only the last part."""

from __future__ import annotations

import re
from pathlib import Path


def is_hub_id(name: str) -> bool:
    """Whether a name is `owner/name` on the Hub and not a path of this machine."""
    looks = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None
    is_file = Path(name).suffix in (".json", ".jsonl", ".csv", ".parquet", ".gz")
    return looks and not is_file and not Path(name).exists()


def public_name(name: str) -> str:
    """Return a Hub id as it is, and only the last part of a path: directories are nobody else's business."""
    return name if is_hub_id(name) or name.startswith("run:") else Path(name).name or name
