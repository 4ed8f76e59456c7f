"""What the page shows, in short: Markdown for comments on a change and for job summaries of a CI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.recipe.adapter_facts import adapter_sentence
from tunesmith.recipe.environment import redact
from tunesmith.report import results, speeds, wording
from tunesmith.report.findings import Findings
from tunesmith.track.console import duration

_MAX_METRICS = 60
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def summary(found: Findings) -> str:
    """Return the text. Whatever a recipe or a model said is escaped: it stays text."""
    headline = results.headline(found)
    parts = [f"## {_escaped(headline['title'])}", _status(headline["status"]), *map(_escaped, found.problems)]
    parts += [_gate(results.gate(found)), _results(results.evaluation(found)), _speed(speeds.speed(found))]
    parts.append(_trained(found))
    return redact(wording.printable("\n\n".join(part for part in parts if part))) + "\n"


def _status(status: dict[str, Any]) -> str:
    mark = {"good": "✅", "bad": "❌"}.get(status["kind"], "")
    return f"{mark} **{_escaped(status['word'])}** · {_escaped(status['text'])}".strip()


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    rows = [("✅" if r["passed"] else "❌", f"`{r['rule'].replace('`', '')}`", r["evidence"]) for r in gate["rules"]]
    return _table(("", "rule", "evidence"), rows, code=(1,))


def _results(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return ""
    rows = [
        (
            f"{group['name']}: {row['name']}",
            row["base"] or "–",
            row["tuned"],
            " ".join(filter(None, (row["difference"], f"({row['interval']})" if row["interval"] else ""))) or "–",
            "; ".join(
                filter(None, (f"{row['mark']} {row['in_words'] or row['verdict'] or '–'}".strip(), row["not_answered"]))
            ),
        )
        for group in evaluation["groups"]
        for row in group["rows"]
        if not row["part_of"]
    ]
    told = _table(("metric", "base", "tuned", "difference (95 %)", "verdict"), rows[:_MAX_METRICS])
    tally = " · ".join(f"{entry['mark']} {entry['count']} {entry['verdict']}" for entry in evaluation["tally"])
    more = f"\n\n… and {len(rows) - _MAX_METRICS} more metrics in the report" if len(rows) > _MAX_METRICS else ""
    return f"{tally}\n\n{told}{more}" if tally else told + more


def _speed(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return ""
    rows = [
        (
            name,
            wording.milliseconds(level.get("ttft_p95_ms")),
            wording.milliseconds(level.get("e2e_p95_ms")),
            wording.number(level.get("output_tokens_per_second")),
            wording.number(level.get("num_failed")),
        )
        for name, level in speed["levels"]
    ]
    return _table(("load", "first token p95", "answer p95", "tokens/s", "failed"), rows)


def _trained(found: Findings) -> str:
    asked = found.evaluated()
    if asked:
        return _escaped(
            f"evaluation of {' beside '.join(asked[which] for which in ('tuned', 'base') if which in asked)}"
        )
    train, made, data = found.recipe.train, found.checkpoint, found.dataset
    method = train.method if train.method == "full" else f"{train.method} ({adapter_sentence(train.lora)})"
    told = [f"{train.objective} of {found.recipe.model.name_or_path} with {method}"]
    if found.recipe.tuned is not None:
        told = [f"{found.recipe.tuned}, made of {found.recipe.model.name_or_path} elsewhere"]
    if data:
        told.append(
            f"{wording.number(data.counts.get('train'))} rows, {wording.count(data.num_tokens)} tokens an epoch"
        )
    if made and made.num_steps:
        losses = f"loss {wording.number(made.first_loss)} → {wording.number(made.final_loss)}"
        told.append(f"{wording.number(made.num_steps)} steps in {duration(made.seconds)}, {losses}")
    told.append(f"run {found.run.get('id') or found.run_dir.path.resolve().name}")
    return _escaped(" · ".join(told))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], code: tuple[int, ...] = ()) -> str:
    lines = [_row(head), _row(["---"] * len(head))]
    for row in rows:
        # Inside code nothing is special but the bar, which ends a cell even there.
        lines.append(_row([cell.replace("|", "\\|") if i in code else _escaped(cell) for i, cell in enumerate(row)]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
