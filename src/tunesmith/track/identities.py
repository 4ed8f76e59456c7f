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


def read(run_dir: RunDir) -> dict[str, Any]:
    """Return what is known; nothing when the file is missing or broken."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(run_dir.trackers.read_text(encoding="utf-8"))
        return document if isinstance(document, dict) else {}
    return {}


def identity(run_dir: RunDir, mirror: str, place: str) -> tuple[str, bool]:
    """Return the name of this run in a mirror, and whether it was there before.

    Args:
        mirror: `mlflow`, `wandb`.
        place: where the mirror writes (server, experiment, project), as written in the recipe; another place, another
            name.
    """
    document = read(run_dir)
    known = document.get(mirror)
    if isinstance(known, dict) and known.get("place") == place and isinstance(known.get("id"), str):
        return known["id"], True
    name = secrets.token_hex(8)
    document[mirror] = {"id": name, "place": place, "sent_step": -1}
    files.write_json(run_dir.trackers, document)
    return name, False


def note_sent_step(run_dir: RunDir, step: int | None) -> None:
    """Remember, before lines are dropped from metrics.jsonl, up to which step the mirrors were given numbers."""
    document = read(run_dir)
    known = [entry for entry in document.values() if isinstance(entry, dict)]
    if step is None or all(entry.get("sent_step", -1) >= step for entry in known):
        return
    for entry in known:
        entry["sent_step"] = max(entry.get("sent_step", -1), step)
    files.write_json(run_dir.trackers, document)


def sent_step(run_dir: RunDir, mirror: str) -> int:
    """Return the step up to which a mirror was given numbers by earlier processes; -1 for nothing."""
    entry = read(run_dir).get(mirror)
    return int(entry.get("sent_step", -1)) if isinstance(entry, dict) else -1
