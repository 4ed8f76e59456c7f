"""The model card, written from the run's records alone. The same run gives the same text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Checkpoint, Dataset, Scores, Speeds, Verdict, not_answered
from tunesmith.publish.front_matter import front_matter, inherited
from tunesmith.publish.naming import public_name
from tunesmith.recipe.adapter_facts import adapter_facts
from tunesmith.recipe.environment import redact
from tunesmith.recipe.schema import Recipe
from tunesmith.store.run_dir import RunDir

_SPEED_COLUMNS = (
    "num_requests",
    "num_failed",
    "good_fraction",
    "requests_per_second",
    "output_tokens_per_second",
    "ttft_p95_ms",
    "tpot_p95_ms",
    "e2e_p95_ms",
)


def model_card(recipe: Recipe, run_dir: RunDir) -> str:
    """Return README.md with the Hub's front matter. Secrets and local directories stay out of it."""
    state = run_dir.read_run()
    model_path = str((state.get("lineage", {}).get("model") or {}).get("path") or "")
    sections = [
        front_matter(recipe, run_dir.find(Scores), inherited(model_path)),
        _introduction(recipe, run_dir.find(Verdict), inherited(model_path)),
        _evaluation(run_dir.find(Scores)),
        _speed(run_dir.find(Speeds)),
        _training(recipe, run_dir.find(Checkpoint)),
        _data(recipe, run_dir.find(Dataset)),
        _use(recipe),
        _lineage(run_dir, state.get("lineage", {})),
    ]
    return redact("\n\n".join(section for section in sections if section) + "\n")


def _introduction(recipe: Recipe, verdict: Verdict | None, from_base: dict[str, Any]) -> str:
    base = public_name(recipe.model.name_or_path)
    licence = "The licence is the base model's" if from_base.get("license") else "No licence was stated"
    text = (
        f"# {recipe.name}\n\n`{base}`, tuned with [tunesmith](https://github.com/tunesmith/tunesmith). "
        f"{licence}; the terms of the base model and of the data apply."
    )
    if verdict is None or not verdict.rules:
        return text
    outcome = "passed." if verdict.passed else "**failed, and the model was published nevertheless.**"
    rules = _table(
        ("rule", "holds", "evidence"),
        ((f"`{r['rule']}`", "yes" if r["passed"] else "**no**", r["evidence"]) for r in verdict.rules),
    )
    return f"{text}\n\nThe release gate {outcome}\n\n{rules}"


def _evaluation(scores: Scores | None) -> str:
    if scores is None:
        return ""
    rows = [
        (f"{task}: {metric}", _with_interval(record, "base"), _with_interval(record, "tuned"), *_comparison(record))
        for task, metrics in scores.tasks.items()
        for metric, record in metrics.items()
    ]
    table = _table(("metric", "base model", "this model", "difference (points)", "verdict", "items"), rows)
    note = (
        "In brackets: 95 % intervals. Both models answered the same items, greedily. The verdict rests on a paired "
        "test (exact McNemar for right-or-wrong metrics, randomisation otherwise) at p < 0.05."
    )
    return f"## Evaluation\n\n{table}\n\n{note}"


def _with_interval(record: dict[str, Any], which: str) -> str:
    value, low, high = (record.get(name) for name in (which, f"{which}_low", f"{which}_high"))
    if not isinstance(value, int | float):
        return "–"
    interval = f" ({_scaled(low, record)} – {_scaled(high, record)})" if low is not None and high is not None else ""
    return f"{_scaled(value, record)}{interval}"


def _comparison(record: dict[str, Any]) -> tuple[str, str, str]:
    difference = record.get("difference")
    told = "–"
    if isinstance(difference, int | float):
        low, high = (_points(record[name], record) for name in ("difference_low", "difference_high"))
        told = f"{_points(difference, record)} ({low} … {high})"
    items = "; ".join(filter(None, [str(record.get("num_items", "–")), not_answered(record)]))
    return told, str(record.get("verdict") or "–"), items


def _scaled(value: Any, record: dict[str, Any]) -> str:
    """Return a share in per cent, and a score on another scale (BLEU's) as it is."""
    return f"{100 * float(value):.1f} %" if _is_share(record) else f"{float(value):.1f}"


def _points(difference: Any, record: dict[str, Any]) -> str:
    return f"{float(difference) * (100 if _is_share(record) else 1):+.1f}"


def _is_share(record: dict[str, Any]) -> bool:
    return float(record.get("maximum", 1.0)) == 1.0


def _speed(speeds: Speeds | None) -> str:
    if speeds is None or not speeds.levels:
        return ""
    known = {name for level in speeds.levels.values() for name in level}
    shown = [name for name in _SPEED_COLUMNS if name in known]
    rows = [(level, *(_number(values.get(name)) for name in shown)) for level, values in speeds.levels.items()]
    return f"## Speed\n\n{_table(('load', *(f'`{name}`' for name in shown)), rows)}"


def _training(recipe: Recipe, checkpoint: Checkpoint | None) -> str:
    train = recipe.train
    if recipe.tuned is not None:
        how = f"an adapter ({checkpoint.method})" if checkpoint and checkpoint.method != "full" else "a whole model"
        return f"## Training\n\nTrained elsewhere, and brought in as {how}."
    rows: list[tuple[str, str]] = [("objective", train.objective), ("method", train.method)]
    if train.method != "full":
        rows += [(f"adapter: {name}", value) for name, value in adapter_facts(train.lora)]
    if train.objective == "dpo":
        rows.append(("DPO", f"beta {train.dpo.beta:g}, loss {train.dpo.loss_type}"))
    rows += [
        ("learning rate", f"{train.learning_rate:g}, {train.lr_scheduler_type}"),
        ("global batch size", str(train.global_batch_size)),
        ("longest sequence", f"{recipe.data.max_length} tokens"),
        ("loss on", recipe.data.train_on),
        ("seed", str(recipe.seed)),
    ]
    if checkpoint is not None and checkpoint.first_loss is not None and checkpoint.final_loss is not None:
        held_out = "" if checkpoint.validation_loss is None else f", held out {checkpoint.validation_loss:.4f}"
        share = f"{checkpoint.num_trainable_parameters:,} of {checkpoint.num_parameters:,}"
        rows += [
            ("steps", f"{checkpoint.num_steps:,}"),
            ("training loss", f"{checkpoint.first_loss:.4f} → {checkpoint.final_loss:.4f}{held_out}"),
            ("parameters trained", share),
        ]
    return f"## Training\n\n{_table(('setting', 'value'), rows)}"


def _data(recipe: Recipe, dataset: Dataset | None) -> str:
    if dataset is None:
        return ""
    counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in dataset.counts.items() if number)
    rows = [
        (public_name(str(source.get("path", "–"))), _number(source.get("rows")), f"`{_pin(source)}`")
        for source in dataset.sources
    ]
    table = f"\n\n{_table(('source', 'rows', 'sha256 or revision'), rows)}" if rows else ""
    tokens = f"{dataset.num_tokens:,} tokens an epoch, {dataset.num_trained_tokens:,} of them with a loss"
    return f"## Data\n\nRows: {counts}. {tokens}.{table}"


def _pin(source: dict[str, Any]) -> str:
    return str(source.get("sha256") or source.get("revision") or source.get("fingerprint") or "–")


def _use(recipe: Recipe) -> str:
    place = recipe.publish.hub.repo_id if recipe.publish and recipe.publish.hub else recipe.name
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello"}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))
```

Or behind an OpenAI-compatible server: `vllm serve {place}`. `manifest.json` holds the SHA-256 of every file."""


def _lineage(run_dir: RunDir, lineage: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = [("run", run_dir.path.resolve().name)]
    git, model = lineage.get("git") or {}, lineage.get("model") or {}
    if git.get("commit"):
        rows.append(("commit", f"`{git['commit']}`{' with uncommitted changes' if git.get('dirty') else ''}"))
    if model:
        revision = f", revision {model['revision']}" if model.get("revision") else ""
        rows.append(("base model", f"{public_name(str(model.get('name_or_path', '–')))}{revision}"))
        rows.append(("base weights", f"`{model.get('weights', '–')}`"))
    for stage, hashed in (lineage.get("files") or {}).items():
        rows += [(f"{stage}: {Path(name).name}", f"`{digest}`") for name, digest in hashed.items()]
    packages = {"tunesmith": lineage.get("tunesmith"), "python": lineage.get("python")} | (
        lineage.get("packages") or {}
    )
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    if versions:
        rows.append(("versions", versions))
    return f"## Lineage\n\n{_table(('what', 'value'), rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
