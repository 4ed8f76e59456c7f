"""The data stage: sources in, tokenised rows out, or a refusal that says why.

The tokenised rows live in the cache, under a key of everything that went into them, and are linked into the run: a
second run over the same rows, template and tokenizer only links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Dataset, RowCounts
from tunesmith.data.building import Builder, Tally, tally_json
from tunesmith.data.preflight import Evidence, preflight
from tunesmith.data.tokenising import Encoder
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Recipe, Source
from tunesmith.rows.sources import is_hub_id, resolved_revision, source_files
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root
from tunesmith.tokens.shards import Shards
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.track.console import say, warn

# Raise it when rows come out differently from the same input: cached tokens of older code are then not used.
CODE_VERSION = 2

_LEFTOVER_SECONDS = 24 * 3600


def run(recipe: Recipe, run_dir: RunDir) -> Dataset:
    """Tokenise the recipe's rows into the run directory.

    Raises:
        DataError: a source, a template or the rows themselves are not fit for training.
    """
    from tunesmith.model.locate import locate

    model_path = locate(recipe.model, recipe.output_dir)
    tokenizer = load_tokenizer(model_path)
    encoder = Encoder(tokenizer, template_for(tokenizer, recipe.data.chat_template), recipe)
    hashes = files.HashCache(cache_root(recipe.output_dir) / "hashes.json")
    identities = {
        "train": [source_identity(source, hashes) for source in recipe.data.train],
        "validation": [source_identity(source, hashes) for source in recipe.data.validation],
    }
    key = dataset_key(encoder, identities)
    entry = cache_root(recipe.output_dir) / "tokens" / key
    record = _cached(entry, hashes)
    if record is None:
        record = _build(encoder, entry, identities)
    else:
        say(f"  tokenised rows are in the cache ({entry})")
    dataset = _link(record, entry, run_dir, key, encoder)
    for warning in preflight(_evidence(record, encoder, model_path)):
        warn(warning)
    return dataset


def source_identity(source: Source, hashes: files.HashCache) -> dict[str, Any]:
    """Return what pins the content of a source: SHA-256 of each file, or the commit of a Hub data set.

    Raises:
        DataError: a file is missing.
    """
    settings = {name: getattr(source, name) for name in ("format", "split", "subset", "weight", "max_rows", "columns")}
    if is_hub_id(source):
        return {"path": source.path, "revision": resolved_revision(source), "settings": settings}
    try:
        sums = {path.as_posix(): hashes.sha256(path) for path in source_files(source)}
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=source.path) from None
    return {"path": source.path, "sha256": sums, "settings": settings}


def dataset_key(encoder: Encoder, identities: dict[str, list[dict[str, Any]]]) -> str:
    """Return the hash of everything that tokens depend on."""
    recipe = encoder.recipe
    names = ("max_length", "overlong", "train_on", "deduplicate", "validation_fraction", "max_bad_rows_fraction")
    settings = {name: getattr(recipe.data, name) for name in names}
    tokenizer, template = encoder.tokenizer.fingerprint, encoder.template.fingerprint
    parts = [CODE_VERSION, identities, settings, recipe.seed, recipe.train.objective, tokenizer, template]
    return files.fingerprint(parts)


def _build(encoder: Encoder, entry: Path, identities: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    _remove_leftovers(entry.parent)
    with files.writing_directory(entry) as directory:
        builder = Builder(encoder, directory)
        counts = builder.build()
        given = [*identities["validation"], *identities["train"]]
        sources = [
            dataclasses.asdict(record) | {k: v for k, v in identity.items() if k != "settings"}
            for record, identity in zip(builder.sources, given, strict=True)
        ]
        record = {"counts": dataclasses.asdict(counts), "tally": tally_json(builder.tally), "sources": sources}
        files.write_json(directory / "record.json", record)
    return record


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left half written; younger ones may belong to a process that is at work."""
    for leftover in directory.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _cached(entry: Path, hashes: files.HashCache) -> dict[str, Any] | None:
    """Return the record of a cache entry, or None when there is none or it is damaged in any way."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, DataError):
        record = json.loads((entry / "record.json").read_bytes())
        counts = RowCounts(**record["counts"])
        _tally(record)
        Shards(entry / "train").verify(hashes)
        if counts.validation:
            Shards(entry / "validation").verify(hashes)
        if counts.quarantined and not (entry / "quarantine.jsonl").exists():
            return None
        return dict(record)
    return None


def _link(record: dict[str, Any], entry: Path, run_dir: RunDir, key: str, encoder: Encoder) -> Dataset:
    counts = RowCounts(**record["counts"])
    tally = _tally(record)
    # The run may hold tokens of an earlier version of its recipe.
    shutil.rmtree(run_dir.validation_tokens, ignore_errors=True)
    run_dir.quarantine.unlink(missing_ok=True)
    files.link_tree(entry / "train", run_dir.train_tokens)
    if counts.validation:
        files.link_tree(entry / "validation", run_dir.validation_tokens)
    if counts.quarantined:
        files.link_or_copy(entry / "quarantine.jsonl", run_dir.quarantine)
    return Dataset(
        objective=encoder.recipe.train.objective,
        train=run_dir.relative(run_dir.train_tokens),
        validation=run_dir.relative(run_dir.validation_tokens) if counts.validation else None,
        counts=record["counts"],
        num_sequences=tally.num_sequences,
        num_tokens=tally.num_tokens,
        num_trained_tokens=tally.num_trained_tokens,
        longest_tokens=tally.longest_tokens,
        key=key,
        tokenizer_fingerprint=encoder.tokenizer.fingerprint,
        template_fingerprint=encoder.template.fingerprint,
        sources=tuple(record["sources"]),
        length_histogram=record["tally"]["length_histogram"],
        quarantine=run_dir.relative(run_dir.quarantine) if counts.quarantined else None,
    )


def _tally(record: dict[str, Any]) -> Tally:
    stored = dict(record["tally"])
    stored["length_histogram"] = Counter({int(edge): count for edge, count in stored["length_histogram"].items()})
    return Tally(**stored)


def _evidence(record: dict[str, Any], encoder: Encoder, model_path: Path) -> Evidence:
    tokenizer = encoder.tokenizer
    return Evidence(
        recipe=encoder.recipe,
        counts=RowCounts(**record["counts"]),
        tally=_tally(record),
        end_tokens=tuple(tokenizer.token_text(i) for i in tokenizer.eos_ids),
        start_token=tokenizer.special_tokens.get("bos_token"),
        model_vocab_size=_vocab_size(model_path),
    )


def _vocab_size(model_path: Path) -> int | None:
    """Return the rows of the embedding table as config.json gives them, inside `text_config` for some families."""
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((model_path / "config.json").read_bytes())
        for part in (config, config.get("text_config") or {}):
            if isinstance(part.get("vocab_size"), int):
                return int(part["vocab_size"])
    return None
