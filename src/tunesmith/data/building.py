"""One pass over all sources: every row is read once, and leaves in exactly one count."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from tunesmith.artifacts import RowCounts
from tunesmith.data.encoding import trains_one_of, truncated
from tunesmith.data.mixing import content_digest, is_held_out, num_repeats
from tunesmith.data.seen import DigestSet
from tunesmith.data.tokenising import NUM_SEGMENTS, Encoder, batches, length_of, num_tokens_of
from tunesmith.data.workers import Workers
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Source
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.rows.reading import Example, read_examples
from tunesmith.rows.sources import BadRow, bad_row
from tunesmith.tokens.bulk import ArraySegment
from tunesmith.tokens.shards import ShardWriter
from tunesmith.track.console import Progress

_NAMED_ROWS = 5

_Wanted = tuple[Example, bool, int]  # a row, whether it is held out, how often an epoch shows it


@dataclass
class Tally:
    """What was written, for the record and for preflight. Tokens are of one epoch, repeats included."""

    num_sequences: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    longest_tokens: int = 0
    largest_id: int = -1
    num_rows_with_trained_end: int = 0
    num_rows_with_doubled_start: int = 0
    num_trained_tokens_validation: int = 0
    length_histogram: Counter[int] = field(default_factory=Counter)  # upper edge (`length_edge`) -> sequences


@dataclass
class SourceRecord:
    """What one source gave."""

    path: str
    split: str  # train or validation: what the recipe lists it under
    format: str | None = None
    read: int = 0
    quarantined: int = 0


class Builder:
    """Reads, sorts out, tokenises and writes. Use once.

    Args:
        directory: receives `train/`, `validation/` (when a row is held out) and `quarantine.jsonl` (when a row is bad).
    """

    def __init__(self, encoder: Encoder, directory: Path) -> None:
        self.encoder = encoder
        self.recipe = encoder.recipe
        self.directory = directory
        self.counts: Counter[str] = Counter()
        self.tally = Tally()
        self.sources: list[SourceRecord] = []
        self._seen = {False: DigestSet(), True: DigestSet()}  # contents trained on, contents held out
        self._ends = np.asarray(encoder.tokenizer.eos_ids, np.uint32)
        self._overlong: list[str] = []
        self._num_overlong = 0

    def build(self) -> RowCounts:
        """Write everything and return where each row went.

        Raises:
            DataError: a source cannot be read or has too many bad rows, or a row is too long and that is an error.
        """
        data = self.recipe.data
        num_segments = NUM_SEGMENTS[self.recipe.train.objective]
        limit, num_workers = self.encoder.tokenizer.id_limit, data.num_workers
        self.encoder.use_threads()
        with (
            (self.directory / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine,
            ShardWriter(self.directory / "train", num_segments, vocab_size=limit) as train,
            ShardWriter(self.directory / "validation", num_segments, vocab_size=limit) as validation,
            Progress("tokenise", None, "rows") as progress,
            Workers(self.encoder, num_workers if isinstance(num_workers, int) else 1) as workers,
        ):
            # Held-out sources first: a training row that equals one of their rows is then known as its duplicate.
            for split, sources in (("validation", data.validation), ("train", data.train)):
                for source in sources:
                    bad = _BadRows(source.path, quarantine)
                    self._add_source(source, split, (train, validation), bad, workers, progress)
            self._refuse_overlong()
            train.close({"id_limit": limit})
            if self.counts["validation"]:
                validation.close({"id_limit": limit})
        if not self.counts["quarantined"]:
            (self.directory / "quarantine.jsonl").unlink()
        fields = {f.name for f in dataclasses.fields(RowCounts)}
        counts = RowCounts(**{name: self.counts[name] for name in fields})
        assert counts.unaccounted() == 0, counts
        return counts

    def _add_source(
        self,
        source: Source,
        split: str,
        writers: tuple[ShardWriter, ShardWriter],
        bad: _BadRows,
        workers: Workers,
        progress: Progress,
    ) -> None:
        record = SourceRecord(source.path, split)
        self.sources.append(record)
        record.format, examples = read_examples(source)
        wanted = self._wanted(examples, source, split, record)
        for batch, encoded in workers.encoded(batches(wanted), _contents):
            tokens = iter(encoded)
            for item in batch:
                if isinstance(item, BadRow):
                    bad.add(item)
                    continue
                example, held_out, repeats = item
                segments = next(tokens)
                if isinstance(segments, str):
                    shown = json.dumps(example.content.to_json(), ensure_ascii=False)
                    bad.add(bad_row(example.file, example.line, segments, shown))
                    continue
                kept = self._fit(segments, example)
                if kept is not None:
                    self._write(kept, writers, held_out, repeats)
            progress.advance(len(batch))
        record.quarantined = bad.count
        self.counts["quarantined"] += bad.count
        bad.check(record.read, self.recipe.data.max_bad_rows_fraction)
        if not record.read:
            raise DataError(
                "this source has no rows", where=source.path, do="check the file, or remove it from the recipe"
            )

    def _wanted(
        self, examples: Iterator[Example | BadRow], source: Source, split: str, record: SourceRecord
    ) -> Iterator[_Wanted | BadRow]:
        """Yield bad rows and those to tokenise; count the others."""
        data, seed = self.recipe.data, self.recipe.seed
        for example in examples:
            record.read += 1
            self.counts["read"] += 1
            if isinstance(example, BadRow):
                yield example
                continue
            digest = content_digest(example.content)
            held_out = split == "validation" or is_held_out(digest, seed, data.validation_fraction)
            is_known = digest in self._seen[held_out]
            if (is_known and data.deduplicate) or digest in self._seen[not held_out]:
                self.counts["duplicates"] += 1
                continue
            if not is_known:
                self._seen[held_out].add(digest)
            repeats = num_repeats(digest, seed, source.weight)
            if repeats:
                yield example, held_out, 1 if held_out else repeats
            else:
                self.counts["unweighted"] += 1

    def _fit(self, segments: list[ArraySegment], example: Example) -> list[ArraySegment] | None:
        """Apply `data.overlong`; None means the row was dropped, and counted."""
        data = self.recipe.data
        if length_of(segments) <= data.max_length:
            return segments
        self._num_overlong += 1
        if len(self._overlong) < _NAMED_ROWS:
            self._overlong.append(f"{example.file}:{example.line} ({length_of(segments):,} tokens)")
        kept = truncated(segments, data.max_length) if data.overlong == "truncate" else None
        self.counts["truncated" if kept else "overlong_dropped"] += 1
        return kept

    def _refuse_overlong(self) -> None:
        if self.recipe.data.overlong == "error" and self._num_overlong:
            what = (
                f"{self._num_overlong:,} rows are longer than data.max_length ({self.recipe.data.max_length:,} tokens)"
            )
            more = " …" if self._num_overlong > len(self._overlong) else ""
            do = "raise data.max_length, or set data.overlong to drop or truncate"
            raise DataError(f"{what}: {', '.join(self._overlong)}{more}", where="data.overlong", do=do)

    def _write(
        self, segments: list[ArraySegment], writers: tuple[ShardWriter, ShardWriter], held_out: bool, repeats: int
    ) -> None:
        train, validation = writers
        self.counts["validation" if held_out else "train"] += 1
        (validation if held_out else train).add(segments, repeats=repeats)
        tally, tokenizer = self.tally, self.encoder.tokenizer
        trained = sum(int(np.count_nonzero(flags)) for _, flags in segments)
        tally.largest_id = max(tally.largest_id, *(int(ids.max()) for ids, _ in segments if len(ids)), -1)
        length = length_of(segments)
        tally.longest_tokens = max(tally.longest_tokens, length)
        if held_out:
            tally.num_trained_tokens_validation += trained
            return
        tally.num_sequences += repeats
        tally.num_tokens += repeats * num_tokens_of(segments)
        tally.num_trained_tokens += repeats * trained
        tally.length_histogram[length_edge(length)] += repeats
        tally.num_rows_with_trained_end += trains_one_of(segments[1:] or segments, self._ends)
        start = segments[0][0][:2].tolist()
        tally.num_rows_with_doubled_start += tokenizer.bos_id is not None and start == [tokenizer.bos_id] * 2


def _contents(batch: list[_Wanted | BadRow]) -> list[Conversation | Preference]:
    return [item[0].content for item in batch if not isinstance(item, BadRow)]


class _BadRows:
    """The quarantined rows of one source."""

    def __init__(self, path: str, quarantine: IO[str]) -> None:
        self._path = path
        self._quarantine = quarantine
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self.count = 0

    def add(self, row: BadRow) -> None:
        self.count += 1
        kind = row.reason
        if kind in self._reasons or len(self._reasons) < 1000:
            self._reasons[kind] += 1
            self._first.setdefault(kind, f"{row.file}:{row.line}")
        self._quarantine.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")

    def check(self, num_read: int, limit: float) -> None:
        """Stop when too many rows of the source are bad.

        Raises:
            DataError: with the three most frequent reasons.
        """
        if not self.count or self.count <= limit * num_read:
            return
        reasons = [f"{n:,}× {reason} (first at {self._first[reason]})" for reason, n in self._reasons.most_common(3)]
        what = f"{self.count:,} of {num_read:,} rows are bad ({self.count / num_read:.1%}, allowed {limit:.1%}): "
        do = "repair the rows, or raise data.max_bad_rows_fraction to train without them"
        raise DataError(what + "; ".join(reasons), where=self._path, do=do)


def length_edge(length: int) -> int:
    """Return the upper edge of a length's bin: four bins to a doubling, none narrower than 8 tokens."""
    step = max(8, (1 << max(0, (length - 1).bit_length() - 1)) // 4)
    return -(-length // step) * step


def tally_json(tally: Tally) -> dict[str, Any]:
    """Return a tally as JSON-ready data."""
    edges = sorted(tally.length_histogram.items())
    return dataclasses.asdict(tally) | {"length_histogram": {str(edge): count for edge, count in edges}}
