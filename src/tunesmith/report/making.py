"""The sections on how it was made: data, method, decisions, curves, merge, time, lineage, recipe."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.recipe.adapter_facts import adapter_facts
from tunesmith.recipe.environment import redact
from tunesmith.report import wording
from tunesmith.report.curves import Series
from tunesmith.report.figures.bars import histogram
from tunesmith.report.figures.funnel import funnel
from tunesmith.report.figures.lines import NARROW, SMALL, WIDE, Curve, line_chart, spans_decades
from tunesmith.report.findings import Findings, mapping
from tunesmith.track.console import duration

Context = dict[str, Any]
Pairs = list[tuple[str, str]]

# In the order in which rows meet them.
_LOSSES = (
    ("quarantined", "could not be read"),
    ("duplicates", "exact duplicates"),
    ("unweighted", "left out by weight"),
    ("overlong_dropped", "too long"),
)
_USES = (("validation", "held out"), ("train", "trained on"))


def trained(found: Findings) -> Context | None:
    """Return what was trained on what, and every decision; None where nothing was trained."""
    if found.evaluated():
        return None
    decisions = [
        {"key": str(d.get("key")), "value": _written(d.get("value")), "reason": wording.shown(d.get("reason"))}
        for d in found.run.get("decisions") or []
        if isinstance(d, dict)
    ]
    return {"data": _data(found), "method": _method(found), "decisions": decisions}


def _written(value: Any) -> str:
    """Return a decision's value as it would stand in the recipe."""
    return wording.printable(value if isinstance(value, str) else json.dumps(value))


def _data(found: Findings) -> Context | None:
    data = found.dataset
    if data is None:
        return None
    read = data.counts.get("read") or 0
    losses, uses = (
        [(text, data.counts.get(key) or 0) for key, text in fates if data.counts.get(key)] for fates in (_LOSSES, _USES)
    )
    edges = sorted((int(edge), number) for edge, number in data.length_histogram.items() if str(edge).isdigit())
    facts: Pairs = [
        ("Sequences per epoch", wording.number(data.num_sequences)),
        ("Tokens per epoch", wording.count(data.num_tokens)),
        ("Share with a loss", f"{data.num_trained_tokens / max(1, data.num_tokens):.1%}"),
        ("Longest sequence", f"{wording.number(data.longest_tokens)} tokens"),
    ]
    if data.counts.get("truncated"):
        facts.append(("Cut to max_length", wording.number(data.counts["truncated"])))
    return {
        "num_read": read,
        "funnel": funnel(read, losses, uses),
        "facts": facts,
        "sources": [_source(source) for source in data.sources],
        "histogram": histogram(edges, limit=found.recipe.data.max_length),
    }


def _source(source: dict[str, Any]) -> Context:
    """Return a source as the data stage recorded it; `sha256` is a mapping from file to hash."""
    hashes = source.get("sha256")
    digest = next(iter(hashes.values()), "") if isinstance(hashes, dict) else hashes
    return {
        "path": wording.shown(source.get("path")),
        "format": wording.shown(source.get("format")),
        "rows": wording.number(source.get("read")),
        "digest": wording.shown(source.get("revision") or digest or "")[:12],
        "num_files": len(hashes) if isinstance(hashes, dict) else 1,
    }


def _brought_in(found: Findings) -> Pairs:
    """What is known of a model that was trained elsewhere."""
    facts: Pairs = [("Trained", f"elsewhere: {wording.shown(found.recipe.tuned)}")]
    if found.checkpoint:
        facts.append(("Method", wording.method_name(found.checkpoint.method)))
        facts.append(("Trained numbers", wording.count(found.checkpoint.num_trainable_parameters)))
    return facts


def _method(found: Findings) -> Pairs:
    train, made = found.recipe.train, found.checkpoint
    if found.recipe.tuned is not None:
        return _brought_in(found)
    facts: Pairs = [
        ("Objective", train.objective.upper()),
        ("Method", wording.method_name(made.method if made else train.method)),
    ]
    if train.method != "full":
        facts += [(f"Adapter: {name}", value) for name, value in adapter_facts(train.lora)]
    facts.append(("Batch", f"{train.global_batch_size} sequences per step"))
    facts.append(("Peak learning rate", f"{wording.number(train.learning_rate)}, {train.lr_scheduler_type}"))
    if made is None:
        return facts
    share = made.num_trainable_parameters / max(1, made.num_parameters)
    trainable = wording.count(made.num_trainable_parameters)
    facts += [
        ("Steps", wording.number(made.num_steps)),
        ("Trainable", f"{trainable} of {wording.count(made.num_parameters)} ({share:.2%})"),
        ("Loss", f"{wording.number(made.first_loss)} → {wording.number(made.final_loss)}"),
        ("Validation loss", wording.number(made.validation_loss)),
        ("Speed", f"{wording.number(made.tokens_per_second, 3)} tokens/s"),
        ("Peak memory", wording.size(made.peak_memory_bytes)),
        ("Time", duration(made.seconds)),
    ]
    if made.shared_tokens >= 0.01:
        facts.append(("Shared beginnings", f"{made.shared_tokens:.0%} of the tokens, computed once"))
    if made.resumed_from_steps:
        facts.append(("Resumed at step", ", ".join(wording.number(step) for step in made.resumed_from_steps)))
    return facts


def curves(found: Findings) -> Context | None:
    """Return the curves of training."""
    loss, validation = found.series.get("train/loss"), found.series.get("eval/loss")
    lines: list[Curve] = []
    if loss:
        smooth = loss.smoothed()
        lines.append(Curve("training loss", loss.points(), "faint" if smooth else "main"))
        lines += [Curve("training loss, smoothed", smooth)] if smooth else []
    if validation:
        lines.append(Curve("validation loss", validation.points(), "second", has_dots=len(validation.steps) <= 60))
    in_decades = spans_decades(lines)
    wide, narrow = (line_chart(lines, size, title="Loss", logarithmic=in_decades) for size in (WIDE, NARROW))
    small = [
        _small(found.series, "train/learning_rate", "Learning rate", zero=True),
        _small(found.series, "train/tokens_per_second", "Tokens per second", zero=True),
        _small(found.series, "train/grad_norm", "Gradient norm", zero=True),
        _small(found.series, "train/reward_accuracy", "Preferred answer scored higher", zero=True),
        _small(found.series, "train/reward_margin", "Reward margin"),
        _small(found.series, "train/memory_gib", "Memory, GiB", zero=True),
    ]
    shown = [entry for entry in small if entry]
    if wide is None and not shown:
        return None
    return {
        "wide": wide,
        "narrow": narrow,
        "in_decades": in_decades,
        "legend": [(curve.name, curve.style) for curve in lines],
        "small": shown,
        "num_not_finite": sum(series.num_not_finite() for series in (loss, validation) if series),
    }


def _small(series: dict[str, Series], name: str, title: str, *, zero: bool = False) -> Context | None:
    found = series.get(name)
    if found is None:
        return None
    figure = line_chart([Curve(title, found.points())], SMALL, title=title, starts_at_zero=zero)
    last = found.last_finite()
    return {"title": title, "figure": figure, "last": wording.number(last)} if figure else None


def merged(found: Findings) -> Context | None:
    """Return the merged model with the proof that it is the base with its adapter."""
    if found.weights is None:
        return None
    proof = dict(found.weights.proof)
    agreement = proof.pop("top1_agreement", None)
    if found.weights.template_fingerprint:
        proof["template_fingerprint"] = found.weights.template_fingerprint
    return {
        "agreement": f"{agreement:.2%}" if isinstance(agreement, float) else None,
        "proof": [(wording.sentence(key), wording.shown(value)) for key, value in proof.items()],
        "num_bytes": wording.size(found.weights.num_bytes),
        "files": [(name, digest) for name, digest in found.weights.files.items()],
    }


def times(found: Findings) -> Context | None:
    """Return how long each stage took. The report leaves itself and publishing out: they end after it is written."""
    ended = {name: facts for name, facts in found.stages().items() if name not in ("report", "publish")}
    seconds = {n: float(f["seconds"]) for n, f in ended.items() if isinstance(f.get("seconds"), int | float)}
    rows = [
        {
            "name": name,
            "seconds": seconds.get(name),
            "told": _time(seconds.get(name), facts),
            "state": facts.get("state"),
            "error": redact(wording.shown(facts["error"])) if facts.get("error") else "",
        }
        for name, facts in ended.items()
    ]
    longest = max(seconds.values(), default=0.0) or 1.0
    # Servers run while others evaluate and measure: their time is in those already.
    total = sum(value for name, value in seconds.items() if name != "serve")
    return {"rows": rows, "total": duration(total), "longest": longest} if rows else None


def _time(seconds: float | None, facts: dict[str, Any]) -> str:
    """Return how long a stage took, or where it stands."""
    if seconds is not None:
        return duration(seconds) if seconds >= 0.05 else "< 0.1 s"
    return "stopped" if facts.get("state") == "interrupted" else str(facts.get("state"))


def lineage(found: Findings) -> Context:
    """Return where the numbers come from."""
    known = mapping(found.run.get("lineage"))
    git, hardware = mapping(known.get("git")), mapping(known.get("hardware"))
    facts: Pairs = [
        ("Run", wording.shown(found.run.get("id") or found.run_dir.path.name)),
        ("Started", wording.shown(found.run.get("created"))),
        ("Command", redact(" ".join(str(word) for word in found.run.get("command") or [])) or "–"),
        ("tunesmith", wording.shown(known.get("tunesmith"))),
        ("Git", _git(git)),
        ("Hardware", _hardware(hardware)),
        ("Python", " on ".join(str(known[key]) for key in ("python", "platform") if known.get(key)) or "–"),
    ]
    model = mapping(known.get("model"))
    facts.append(("Base model", wording.shown(model.get("name_or_path") or found.recipe.model.name_or_path)))
    for key in ("revision", "fingerprint", "weights", "rest"):
        if model.get(key):
            label = {"weights": "Weights, fingerprint", "rest": "Other model files, fingerprint"}.get(
                key, key.capitalize()
            )
            facts.append((label, wording.shown(model[key])))
    if found.dataset:
        facts += [
            ("Tokenizer", found.dataset.tokenizer_fingerprint),
            ("Chat template", found.dataset.template_fingerprint),
            ("Tokenised data", found.dataset.key),
        ]
    packages = [f"{name} {version}" for name, version in mapping(known.get("packages")).items()]
    hashes = [
        (stage, str(file), str(digest))
        for stage, files in mapping(known.get("files")).items()
        for file, digest in mapping(files).items()
    ]
    return {"facts": facts, "packages": packages, "hashes": hashes}


def _git(git: dict[str, Any]) -> str:
    if not git.get("commit"):
        return "not in a repository"
    dirty = git.get("dirty")
    changed = f", {git['num_changed_files']} files changed" if git.get("num_changed_files") else ", with changes"
    return f"{git['commit']}{changed if dirty else ', clean'}" + (f" · {git['branch']}" if git.get("branch") else "")


def _hardware(hardware: dict[str, Any]) -> str:
    name = hardware.get("device_name") or hardware.get("device")
    if not name:
        return wording.shown(hardware)
    parts = [f"{hardware['num_devices']} × {name}" if (hardware.get("num_devices") or 1) > 1 else str(name)]
    if hardware.get("num_cpus"):
        parts.append(f"{hardware['num_cpus']} CPUs")
    if hardware.get("memory_bytes"):
        parts.append(f"{wording.size(hardware['memory_bytes'])} memory")
    return ", ".join(parts)
