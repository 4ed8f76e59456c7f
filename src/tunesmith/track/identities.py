"""trackers.json: under which names a run's mirrors know it, so that a restarted training goes on in the same place.

Each name is chosen and written here before the tracker hears of it: a crash between the two leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from typing import Any

from tunesmith.store import files
from tunesmith.store.run_dir import RunDir


def identity(run_dir: RunDir, mirror: str, place: str) -> str:
    """Return the name of this run in a mirror, the same every time.

    Args:
        mirror: `mlflow`, `wandb`.
        place: where the mirror writes (server, experiment, project), as written in the recipe; another place, another
            name.
    """
    document = _read(run_dir)
    known = document.get(mirror)
    if isinstance(known, dict) and known.get("place") == place and isinstance(known.get("id"), str):
        return str(known["id"])
    name = secrets.token_hex(8)
    document[mirror] = {"id": name, "place": place}
    files.write_json(run_dir.trackers, document)
    return name


def _read(run_dir: RunDir) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(run_dir.trackers.read_text(encoding="utf-8"))
        return document if isinstance(document, dict) else {}
    return {}
