"""A stage's record as one line, and the scores as the table people came for."""

from __future__ import annotations

from typing import Any

from tunesmith.artifacts import (
    Artifact,
    Checkpoint,
    Dataset,
    Release,
    Report,
    Scores,
    Speeds,
    Verdict,
    Weights,
    not_answered,
)
from tunesmith.track.console import duration


def line(stage: str, record: Artifact, *, seconds: float | None = None, unchanged: bool = False) -> str:
    """Return what a stage did, in one line."""
    mark, when = ("·", "unchanged") if unchanged else ("✓", duration(seconds or 0.0))
    return f"{mark} {stage:<9} {when:<11} {sentence(record)}"


def sentence(record: Artifact) -> str:
    """Return the few numbers of a record that matter most."""
    if isinstance(record, Dataset):
        return _dataset(record)
    if isinstance(record, Checkpoint):
        return _checkpoint(record)
    if isinstance(record, Weights):
        proof = record.proof.get("top1_agreement")
        agreement = f", agrees with base + adapter on {proof:.1%} of tokens" if isinstance(proof, float) else ""
        onto = record.proof.get("folded_onto")
        agreement += f", folded onto {onto}" if onto else ""
        return f"{record.num_bytes / 1e6:,.1f} MB in {len(record.files)} files{agreement}"
    if isinstance(record, Scores):
        shown, num_parts = _without_parts(record)
        more = f"; and {num_parts} tasks in groups" if num_parts else ""
        return "; ".join(_score(task, metrics) for task, metrics in shown.items()) + more
    if isinstance(record, Speeds):
        return "; ".join(_level(name, level) for name, level in record.levels.items())
    if isinstance(record, Verdict):
        held = sum(bool(rule["passed"]) for rule in record.rules)
        return f"{'passed' if record.passed else 'FAILED'}: {held} of {len(record.rules)} rules hold"
    if isinstance(record, Report):
        return record.path
    if isinstance(record, Release):
        return ", ".join(f"{target['target']}: {target['location']}" for target in record.targets)
    return record.kind


def _dataset(record: Dataset) -> str:
    counts = record.counts
    lost = [
        f"{counts[name]:,} {word}"
        for name, word in (
            ("quarantined", "quarantined"),
            ("duplicates", "duplicates"),
            ("overlong_dropped", "too long"),
            ("unweighted", "left out by weight"),
            ("truncated", "truncated"),
        )
        if counts.get(name)
    ]
    held_out = f" + {counts['validation']:,} held out" if counts.get("validation") else ""
    share = record.num_trained_tokens / max(1, record.num_tokens)
    rows = f"{counts['read']:,} rows → {record.num_sequences:,} sequences{held_out}"
    return f"{rows}, {record.num_tokens:,} tokens ({share:.0%} trained){'; ' + ', '.join(lost) if lost else ''}"


def _checkpoint(record: Checkpoint) -> str:
    if record.first_loss is None or record.final_loss is None:
        return f"{record.method}, trained elsewhere, {record.num_trainable_parameters:,} parameters"
    held_out = f", held out {record.validation_loss:.3f}" if record.validation_loss is not None else ""
    moved = record.num_trainable_parameters / max(1, record.num_parameters)
    losses = f"loss {record.first_loss:.3f} → {record.final_loss:.3f}{held_out}"
    shared = f" ({record.shared_tokens:.0%} shared, computed once)" if record.shared_tokens >= 0.01 else ""
    return (
        f"{record.method}, {record.num_steps:,} steps, {losses}, {record.num_trainable_parameters:,} parameters moved "
        f"({moved:.1%}), {record.tokens_per_second:,.0f} tokens/s{shared}"
    )


def _score(task: str, metrics: dict[str, dict[str, Any]]) -> str:
    name, values = next(iter(metrics.items()))
    base, tuned = (_show(values.get(which), values) for which in ("base", "tuned"))
    lost = f" ({not_answered(values)})" if not_answered(values) else ""
    return f"{task} {name} {base + ' → ' if values.get('base') is not None else ''}{tuned}{lost}"


def _level(name: str, level: dict[str, Any]) -> str:
    failed = f", {level['num_failed']} failed" if level.get("num_failed") else ""
    ttft, speed = level.get("ttft_p95_ms"), level.get("output_tokens_per_second")
    if ttft is None or speed is None:
        return f"{name}: nothing timed{failed}"
    return f"{name}: TTFT p95 {ttft:,.0f} ms, {speed:,.0f} tokens/s{failed}"


def comparison(scores: Scores) -> list[tuple[str, str, str, str, str]]:
    """Return (metric, base, tuned, change, verdict) rows for a table, every metric of every task that stands alone."""
    rows = []
    shown, _ = _without_parts(scores)
    for task, metrics in shown.items():
        for metric, values in metrics.items():
            base, tuned = values.get("base"), values.get("tuned")
            change = ""
            if isinstance(base, float | int) and isinstance(tuned, float | int):
                change = f"{100 * (tuned - base) / _maximum(values):+.1f}"
            cells = (f"{task}.{metric}", _show(base, values), _show(tuned, values), change)
            rows.append((*cells, "; ".join(filter(None, [_verdict(values), _wins(values), not_answered(values)]))))
    return rows


def _without_parts(scores: Scores) -> tuple[dict[str, dict[str, dict[str, Any]]], int]:
    """Return the tasks that are not part of another one (MMLU has 57 parts), and how many are."""
    shown = {t: m for t, m in scores.tasks.items() if not any(values.get("part_of") for values in m.values())}
    return shown, len(scores.tasks) - len(shown)


def _verdict(values: dict[str, Any]) -> str:
    return str(values.get("verdict_in_words") or values.get("verdict") or "")


def _wins(values: dict[str, Any]) -> str:
    """Return how a judge decided."""
    if "num_wins" not in values:
        return ""
    return f"{values['num_wins']:,} won, {values['num_ties']:,} tied, {values['num_losses']:,} lost"


def _maximum(values: dict[str, Any]) -> float:
    return float(values.get("maximum") or 1.0)


def _show(value: Any, values: dict[str, Any]) -> str:
    if not isinstance(value, float | int):
        return "–"
    return f"{value:.1%}" if _maximum(values) == 1.0 else f"{value:.1f}"


def comparison_table(scores: Scores) -> str:
    """Return the base → tuned table as plain aligned text."""
    rows = [("", "base", "tuned", "change", ""), *comparison(scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for name, base, tuned, difference, verdict in rows:
        numbers = f"{base:>{widths[1]}}  {tuned:>{widths[2]}}  {difference:>{widths[3]}}"
        lines.append(f"  {name:<{widths[0]}}  {numbers}  {verdict}".rstrip())
    _, num_parts = _without_parts(scores)
    if num_parts:
        lines.append(f"  and {num_parts} tasks that are parts of these groups: see the report")
    return "\n".join(lines)
