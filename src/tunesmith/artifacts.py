"""The frozen records that stages exchange. Each is written once, as JSON, when its stage is done.

Paths inside a record are relative to the run directory, so that a run can be moved or synchronised.
Times are seconds, sizes are bytes, rates are fractions of one unless the name says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal, Protocol, Self

from tunesmith.frozen import frozen

SCHEMA_VERSION = 1

Which = Literal["base", "tuned"]


@frozen
class Artifact:
    """What a stage made. `kind` names the record in its file and in run.json."""

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_json` turns back into an equal record."""
        return {"kind": self.kind, "schema_version": SCHEMA_VERSION} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Build the record from `to_json`'s mapping.

        Raises:
            ValueError: another kind or schema version, or fields that do not match.
        """
        if document.get("kind") != cls.kind or document.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"expected a {cls.kind!r} record of schema {SCHEMA_VERSION}, "
                f"found {document.get('kind')!r} of schema {document.get('schema_version')!r}"
            )
        fields = {f.name for f in dataclasses.fields(cls)}
        given = {key: value for key, value in document.items() if key not in ("kind", "schema_version")}
        if set(given) - fields:
            raise ValueError(f"unknown fields in a {cls.kind!r} record: {sorted(set(given) - fields)}")
        return cls(**{name: _freeze(value) for name, value in given.items()})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


@frozen
class RowCounts:
    """Where every row that was read went; `unaccounted` is zero or the data stage is wrong."""

    read: int = 0
    quarantined: int = 0
    duplicates: int = 0
    unweighted: int = 0  # left out by a source's `weight` below 1
    overlong_dropped: int = 0
    train: int = 0  # distinct rows kept for training, before `weight` repeats them
    validation: int = 0
    truncated: int = 0  # of the rows kept, how many were cut to max_length

    def unaccounted(self) -> int:
        """Return rows read minus rows whose fate is known."""
        gone = self.quarantined + self.duplicates + self.unweighted + self.overlong_dropped
        return self.read - gone - self.train - self.validation


@frozen
class Dataset(Artifact):
    """Tokenised rows on disk, ready to be memory-mapped by `tokens.shards`."""

    kind: ClassVar[str] = "dataset"
    objective: str  # sft | dpo: how many segments a row has
    train: str  # directory of shards
    validation: str | None  # directory of shards, None when no row is held out
    counts: dict[str, int]  # RowCounts as a mapping
    num_sequences: int  # training sequences of one epoch, repeats by `weight` included
    num_tokens: int  # of one epoch
    num_trained_tokens: int  # of one epoch: tokens with a loss
    longest_tokens: int
    key: str  # hash of (data, template, tokenizer, settings)
    tokenizer_fingerprint: str
    template_fingerprint: str
    sources: tuple[dict[str, Any], ...] = ()  # path, format, sha256 or revision, rows, per source
    length_histogram: dict[str, int] = field(default_factory=dict)  # upper edge in tokens -> sequences
    quarantine: str | None = None


@frozen
class Checkpoint(Artifact):
    """What training left: an adapter in PEFT's format, or a whole model.

    One that was trained elsewhere and brought in (`tuned`) has taken no steps here and has no losses.
    """

    kind: ClassVar[str] = "checkpoint"
    path: str  # directory with adapter_model.safetensors, or with model.safetensors
    method: str  # full | lora | qlora | dora | qdora
    base_model: str  # directory or Hub id the training started from
    num_steps: int
    first_loss: float | None  # mean loss per trained token of the first logged step
    final_loss: float | None
    validation_loss: float | None
    num_trainable_parameters: int
    num_parameters: int
    trained_tokens_per_second: float
    tokens_per_second: float
    peak_memory_bytes: int
    seconds: float
    resumed_from_steps: tuple[int, ...] = ()
    num_ranks: int = 1
    shared_tokens: float = 0.0  # share of the tokens that were not computed again, as another sequence begins with them
    events: tuple[dict[str, Any], ...] = ()  # steps left out, rollbacks, smaller micro-batches: step, event, reason
    template_fingerprint: str = ""  # ids of the probe conversations (`tokens.fingerprint`), equal in every record


@frozen
class Weights(Artifact):
    """A whole model in Hugging Face's layout, that any server can load."""

    kind: ClassVar[str] = "weights"
    path: str
    base_model: str
    files: dict[str, str]  # file name -> sha256
    num_bytes: int
    proof: dict[str, Any] = field(default_factory=dict)  # merged against base + adapter on probe prompts
    template_fingerprint: str = ""


@frozen
class Endpoint(Artifact):
    """An OpenAI-compatible server that is answering now. Not stored as a result."""

    kind: ClassVar[str] = "endpoint"
    url: str  # http://127.0.0.1:PORT, without /v1
    model: str
    engine: str
    which: Which
    log: str = ""
    template_fingerprint: str = ""
    api_key: str = ""  # `${env:NAME}`, turned into the key only where a request is sent


class Serving(Protocol):
    """Hands out endpoints to the stages that need one; the pipeline starts and stops the servers."""

    def endpoint(self, which: Which) -> Endpoint:
        """Return a healthy endpoint for the base or the tuned model, starting it when needed.

        A previously returned endpoint of the other model may be stopped by this call.
        """
        ...


@frozen
class Scores(Artifact):
    """Results of every evaluation task, base beside tuned."""

    kind: ClassVar[str] = "scores"
    # task -> metric -> record; task names are dotted, as gate rules read them. A record holds `base` (None when not
    # measured) and `tuned` with `_low`, `_high` (95 %) and `_num_failed` each, `num_items`, `maximum` of the scale and
    # which way is `better` (higher | lower); over the `num_pairs` items both models answered, `difference` with `_low`
    # and `_high`, `p_value` and the `verdict` (improved | regressed | cannot tell); for right-or-wrong metrics also
    # `num_fixed` and `num_broken`.
    tasks: dict[str, dict[str, dict[str, float | int | str | None]]]
    items: dict[str, str] = field(default_factory=dict)  # task -> per-item results (JSONL) in the run directory
    seconds: float = 0.0
    failures: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # task -> base | tuned -> kind -> n
    # How the numbers came about: seed, temperature, who was asked, and per task the number of items, the hash of all
    # prompts that each model was sent (they are equal) and what the libraries say of their settings.
    protocol: dict[str, Any] = field(default_factory=dict)
    num_unanswered: int = 0  # requests that failed through the endpoint's fault: another try may answer them
    template_fingerprint: str = ""


@frozen
class Speeds(Artifact):
    """Results of the load test: one summary per level of load, named c8 (8 in flight), r4 (4 per second), trace."""

    kind: ClassVar[str] = "speeds"
    # "c8" -> {"concurrency": 8, "num_requests": n, "num_failed": k, "ttft_p95_ms": …, …}
    levels: dict[str, dict[str, float | int | None]]
    requests: str | None = None  # per-request timings (JSONL)
    targets: tuple[dict[str, Any], ...] = ()  # {"target", "limit", "level", "value", "passed"}
    seconds: float = 0.0
    partial: bool = False  # stopped by a signal; such a record never ends a stage
    client: dict[str, Any] = field(default_factory=dict)  # what the load generator itself can do on that machine
    warnings: tuple[str, ...] = ()  # what a reader must know


@frozen
class Verdict(Artifact):
    """The gate's decision, rule by rule."""

    kind: ClassVar[str] = "verdict"
    passed: bool
    rules: tuple[dict[str, Any], ...]  # {"rule", "passed", "evidence"}


@frozen
class Report(Artifact):
    kind: ClassVar[str] = "report"
    path: str
    num_bytes: int
    document: str = ""  # the same for machines, JSON
    summary: str = ""  # the same in short, Markdown


@frozen
class Release(Artifact):
    """Where the model was published, with the manifest that was written last."""

    kind: ClassVar[str] = "release"
    targets: tuple[dict[str, Any], ...]  # {"target": "local", "location": …, "num_files": n, "num_bytes": b}
    manifest_sha256: str


def not_answered(record: Mapping[str, Any]) -> str:
    """Return how many of a metric's items which model did not answer, "" when none.

    They count as wrong in the model's own value, since nobody knows what it would have said, and are left out of the
    comparison: wherever the value is shown, this belongs beside it.
    """
    lost = {which: record.get(f"{which}_num_failed") or 0 for which in ("base", "tuned")}
    told = " and ".join(f"{number:,} by the {which} model" for which, number in lost.items() if number)
    return f"not answered, counted as wrong: {told}" if told else ""


KINDS: dict[str, type[Artifact]] = {
    record.kind: record for record in (Dataset, Checkpoint, Weights, Endpoint, Scores, Speeds, Verdict, Report, Release)
}
