"""The sections on what came out: headline, gate, comparison, examples."""

from __future__ import annotations

import math
from typing import Any

from tunesmith.artifacts import Scores, not_answered
from tunesmith.recipe.environment import redact
from tunesmith.report import wording
from tunesmith.report.examples import choose, kind_names
from tunesmith.report.figures.bars import Bar, comparison
from tunesmith.report.figures.forest import NARROW, WIDE, Change, forest
from tunesmith.report.findings import Findings, finite, is_number, mapping

Context = dict[str, Any]

_MIN_CHANGES = 6  # that are worth a picture of their own
_MARKS = {"improved": "▲", "regressed": "▼", "cannot tell": "≈"}


def headline(found: Findings) -> Context:
    """Return title, verdict and the number that matters most."""
    return {
        "title": found.recipe.report.title or found.recipe.name,
        "kicker": "Evaluation report" if found.evaluated() else "Fine-tuning report",
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
    asked = found.evaluated()
    if asked:
        return [
            (name, wording.shown(asked[key]))
            for key, name in (("tuned", "Evaluated"), ("base", "Beside"))
            if key in asked
        ]
    facts: list[tuple[str, str]] = [("Base model", wording.shown(found.recipe.model.name_or_path))]
    if found.checkpoint:
        share = found.checkpoint.num_trainable_parameters / max(1, found.checkpoint.num_parameters)
        trainable = wording.count(found.checkpoint.num_trainable_parameters)
        facts.append(("Method", f"{wording.method_name(found.checkpoint.method)}, {trainable} weights ({share:.1%})"))
    else:
        facts.append(("Method", wording.method_name(found.recipe.train.method)))
    if found.dataset:
        facts.append(("Training rows", wording.count(found.dataset.counts.get("train"))))
    if found.checkpoint and found.checkpoint.num_steps:
        facts.append(("Training time", _duration(found.checkpoint.seconds)))
    return facts


def evaluation(found: Findings) -> Context | None:
    """Return the comparison, task by task."""
    if not found.scores or not found.scores.tasks:
        return None
    groups = _groups(found.scores)
    has_base = any(row["base"] is not None for group in groups for row in group["rows"])
    changes = [row["change"] for group in groups for row in group["rows"] if row["change"]]
    return {
        "groups": groups,
        "has_base": has_base,
        "num_unanswered": found.scores.num_unanswered,
        "tally": _tally(changes),
        "protocol": _protocol(mapping(found.scores.protocol)),
        "overview": [forest(changes, size) for size in (WIDE, NARROW)] if len(changes) >= _MIN_CHANGES else [],
    }


def _protocol(known: dict[str, Any]) -> Context:
    """Return how the numbers came about: what holds for all tasks, and what each says of itself."""
    common = [(wording.sentence(key), wording.shown(value)) for key, value in known.items() if key != "tasks"]
    tasks = [
        (wording.task_name(task), [(wording.sentence(key), wording.shown(value)) for key, value in about.items()])
        for task, about in mapping(known.get("tasks")).items()
        if isinstance(about, dict)
    ]
    return {"common": common, "tasks": tasks}


def _tally(changes: list[Change]) -> list[Context]:
    """Return how many metrics improved, regressed, or cannot be told."""
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in _MARKS}
    return [{"verdict": v, "mark": _MARKS[v], "count": count} for v, count in counts.items() if count]


def _change(name: str, row: Context, record: dict[str, Any]) -> Change | None:
    """Return a metric's difference in points of its scale, turned so that more is better."""
    difference = finite(record.get("difference"))
    if difference is None or not record.get("verdict"):
        return None
    low, high = finite(record.get("difference_low")), finite(record.get("difference_high"))
    scale = (-100.0 if record.get("better") == "lower" else 100.0) / row["maximum"]
    ends = sorted(scale * end for end in (low, high) if end is not None)
    told = f"{row['base']} → {row['tuned']}, {record['verdict']}"
    low_end, high_end = (ends[0], ends[1]) if len(ends) == 2 else (None, None)
    return Change(name, scale * difference, low_end, high_end, str(record["verdict"]), told)


def _groups(scores: Scores) -> list[Context]:
    """Return the rows of each task; tasks with the same word before the first dot (`bfcl.simple`) stand together."""
    groups: dict[str, Context] = {}
    for task, metrics in scores.tasks.items():
        family, _, part = task.partition(".")
        rows = [_row(task, name, record) for name, record in metrics.items() if is_number(record.get("tuned"))]
        if part:
            for row in rows:
                row["name"] = part + (f": {row['name'].lower()}" if len(rows) > 1 else "")
        group = groups.setdefault(family, {"name": wording.task_name(family), "rows": [], "parts": [], "mistakes": {}})
        for row in rows:
            name = f"{group['name']}: {row['name']}"
            row["change"] = None if row["part_of"] else _change(name, row, metrics[row["key"]])
        group["rows"] += [row for row in rows if not row["part_of"]]
        group["parts"] += [row for row in rows if row["part_of"]]
        for model, counts in scores.failures.get(task, {}).items():
            of_model = group["mistakes"].setdefault(model, {})
            for kind, number in counts.items():
                of_model[kind] = of_model.get(kind, 0) + number
    for group in groups.values():
        if not group["rows"]:  # parts of something that has no number of its own are the main thing
            group["rows"], group["parts"] = group["parts"], []
    shown = [group for group in groups.values() if group["rows"]]
    return [group | {"mistakes": _mistakes(group["mistakes"])} for group in shown]


def _row(task: str, name: str, record: dict[str, Any]) -> Context:
    tuned, base = float(record["tuned"]), record.get("base")
    known = [v for k, v in record.items() if k in ("base", "tuned", "base_high", "tuned_high") and is_number(v)]
    maximum = float(record["maximum"]) if is_number(record.get("maximum")) else max(1.0, *known)
    is_share = (
        "num_fixed" in record
        or "num_wins" in record
        or (maximum == 1.0 and "accuracy" in name)
        or name == "exact_match"
    )
    bars = [
        Bar(which, float(record[which]), finite(record.get(f"{which}_low")), finite(record.get(f"{which}_high")))
        for which in ("base", "tuned")
        if is_number(record.get(which)) and math.isfinite(record[which])
    ]

    def told(value: Any) -> str:
        return wording.score(value, maximum, is_share=is_share)

    def changed(key: str) -> str:
        return wording.difference(record.get(key), maximum, is_share=is_share)

    if record.get("difference") is None and base is not None and is_number(base):
        record = record | {"difference": tuned - float(base)}
    verdict = record.get("verdict")
    label = f"{wording.metric_name(name)}: base {told(base)}, tuned {told(tuned)}"
    row: Context = {
        "key": name,
        "path": f"evaluate.{task}.{name}",
        "name": wording.metric_name(name),
        "task": wording.task_name(task),
        "base": told(base) if is_number(base) else None,
        "tuned": told(tuned),
        "is_share": is_share,
        "difference": changed("difference") if is_number(base) else None,
        "interval": f"{changed('difference_low')} … {changed('difference_high')}"
        if is_number(record.get("difference_low"))
        else None,
        "tuned_interval": f"{told(record['tuned_low'])} – {told(record.get('tuned_high'))}"
        if is_number(record.get("tuned_low"))
        else None,
        "verdict": verdict,
        "mark": _MARKS.get(str(verdict), ""),
        "p_value": record.get("p_value"),
        "num_items": record.get("num_items"),
        "not_answered": not_answered(record),
        "num_fixed": record.get("num_fixed"),
        "num_broken": record.get("num_broken"),
        "preferred": _preferred(record),
        "part_of": record.get("part_of"),
        "asked": wording.how_asked(record),
        "lower_is_better": record.get("better") == "lower",
        "in_words": wording.shown(record["verdict_in_words"]) if record.get("verdict_in_words") else "",
        "figure": comparison(bars, maximum, told=label) if bars else "",
    }
    return row | {"maximum": maximum, "change": None}


def _preferred(record: dict[str, Any]) -> str:
    """Return how often a judge preferred which model, or nothing when there was none."""
    counts = [record.get(key) for key in ("num_wins", "num_losses", "num_ties")]
    words = (("won", "lost", "tied"), counts)
    told = [f"{wording.number(count)} {word}" for word, count in zip(*words, strict=True) if is_number(count)]
    return ", ".join(told) if is_number(counts[0]) else ""


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


def gate(found: Findings) -> Context | None:
    """Return every rule with its evidence."""
    if not found.verdict or not found.verdict.rules:
        return None
    # Those that fail first: they are what someone has to act on.
    rules = [
        {
            "rule": wording.shown(rule.get("rule")),
            "passed": bool(rule.get("passed")),
            "evidence": redact(wording.shown(rule.get("evidence"))),
        }
        for rule in sorted(found.verdict.rules, key=lambda rule: bool(rule.get("passed")))
    ]
    return {"passed": found.verdict.passed, "rules": rules}


def _duration(seconds: float) -> str:
    from tunesmith.track.console import duration

    return duration(seconds)
