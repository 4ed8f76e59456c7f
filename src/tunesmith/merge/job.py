"""From a base and adapters to a directory that any server loads: the same for the pipeline's stage and the verb.

    verify the base's files · plan from names · write weights · companions and config · prove · manifest, written last

Everything goes into `.NAME.merging` beside the target, which takes the target's place when it is whole. Killed
anywhere, the same job finds what it finished, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import MergeError, StageError
from tunesmith.merge.inputs import Known, verify
from tunesmith.model.headers import INDEX, TensorInfo, read_config, read_headers, weight_files
from tunesmith.store import files
from tunesmith.track.console import Progress

if TYPE_CHECKING:
    from tunesmith.merge.plan import Plan
    from tunesmith.merge.proof import Probe
    from tunesmith.model.adapter_mix import Combination, Mix

MANIFEST = "manifest.json"
QUANTISED = "quantised.json"
_PLAN_VERSION = 1  # raised when the same inputs give other bytes

Onto = Literal["measured", "original", "nf4"]


@dataclass(frozen=True)
class Job:
    """What is merged into what.

    Attributes:
        source: the base, or the model that was trained whole (without adapters).
        companions: directories whose tokenizer, template and generation settings go along; the first counts.
        dtype: of the merged weights; `model` keeps the base's.
        fold_onto: of an adapter that was trained on 4 bits; `measured` takes the better one.
        remembered: what is known of a base file's hash.
        make_probes: prompts for the proof, at most so many tokens each. Called with the merged model's directory.
    """

    source: Path
    target: Path
    adapters: tuple[Path, ...]
    companions: tuple[Path, ...]
    make_probes: Callable[[Path, int], list[Probe]]
    weights: tuple[float, ...] = (1.0,)
    combination: Combination = "cat"
    dtype: str = "model"
    max_shard_bytes: int = 4 << 30
    fold_onto: Onto = "measured"
    quantised_layers: tuple[str, ...] = ()
    quantised_from: str = "float32"
    trust_remote_code: bool = False
    probes_key: str = ""  # says which prompts `make_probes` makes
    remembered: Known = field(default=lambda file: None)

    def key(self) -> str:
        """Hash of what decides the merged bytes."""
        described = [d / name for d in self.adapters for name in ("adapter_config.json", QUANTISED)]
        moved = [*(file for d in self.adapters for file in sorted(d.glob("*.safetensors"))), *described]
        hashes = [[file.name, files.sha256(file)] for file in moved if file.is_file()]
        beside = [file for d in self.companions for file in sorted(d.iterdir()) if file.is_file()]
        small = [[f.name, files.sha256(f)] for f in beside if f.suffix != ".safetensors" and f.name != MANIFEST]
        still = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in weight_files(self.source)]
        settings = [self.weights, self.combination, self.dtype, self.max_shard_bytes, self.fold_onto]
        quantised = [self.quantised_layers, self.quantised_from, self.probes_key]
        return files.fingerprint([_PLAN_VERSION, hashes, small, still, settings, quantised])


@dataclass(frozen=True)
class Merged:
    """What a manifest says."""

    files: dict[str, str]
    num_bytes: int
    proof: dict[str, Any]
    template_fingerprint: str
    seconds: dict[str, float] = field(default_factory=dict)  # of this call, by part; the manifest has none


def merge(job: Job) -> Merged:
    """Do a job, from where it stopped when it did.

    Raises:
        ModelError: a file is missing or damaged.
        MergeError: adapter and base do not fit, or the merged model does not compute what base and adapter do.
        StageError: the merged model would read other tokens than in training.
    """
    key = job.key()
    done = finished(job.target, key)
    if done is not None:
        return done
    directory = _staging(job.target, key)
    with _disk_errors_told(job.target):  # after which what is finished stays
        try:
            merged = _make(job, key, directory)
        except StageError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        files.replace_directory(directory, job.target)
    return merged


def finished(target: Path, key: str | None = None) -> Merged | None:
    """Return what a merge left that came to its end, when every file is as it left it.

    Args:
        key: of the job that it must be; None for any.
    """
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        if key is not None and manifest["key"] != key:
            return None
        for name, digest in manifest["files"].items():
            if files.sha256(target / name) != digest:
                return None
        return _merged(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def quantised_layers(trained: Path) -> tuple[tuple[str, ...], str]:
    """Return the layers that were in NF4 during training, and the number format they were quantised from."""
    path = trained / QUANTISED
    if not path.is_file():
        return (), "float32"
    document = json.loads(path.read_text())
    return tuple(document["layers"]), str(document["dtype"])


def _merged(manifest: dict[str, Any]) -> Merged:
    return Merged(
        manifest["files"], manifest["num_bytes"], manifest["proof"], str(manifest.get("template_fingerprint", ""))
    )


def _staging(target: Path, key: str) -> Path:
    """Return the directory to work in, empty unless the same job was in it before."""
    directory = target.parent / f".{target.name}.merging"
    with contextlib.suppress(OSError):
        if (directory / "key").read_text() == key:
            return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    files.write_text(directory / "key", key)
    return directory


def _make(job: Job, key: str, directory: Path) -> Merged:
    from tunesmith.model.companions import copy_companions

    clock = _Clock()
    _verify(job)
    clock.lap("verify")
    can_chat = copy_companions(job.companions, directory)
    template = _template_of(job, directory) if can_chat else ""
    digests, proof = _fold_and_prove(job, directory, clock)
    for name in ("key", "progress.json"):
        (directory / name).unlink(missing_ok=True)
    others = [path for path in sorted(directory.iterdir()) if path.name not in digests and path.name != MANIFEST]
    digests |= {path.name: files.sha256(path) for path in others}
    sizes = sum((directory / name).stat().st_size for name in digests)
    for path in others:
        files.flush(path)
    manifest = {"key": key, "files": digests, "num_bytes": sizes, "proof": proof, "template_fingerprint": template}
    files.write_json(directory / MANIFEST, manifest)
    return dataclasses.replace(_merged(manifest), seconds=clock.seconds)


def _verify(job: Job) -> None:
    sizes = [file.stat().st_size for file in weight_files(job.source)]
    with Progress("verify", max(1, sum(sizes) >> 20), "MiB") as progress:
        verify(job.source, job.remembered, advance=lambda num_bytes: progress.advance(num_bytes >> 20))


def _template_of(job: Job, directory: Path) -> str:
    from tunesmith.tokens.fingerprint import PROBES_FILE, check_probes, probes_of

    found = probes_of(directory, "model")
    trained = next((d for d in (*job.adapters, job.source) if (d / PROBES_FILE).is_file()), job.source)
    return check_probes(found, trained, stage="merge", where=trained)


def _fold_and_prove(job: Job, directory: Path, clock: _Clock) -> tuple[dict[str, str], dict[str, Any]]:
    from tunesmith.merge.plan import config_after, plan
    from tunesmith.merge.proof import Before, num_probe_tokens, prove
    from tunesmith.model.adapter_files import load_adapter
    from tunesmith.model.adapter_mix import Mix

    config, tensors = read_config(job.source), read_headers(job.source)
    adapters = tuple(load_adapter(path) for path in job.adapters)
    mix = Mix(adapters, job.weights, job.combination) if adapters else None

    def planned(quantised: tuple[str, ...]) -> Plan:
        return plan(tensors, mix, dtype=job.dtype, model_type=str(config.get("model_type")), quantised=quantised)

    # The four-bit plan is the one that says what training saw; which of the two is written may have to be measured.
    chosen = planned(job.quantised_layers if job.fold_onto != "original" else ())
    files.write_json(directory / "config.json", config_after(config, chosen))
    num_tokens = num_probe_tokens(sum(info.num_elements for info in tensors.values()))
    num_tokens *= 4 if job.quantised_layers else 1  # their loss decides something
    probes = job.make_probes(directory, num_tokens)
    facts: dict[str, Any] = {}
    if job.quantised_layers:
        chosen, facts = _onto(job, directory, planned, mix, probes)
    clock.lap("plan")
    digests = _write(job, directory, chosen, mix)
    clock.lap("write")
    before = Before(chosen.operations, mix, job.quantised_from, job.trust_remote_code)
    with Progress("prove", 1, "comparison") as progress:
        proof = prove(before, directory, probes, str(read_config(directory).get("dtype", "float32")))
        progress.advance()
    clock.lap("prove")
    return digests, proof | facts


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = round(now - self._since, 3)
        self._since = now


def _onto(
    job: Job, directory: Path, planned: Callable[[tuple[str, ...]], Plan], mix: Mix | None, probes: list[Probe]
) -> tuple[Plan, dict[str, Any]]:
    """Return the plan for the base that an adapter trained on 4 bits is folded onto, and what was measured."""
    from tunesmith.merge.proof import Before, losses_of_bases

    four_bit = planned(job.quantised_layers)
    names = [name for name, operation in four_bit.operations.items() if operation.is_quantised]
    before = Before(four_bit.operations, mix, job.quantised_from, job.trust_remote_code)
    losses = losses_of_bases(before, directory, probes, names)
    onto = job.fold_onto
    if onto == "measured":
        onto = "original" if losses and losses["original"] < losses["nf4"] else "nf4"
    told = {"nf4": "the weights after NF4", "original": "the original weights"}[onto]
    facts: dict[str, Any] = {"folded_onto": told}
    if losses:
        facts |= {"loss_on_nf4_base": losses["nf4"], "loss_on_original_base": losses["original"]}
    return four_bit if onto == "nf4" else planned(()), facts


def _write(job: Job, directory: Path, chosen: Plan, mix: Mix | None) -> dict[str, str]:
    from tunesmith.merge.fold import Folding, MappedFiles
    from tunesmith.merge.write import write_weights

    if mix is None and all(operation.is_copy for operation in chosen.operations.values()):
        return _link(job.source, directory)
    with MappedFiles() as inputs, Progress("merge", len(chosen.operations), "tensors") as progress:
        folding = Folding(mix, job.quantised_from, inputs)
        return write_weights(
            directory,
            chosen.operations,
            folding,
            max_shard_bytes=job.max_shard_bytes,
            advance=progress.advance,
        )


def _link(trained: Path, directory: Path) -> dict[str, str]:
    """Take over the weight files of a model that was trained whole."""
    for path in [*weight_files(trained), *trained.glob(INDEX)]:
        files.link_or_copy(path, directory / path.name)
    return {path.name: files.sha256(path) for path in directory.glob("*.safetensors*")}


@contextlib.contextmanager
def _disk_errors_told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        do = "make room, or give another place; the same command goes on where this one stopped"
        raise MergeError(f"the merged model cannot be written: {error.strerror}", where=str(target), do=do) from None


def largest_format(tensors: dict[str, TensorInfo]) -> str:
    """Return the number format (safetensors' name) that most of a model's numbers have."""
    sizes: dict[str, int] = {}
    for info in tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.num_elements
    return max(sizes, key=lambda name: sizes[name])
