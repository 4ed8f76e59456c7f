"""Merging outside of a run: a base, adapters that any PEFT-speaking program trained, and a directory to make."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import DataError, ModelError, UsageError
from tunesmith.merge.job import MANIFEST, Job, Merged, finished, largest_format, merge, quantised_layers
from tunesmith.model.headers import linear_layers, read_config, read_headers
from tunesmith.model.locate import locate
from tunesmith.recipe.schema import Merge, Model, Source
from tunesmith.store import files

if TYPE_CHECKING:
    from tunesmith.merge.proof import Probe
    from tunesmith.model.adapter_mix import Combination

_CONFIG = "adapter_config.json"
# Where a model has no tokenizer to make prompts with: ids from all over its vocabulary.
_STEPS = (7, 131, 1009, 8191)


@dataclass(frozen=True)
class Order:
    """What `tunesmith merge` was asked for.

    Attributes:
        base: directory, Hub id or `run:NAME`; None takes what the first adapter names.
        rows: file with conversations, for the proof's prompts.
        trained_in_nf4: the adapters were trained on a 4-bit base, which PEFT does not write down.
        settings: number format, file size and what 4-bit adapters are folded onto, as in a recipe.
    """

    base: str | None
    adapters: tuple[str, ...]
    target: str
    weights: tuple[float, ...] = ()
    combination: Combination = "cat"
    rows: str | None = None
    trained_in_nf4: bool = False
    settings: Merge = field(default_factory=Merge)
    trust_remote_code: bool = False


def run(order: Order) -> tuple[Path, Merged]:
    """Merge, and return the directory and what its manifest says.

    Raises:
        UsageError: the weights do not fit the adapters, or the target holds something else.
        ModelError, MergeError: as `merge`.
    """
    adapters = tuple(_adapter(word) for word in order.adapters)
    weights = order.weights or (1.0,) * len(adapters)
    if len(weights) != len(adapters):
        what = f"{len(adapters)} adapters and {len(weights)} weights were given"
        raise UsageError(what, do="give one --weight for each --adapter, in their order, or none")
    base = _base(order, adapters[0])
    layers, quantised_from = _quantised(order, adapters, base)
    job = Job(
        source=base,
        target=Path(order.target).absolute(),
        adapters=adapters,
        companions=(*adapters, base),
        make_probes=lambda merged, num_tokens: list(probes_for(merged, num_tokens, order.rows)),
        weights=weights,
        combination=order.combination,
        dtype=order.settings.dtype,
        max_shard_bytes=int(order.settings.max_shard_gib * 2**30),
        fold_onto=order.settings.fold_onto,
        quantised_layers=layers,
        quantised_from=quantised_from,
        trust_remote_code=order.trust_remote_code,
        probes_key=files.sha256(Path(order.rows)) if order.rows and Path(order.rows).is_file() else "",
    )
    _refuse_to_replace(job)
    return job.target, merge(job)


def _adapter(word: str) -> Path:
    path = Path(word).expanduser()
    for directory in (path, path / "train" / "final"):
        if (directory / _CONFIG).is_file():
            return directory
    if not path.is_dir():
        raise ModelError("there is no such directory", where=word, do="give the directory of an adapter, or of a run")
    do = "give the directory that PEFT's save_pretrained wrote, or a run that trained an adapter"
    raise ModelError(f"this directory is no adapter: it has no {_CONFIG}", where=word, do=do)


def _base(order: Order, adapter: Path) -> Path:
    name = order.base
    if name is None:
        config = json.loads((adapter / _CONFIG).read_text())
        name = str(config.get("base_model_name_or_path") or "")
        if not name:
            raise UsageError("the adapter does not name its base model", where=str(adapter), do="give it with --base")
    return locate(Model(name, trust_remote_code=order.trust_remote_code), "outputs")


def _quantised(order: Order, adapters: tuple[Path, ...], base: Path) -> tuple[tuple[str, ...], str]:
    """Return the layers that the adapters saw in NF4, and the number format that was made from."""
    from tunesmith.merge.plan import SHORT_NAMES

    for adapter in adapters:
        layers, dtype = quantised_layers(adapter)
        if layers:
            return layers, dtype
    tensors = read_headers(base)
    most = largest_format(tensors)
    dtype = next((name for name, short in SHORT_NAMES.items() if short == most), "float32")
    return (tuple(linear_layers(tensors, read_config(base))) if order.trained_in_nf4 else ()), dtype


def _refuse_to_replace(job: Job) -> None:
    """Raise when the target holds something that this job did not make."""
    if not job.target.exists() or (job.target.is_dir() and not any(job.target.iterdir())):
        return
    if finished(job.target, job.key()) is None:
        what = "the target is there already, and is not what this command makes"
        if (job.target / MANIFEST).is_file():
            what = "the target holds another merge, or one whose files have changed"
        raise UsageError(what, where=str(job.target), do="remove it, or give another --out")


def probes_for(merged: Path, num_tokens: int, rows: str | None) -> list[Probe]:
    """Return prompts for the proof: rows of a file, else the fixed conversations, else ids from all over.

    Args:
        merged: holds the tokenizer, the template and config.json.

    Raises:
        DataError: the file cannot be read, or the model has no template to render its rows with.
    """
    from tunesmith.merge.proof import NUM_PROBES, Probe

    if rows is not None:
        found = _from_rows(merged, rows)
    else:
        found = _from_conversations(merged)
    if not found:
        size = int(read_config(merged).get("vocab_size") or 1000)
        found = [Probe([(i * step) % size for i in range(1, num_tokens + 1)], [False] * num_tokens) for step in _STEPS]
    return [Probe(p.ids[-num_tokens:], p.trained[-num_tokens:]) for p in found[:NUM_PROBES]]


def _from_rows(merged: Path, rows: str) -> list[Probe]:
    from tunesmith.merge.proof import NUM_PROBES, Probe
    from tunesmith.rows.conversation import Conversation
    from tunesmith.rows.reading import Example, read_examples
    from tunesmith.tokens.chat import TemplateProblem, encode_conversation
    from tunesmith.tokens.templates import template_for
    from tunesmith.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(merged)
    template = template_for(tokenizer, "model")
    found: list[Probe] = []
    for example in read_examples(Source(rows))[1]:
        if not isinstance(example, Example) or not isinstance(example.content, Conversation):
            continue
        try:
            found.append(Probe(*encode_conversation(tokenizer, template, example.content, "assistant")))
        except TemplateProblem:
            continue
        if len(found) == NUM_PROBES:
            return found
    if not found:
        raise DataError("no row of this file is a conversation that the model's template can show", where=rows)
    return found


def _from_conversations(merged: Path) -> list[Probe]:
    from tunesmith.merge.proof import Probe
    from tunesmith.tokens.fingerprint import probes_of

    try:
        renderings = probes_of(merged, "model").renderings
    except DataError:  # no tokenizer, or no template
        return []
    longest = sorted((r.ids for r in renderings.values() if r.ids), key=len, reverse=True)
    return [Probe(list(ids), [True] * len(ids)) for ids in longest]
