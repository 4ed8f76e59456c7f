"""Checkpoints that are whole or not there.

    step-000100/
      weights.safetensors     what moves, in float32, by name
      optimizer.safetensors   the optimiser's moments and step counts, by name of the weight
      state.json              losses, counts and times so far
      manifest.json           written last: step, identity of the training, size and SHA-256 of each file

Where ranks share the tensors, rank 0 of two writes `weights-00001-of-00002.safetensors` and so on; any number of ranks
reads them back. A save copies everything to host memory and returns; a thread writes into a temporary directory, forces
it to the disk and renames it. Ranks meet in that directory only.

The position in the data is the step; the learning rate and every step's random numbers follow from it, so that neither
is kept. No file needs unpickling. What a crash may lose: the steps since the newest whole checkpoint, and with them the
one being written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.store import files
from tunesmith.track.console import warn
from tunesmith.train.checkpoint_files import (
    Listed,
    SavedTensors,
    file_fault,
    held,
    is_sharded,
    parts_of,
    shaped_like,
    write_tensors,
    write_text,
)
from tunesmith.train.snapshot import Parts, Snapshot, processes_here

SCHEMA_VERSION = 2
_MANIFEST = "manifest.json"
_STATE = "state.json"
_NAME = re.compile(r"step-(\d+)")
_PEER_SECONDS = 120.0  # how long rank 0 waits for another rank that writes nothing
_HASHERS = 4  # files hashed at a time when a checkpoint is checked


@dataclass(frozen=True)
class _Save:
    """One checkpoint on its way to the disk."""

    step: int
    parts: Parts
    state: str
    best: bool
    shared: bool  # by several ranks
    temporary: Path


class Checkpoints:
    """The checkpoints of one training. Every rank has one, on the same directory.

    Args:
        directory: holds them.
        identity: hash of what decides the result; checkpoints of another training are never resumed.
        keep: how many of the newest stay. The best one stays besides.
        attempt: token of this start of the training, the same on all ranks and different from every earlier start.
            One process alone may leave it out.
    """

    def __init__(
        self, directory: Path, *, identity: str, keep: int, rank: int = 0, num_ranks: int = 1, attempt: str = ""
    ) -> None:
        assert attempt or num_ranks == 1, "ranks find each other's files by the attempt"
        assert keep >= 1, "at least the newest stays"
        self._directory, self._identity, self._keep = directory, identity, keep
        self._rank, self._num_ranks = rank, num_ranks
        self._attempt = attempt or secrets.token_hex(4)
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._num_saves = 0
        self._written = False

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: dict[str, Any],
        *,
        best: bool = False,
        aside: bool = True,
    ) -> None:
        """Copy everything at once, then write it while training goes on. All ranks call this, in the same order.

        Waits for the save before it. What goes wrong is told in a warning and raises nothing. Where memory is too short
        for a copy, returns when the checkpoint is written.

        Args:
            best: it is the best one so far, and stays until a better one is whole.
            aside: False when training does not go on: nothing is copied, and it is written when this returns.
        """
        self.wait()
        self._num_saves += 1
        temporary = self._directory / f".step-{step:06d}.{self._attempt}-{self._num_saves}.tmp"
        if self._rank == 0 and self._num_saves > 1 and not self._written:
            self._sweep(keep=temporary)  # another rank may have come too late to the save that was given up
        kinds = {"weights": weights, "optimizer": optimizer}
        shared = any(is_sharded(tensor) for tensors in kinds.values() for tensor in tensors.values())
        if self._rank and not shared:
            self._written = True
            return
        own = {kind: parts_of(tensors, self._rank) for kind, tensors in kinds.items()}
        text = json.dumps(state, indent=2, ensure_ascii=False) + "\n"
        copied = self._snapshot.take(own, num_copies=processes_here() if shared else 1) if aside else None
        work = _Save(step, copied or own, text, best, shared, temporary)
        self._written = False
        if copied is None:
            self._write(work)
            return
        self._thread = threading.Thread(target=self._write_aside, args=(work,), name=f"checkpoint-{step}")
        self._thread.start()

    def wait(self) -> bool:
        """Wait for the save in flight; return whether the latest save was written.

        On rank 0 this means the whole checkpoint, on the others their own part of it.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._written

    def _write_aside(self, work: _Save) -> None:
        """Write, and let the steps go first: with all cores in a step, a busy thread would hold every one of them."""
        if sys.platform == "linux":  # where threads have priorities of their own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        self._write(work)

    def _write(self, work: _Save) -> None:
        try:
            work.temporary.mkdir(parents=True, exist_ok=True)
            suffix = f"-{self._rank + 1:05d}-of-{self._num_ranks:05d}" if work.shared else ""
            listed: dict[str, Listed] = {}
            for kind, parts in work.parts.items():
                name = f"{kind}{suffix}.safetensors"
                listed[name] = write_tensors(work.temporary / name, parts)
            if self._rank:
                _announce(work.temporary, self._rank, listed)
            else:
                listed[_STATE] = write_text(work.temporary / _STATE, work.state)
                others = self._collect(work.temporary) if work.shared else {}
                self._finish(work, listed | others)
        except OSError as error:
            self._give_up(work, error)
        else:
            self._written = True
            if self._rank == 0:
                self._retire()

    def _collect(self, temporary: Path) -> dict[str, Listed]:
        """Wait for the other ranks, each as long as its files grow, and return them."""
        listed: dict[str, Listed] = {}
        for rank in range(1, self._num_ranks):
            note = temporary / f"rank-{rank}.json"
            seen, heard = 0, time.monotonic()
            while not note.exists():
                failed = sorted(temporary.glob("rank-*.failed"))
                if failed:
                    raise OSError(f"{failed[0].stem.replace('-', ' ')} could not write its part")
                written = _num_bytes_of(rank, temporary)
                if written != seen:
                    seen, heard = written, time.monotonic()
                if time.monotonic() - heard > _PEER_SECONDS:
                    raise TimeoutError(_silent(rank, seen, self._directory))
                time.sleep(0.02)
            listed |= json.loads(note.read_text())
            note.unlink()
        return listed

    def _finish(self, work: _Save, listed: dict[str, Listed]) -> None:
        """Write the manifest, and give the directory its name."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "step": work.step,
            "identity": self._identity,
            "best": work.best,
            "files": listed,
        }
        write_text(work.temporary / _MANIFEST, _manifest_text(document))
        files.flush_directory(work.temporary)
        final = self._directory / f"step-{work.step:06d}"
        old = self._directory / f".{final.name}.old"
        if final.exists():  # a crash between the two renames is undone by `newest`
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        work.temporary.replace(final)
        files.flush_directory(self._directory)
        shutil.rmtree(old, ignore_errors=True)

    def _give_up(self, work: _Save, error: OSError) -> None:
        """Make room first: on a full disk, a log that takes the warning may have none either."""
        if self._rank == 0:
            shutil.rmtree(work.temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                for file in work.temporary.glob(f"*-{self._rank + 1:05d}-of-*"):
                    file.unlink(missing_ok=True)
                (work.temporary / f"rank-{self._rank}.failed").touch()
        on = f" on rank {self._rank}" if self._rank else ""
        with contextlib.suppress(OSError):
            warn(f"checkpoint of step {work.step} could not be written{on}, training goes on: {error}")

    def _retire(self) -> None:
        """Remove all but the newest ones and the best one."""
        steps = self._steps()
        best = next((path for path in reversed(steps) if _is_best(path)), None)
        for path in steps[: -self._keep]:
            if path != best:
                retired = path.with_name(f".{path.name}.retired.tmp")  # half removed, it would look broken
                with contextlib.suppress(OSError):
                    path.replace(retired)
                shutil.rmtree(retired, ignore_errors=True)

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint. Broken ones are set aside, with a warning that names them.

        For rank 0, before the others save. Reads every byte of what it returns. Removes what crashes left.
        """
        self.wait()
        self._sweep()
        return next(self._whole(self._steps()), None)

    def remove_broken(self) -> list[str]:
        """Remove the checkpoints that were set aside, and return their names: nobody looks into them any more.

        For rank 0, when the training has come to a good end. Until then they are kept, for whoever asks what broke.
        """
        broken = sorted(self._directory.glob("broken-step-*"))
        for path in broken:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in broken]

    def best(self) -> Path | None:
        """Return the whole checkpoint that was the best one when it was saved, and none since. Like `newest`."""
        self.wait()
        return next(self._whole([path for path in self._steps() if _is_best(path)]), None)

    def _whole(self, candidates: list[Path]) -> Iterator[Path]:
        for candidate in reversed(candidates):
            fault = self._fault(candidate)
            if fault is None:
                yield candidate
                continue
            aside = candidate.with_name(f"broken-{candidate.name}")
            shutil.rmtree(aside, ignore_errors=True)
            candidate.replace(aside)
            warn(f"checkpoint {candidate} is not used: {fault}; it is now {aside.name}")

    def _sweep(self, keep: Path | None = None) -> None:
        """Remove what crashes and given-up saves left; undo a replacement that a crash cut in two."""
        for old in self._directory.glob(".step-*.old"):
            final = self._directory / old.name.removeprefix(".").removesuffix(".old")
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.replace(final)
        for leftover in self._directory.glob(".step-*.tmp"):
            if leftover != keep:
                shutil.rmtree(leftover, ignore_errors=True)

    def _steps(self) -> list[Path]:
        """Return the checkpoints by step, the newest last."""
        found = [(match, path) for path in self._directory.glob("step-*") if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]

    def _fault(self, checkpoint: Path) -> str | None:
        """Return what is wrong with a checkpoint, or None."""
        try:
            text = (checkpoint / _MANIFEST).read_bytes()
            manifest = json.loads(text)
            version = manifest["schema_version"]
            if version != SCHEMA_VERSION:
                return (
                    f"{_MANIFEST} was written by another version of tunesmith (format {version}, not {SCHEMA_VERSION})"
                )
            if text != _manifest_text(manifest).encode():
                return f"the content of {_MANIFEST} is not what was written"
            if manifest["identity"] != self._identity:
                return "it belongs to a training with other settings or data"
        except FileNotFoundError:
            return f"{_MANIFEST} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{_MANIFEST} cannot be read: {error}"
        if f"step-{manifest['step']:06d}" != checkpoint.name:
            return f"{_MANIFEST} is that of step {manifest['step']}"
        with ThreadPoolExecutor(_HASHERS) as pool:
            faults = pool.map(lambda item: file_fault(checkpoint / item[0], item[1]), manifest["files"].items())
            return next((fault for fault in faults if fault), None)


def _num_bytes_of(rank: int, temporary: Path) -> int:
    """Return how much of its part a rank has written so far."""
    total = 0
    with contextlib.suppress(OSError):
        for file in temporary.glob(f"*-{rank + 1:05d}-of-*"):
            total += file.stat().st_size
    return total


def _silent(rank: int, num_bytes: int, directory: Path) -> str:
    told = f"rank {rank} has written nothing for {_PEER_SECONDS:.0f} s"
    if num_bytes:
        return f"{told}, after {num_bytes:,} bytes of its part; is it alive, and does its disk answer?"
    return f"{told}; is it alive, and is {directory} the same directory for all ranks?"


def _announce(temporary: Path, rank: int, listed: dict[str, Listed]) -> None:
    """Tell rank 0 that this rank's files are on the disk."""
    note = temporary / f"rank-{rank}.json"
    write_text(note.with_suffix(".tmp"), json.dumps(listed))
    note.with_suffix(".tmp").replace(note)


def _manifest_text(document: dict[str, Any]) -> str:
    """Return the manifest as it is written: its last key is a hash of the others."""
    content = {key: value for key, value in document.items() if key != "checksum"}
    return json.dumps({**content, "checksum": files.fingerprint(content)}, indent=2) + "\n"


def _is_best(checkpoint: Path) -> bool:
    try:
        return json.loads((checkpoint / _MANIFEST).read_text())["best"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_weights(checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    """Put a checkpoint's weights into those that training moves: of a shared one, the rows that this rank holds."""
    with _saved(checkpoint, "weights") as saved, torch.no_grad():
        assert set(saved.shapes) == set(weights), "the identity should have told them apart"
        for name, weight in weights.items():
            saved.fill(name, held(weight))


def load_optimizer_tensors(checkpoint: Path, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read what `optim.fill_optimizer` takes.

    Args:
        weights: those that training moves; may be left out when ranks share none of them. What has the shape of a
            shared weight comes as a DTensor with this rank's rows, everything else whole and on the CPU.
    """
    tensors: dict[str, Tensor] = {}
    with _saved(checkpoint, "optimizer") as saved:
        for name in saved.shapes:
            weight = (weights or {}).get(name.rpartition("//")[0])
            if weight is not None and is_sharded(weight) and saved.shapes[name] == tuple(weight.shape):
                tensors[name] = shaped_like(weight, saved.read(name, held(weight)))
            else:
                tensors[name] = saved.read(name)
    return tensors


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read state.json."""
    document: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    return document


def _saved(checkpoint: Path, kind: str) -> SavedTensors:
    listed = json.loads((checkpoint / _MANIFEST).read_text())["files"]
    return SavedTensors(
        checkpoint / name for name in listed if re.fullmatch(rf"{kind}(-\d+-of-\d+)?\.safetensors", name)
    )
