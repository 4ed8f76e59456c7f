"""The sections on what came out: headline, comparison, examples, speed, gate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from tunesmith.artifacts import Scores, Speeds
from tunesmith.recipe.environment import redact
from tunesmith.report import wording
from tunesmith.report.examples import choose, kind_names
from tunesmith.report.figures.bars import Bar, comparison, throughput
from tunesmith.report.figures.latency import Level, latency_chart
from tunesmith.report.findings import Findings, request_times

Context = dict[str, Any]

_MARKS = {"improved": "▲", "regressed": "▼", "cannot tell": "≈"}


def headline(found: Findings) -> Context:
    """Return title, verdict and the number that matters most."""
    return {
        "title": found.recipe.report.title or found.recipe.name,
        "status": _status(found),
        "hero": _hero(found.scores),
        "facts": _facts(found),
        "problems": found.problems,
    }


def _status(found: Findings) -> Context:
    """Return the run's outcome: a word, its kind (good, bad, plain) and a sentence."""
    stopped = [(n, f) for n, f in found.stages().items() if f.get("state") in ("failed", "interrupted")]
    if stopped:
        name, facts = stopped[0]
        verb = "failed" if facts["state"] == "failed" else "was stopped"
        return {"kind": "bad", "word": f"Stage {name} {verb}", "text": redact(wording.shown(facts.get("error")))}
    verdict = found.verdict
    if verdict is not None and verdict.rules:
        holding = sum(bool(rule.get("passed")) for rule in verdict.rules)
        text = f"{holding} of {len(verdict.rules)} rules hold"
        return {
            "kind": "good" if verdict.passed else "bad",
            "word": "Gate passed" if verdict.passed else "Gate failed",
            "text": text,
        }
    done = [name for name, facts in found.stages().items() if facts.get("state") == "done"]
    text = f"Stages done: {', '.join(done)}" if done else "No stage has finished yet"
    return {"kind": "plain", "word": "No gate was set" if found.scores else "No evaluation", "text": text}


def _hero(scores: Scores | None) -> Context | None:
    rows = [row for group in _groups(scores) for row in group["rows"]] if scores else []
    preferred = [row for row in rows if row["key"] in ("accuracy", "exact_match")] or rows
    return preferred[0] if preferred else None


def _facts(found: Findings) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = [("Base model", wording.shown(found.recipe.model.name_or_path))]
    if found.checkpoint:
        share = found.checkpoint.num_trainable_parameters / max(1, found.checkpoint.num_parameters)
        trainable = wording.count(found.checkpoint.num_trainable_parameters)
        facts.append(("Method", f"{wording.method_name(found.checkpoint.method)}, {trainable} weights ({share:.1%})"))
    else:
        facts.append(("Method", wording.method_name(found.recipe.train.method)))
    if found.dataset:
        facts.append(("Training rows", wording.count(found.dataset.counts.get("train"))))
    if found.checkpoint:
        facts.append(("Training time", _duration(found.checkpoint.seconds)))
    return facts


def evaluation(found: Findings) -> Context | None:
    """Return the comparison, task by task."""
    if not found.scores or not found.scores.tasks:
        return None
    groups = _groups(found.scores)
    has_base = any(row["base"] is not None for group in groups for row in group["rows"])
    return {"groups": groups, "has_base": has_base, "num_unanswered": found.scores.num_unanswered}


def _groups(scores: Scores) -> list[Context]:
    """Return the rows of each task; tasks with the same word before the first dot (`bfcl.simple`) stand together."""
    groups: dict[str, Context] = {}
    for task, metrics in scores.tasks.items():
        family, _, part = task.partition(".")
        rows = [_row(task, name, record) for name, record in metrics.items() if _is_number(record.get("tuned"))]
        if part:
            for row in rows:
                row["name"] = wording.sentence(part) + (f": {row['name'].lower()}" if len(rows) > 1 else "")
        group = groups.setdefault(family, {"name": wording.task_name(family), "rows": [], "mistakes": {}})
        group["rows"] += rows
        for model, counts in scores.failures.get(task, {}).items():
            of_model = group["mistakes"].setdefault(model, {})
            for kind, number in counts.items():
                of_model[kind] = of_model.get(kind, 0) + number
    shown = [group for group in groups.values() if group["rows"]]
    return [group | {"mistakes": _mistakes(group["mistakes"])} for group in shown]


def _row(task: str, name: str, record: dict[str, Any]) -> Context:
    tuned, base = float(record["tuned"]), record.get("base")
    known = [v for k, v in record.items() if k in ("base", "tuned", "base_high", "tuned_high") and _is_number(v)]
    maximum = float(record["maximum"]) if _is_number(record.get("maximum")) else max(1.0, *known)
    is_share = "num_fixed" in record or (maximum == 1.0 and "accuracy" in name) or name == "exact_match"
    bars = [
        Bar(which, float(record[which]), _number(record.get(f"{which}_low")), _number(record.get(f"{which}_high")))
        for which in ("base", "tuned")
        if _is_number(record.get(which)) and math.isfinite(record[which])
    ]

    def told(value: Any) -> str:
        return wording.score(value, maximum, is_share=is_share)

    def changed(key: str) -> str:
        return wording.difference(record.get(key), maximum, is_share=is_share)

    if record.get("difference") is None and base is not None and _is_number(base):
        record = record | {"difference": tuned - float(base)}
    verdict = record.get("verdict")
    label = f"{wording.metric_name(name)}: base {told(base)}, tuned {told(tuned)}"
    return {
        "key": name,
        "path": f"evaluate.{task}.{name}",
        "name": wording.metric_name(name),
        "task": wording.task_name(task),
        "base": told(base) if _is_number(base) else None,
        "tuned": told(tuned),
        "is_share": is_share,
        "difference": changed("difference") if _is_number(base) else None,
        "interval": f"{changed('difference_low')} … {changed('difference_high')}"
        if _is_number(record.get("difference_low"))
        else None,
        "tuned_interval": f"{told(record['tuned_low'])} – {told(record.get('tuned_high'))}"
        if _is_number(record.get("tuned_low"))
        else None,
        "verdict": verdict,
        "mark": _MARKS.get(str(verdict), ""),
        "p_value": record.get("p_value"),
        "num_items": record.get("num_items"),
        "num_fixed": record.get("num_fixed"),
        "num_broken": record.get("num_broken"),
        "lower_is_better": record.get("better") == "lower",
        "figure": comparison(bars, maximum, told=label) if bars else "",
    }


def _mistakes(by_model: dict[str, dict[str, int]]) -> list[Context]:
    """Return each kind of mistake with its count in base and tuned, the tuned model's commonest first."""
    before, after = by_model.get("base", {}), by_model.get("tuned", {})
    kinds = sorted({*before, *after}, key=lambda kind: (-after.get(kind, 0), -before.get(kind, 0), kind))
    return [
        {
            "kind": wording.printable(kind.replace("_", " ").replace(":", ": ")),
            "base": before.get(kind, 0),
            "tuned": after.get(kind, 0),
        }
        for kind in kinds[:12]
    ]


def examples(found: Findings) -> list[Context]:
    """Return answers of each task, as many as the recipe wants."""
    shown = []
    for task, stored in (found.scores.items if found.scores else {}).items():
        chosen, counts = choose(found.run_dir.absolute(stored), found.recipe.report.num_examples)
        if not counts:
            continue
        names = kind_names(with_base=any(len(example.answers) > 1 for example in chosen))
        tally = [{"kind": kind, "name": names.get(kind, kind), "count": count} for kind, count in counts.items()]
        shown.append({"key": task, "name": wording.task_name(task), "examples": chosen, "tally": tally})
    return shown


def speed(found: Findings) -> Context | None:
    """Return what the load test measured."""
    speeds = found.speeds
    if not speeds or not speeds.levels:
        return None
    levels = sorted(speeds.levels.items(), key=_load)
    times = request_times(found.run_dir, speeds)
    limits = {str(target.get("target")): _number(target.get("limit")) for target in speeds.targets}
    figures = [
        ("Time to first token", _latency("ttft", levels, times, limits.get("ttft_p95_ms"), "Time to first token")),
        ("Whole answer", _latency("e2e", levels, times, limits.get("e2e_p95_ms"), "Whole answer")),
        ("Throughput", _throughput(levels, limits.get("output_tokens_per_second"))),
    ]
    return {
        "figures": [(title, figure) for title, figure in figures if figure],
        "levels": [(_level_name(name, level), level) for name, level in levels],
        "targets": _targets(speeds),
        "has_marks": bool(times),
        "failures": _failure_kinds(levels),
        "has_good": any(_is_number(level.get("good_fraction")) for _, level in levels),
        "is_open": any(not _is_number(level.get("concurrency")) for _, level in levels),
        "client": _client(speeds.client),
        "warnings": [redact(wording.shown(text)) for text in speeds.warnings],
    }


def _latency(
    name: str,
    levels: Iterable[tuple[str, dict[str, Any]]],
    times: dict[str, dict[str, list[float]]],
    target: float | None,
    title: str,
) -> Markup | None:
    known = [
        Level(
            _level_name(key, level),
            times.get(key, {}).get(name, []),
            float(level[f"{name}_median_ms"]),
            float(level[f"{name}_p95_ms"]),
            _number(level.get(f"{name}_p99_ms")),
        )
        for key, level in levels
        if _is_number(level.get(f"{name}_median_ms")) and _is_number(level.get(f"{name}_p95_ms"))
    ]
    return latency_chart(known, target, title=title)


def _throughput(levels: Iterable[tuple[str, dict[str, Any]]], target: float | None) -> Markup | None:
    known = [
        (_level_name(key, level), float(level["output_tokens_per_second"]))
        for key, level in levels
        if _is_number(level.get("output_tokens_per_second"))
    ]
    told = "; ".join(f"{name}: {wording.number(value)} tokens/s" for name, value in known)
    return throughput(known, target, told=f"Throughput. {told}")


def _level_name(key: str, level: dict[str, Any]) -> str:
    if _is_number(level.get("concurrency")):
        return f"{level['concurrency']} at once"
    return f"{level['rate']:g} per second" if _is_number(level.get("rate")) else key


def _load(item: tuple[str, dict[str, Any]]) -> tuple[int, float]:
    """Sort closed loops by concurrency, then open ones by rate, then a trace."""
    concurrency, rate = item[1].get("concurrency"), item[1].get("rate")
    if _is_number(concurrency):
        return 0, float(concurrency or 0)
    return (1, float(rate or 0)) if _is_number(rate) else (2, 0.0)


def _failure_kinds(levels: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    found = {key.removeprefix("failed_") for _, level in levels for key in level if key.startswith("failed_")}
    return sorted(found - {"fraction"})


def _client(limits: dict[str, Any]) -> str:
    """Return what the load generator can do, or nothing when that was not measured."""
    rates = [limits.get(key) for key in ("requests_per_second", "tokens_per_second", "lateness_p99_ms")]
    if not all(_is_number(rate) for rate in rates):
        return ""
    requests, tokens, late = rates
    late_told = f"its stamps were late by {wording.milliseconds(late)} (p99)"
    return f"{wording.number(requests, 3)} requests/s and {wording.number(tokens, 3)} tokens/s on one core; {late_told}"


def _targets(speeds: Speeds) -> list[Context]:
    """Return one row per target with what each level reached."""
    names = {
        "ttft_p95_ms": ("First token p95", "≤", wording.milliseconds),
        "e2e_p95_ms": ("Answer p95", "≤", wording.milliseconds),
        "tpot_p95_ms": ("Per token p95", "≤", wording.milliseconds),
        "output_tokens_per_second": ("Tokens/s", "≥", wording.number),
        "good_fraction": ("Good requests", "≥", wording.share),
    }
    rows: dict[str, Context] = {}
    for target in speeds.targets:
        key = str(target.get("target"))
        name, sign, told = names.get(key, (wording.sentence(key), "", wording.number))
        row = rows.setdefault(key, {"name": name, "limit": f"{sign} {told(target.get('limit'))}".strip(), "cells": []})
        row["cells"].append({"value": told(target.get("value")), "passed": bool(target.get("passed"))})
    return list(rows.values())


def gate(found: Findings) -> Context | None:
    """Return every rule with its evidence."""
    if not found.verdict or not found.verdict.rules:
        return None
    rules = [
        {
            "rule": wording.shown(rule.get("rule")),
            "passed": bool(rule.get("passed")),
            "evidence": redact(wording.shown(rule.get("evidence"))),
        }
        for rule in found.verdict.rules
    ]
    return {"passed": found.verdict.passed, "rules": rules}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _duration(seconds: float) -> str:
    from tunesmith.track.console import duration

    return duration(seconds)
