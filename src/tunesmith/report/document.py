"""What the page shows, for machines: every record of the run in one JSON document, without secrets."""

from __future__ import annotations

import json
import math
from typing import Any

from tunesmith.artifacts import Artifact
from tunesmith.recipe.environment import redact
from tunesmith.report.findings import Findings

SCHEMA_VERSION = 1


def document(found: Findings) -> str:
    """Return the document as text. Numbers that are not finite are null: JSON has no others."""
    records = {
        "data": found.dataset,
        "train": found.checkpoint,
        "merge": found.weights,
        "evaluate": found.scores,
        "bench": found.speeds,
        "gate": found.verdict,
    }
    told = {
        "schema_version": SCHEMA_VERSION,
        "name": found.recipe.name,
        "run": found.run.get("id") or found.run_dir.path.resolve().name,
        "created": found.run.get("created"),
        "passed": found.verdict.passed if found.verdict else None,
        "problems": found.problems,
        "stages": found.stages(),
        "records": {stage: _plain(record) for stage, record in records.items() if record is not None},
        "curves": {name: _ends(series.steps, series.values) for name, series in found.series.items()},
        "decisions": found.run.get("decisions") or [],
        "lineage": found.run.get("lineage") or {},
    }
    return redact(json.dumps(_finite(told), indent=2, ensure_ascii=False)) + "\n"


def _plain(record: Artifact) -> dict[str, Any]:
    return {key: value for key, value in record.to_json().items() if key not in ("kind", "schema_version")}


def _ends(steps: list[int], values: list[float]) -> dict[str, Any]:
    """Return a curve in five numbers; metrics.jsonl has them all."""
    known = [value for value in values if math.isfinite(value)]
    return {
        "num_values": len(values),
        "last_step": steps[-1] if steps else None,
        "first": known[0] if known else None,
        "last": known[-1] if known else None,
        "lowest": min(known, default=None),
        "highest": max(known, default=None),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
