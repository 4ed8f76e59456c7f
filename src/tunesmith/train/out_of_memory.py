"""When memory runs out: the micro-batch becomes half as large, the global batch stays, and the next start knows it.

On a GPU the allocator raises. On a CPU Linux promises more than there is and kills: the estimate before the start, and
limits set from outside (`ulimit -v`), are what raises there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import TrainError
from tunesmith.store import files
from tunesmith.track.console import warn
from tunesmith.train.batches import Collator


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError)


def too_large(max_tokens: int) -> TrainError:
    """Return the error for a training that cannot be made to fit."""
    do = "lower data.max_length, set train.gradient_checkpointing: true, use qlora, or more devices with fsdp2"
    return TrainError(f"memory ran out, even with {max_tokens:,} tokens per forward pass", do=do)


class MemoryRoom:
    """Remembers, in a file, how many tokens fit at a time.

    Args:
        path: the file; it is about this training on this machine only, and may be deleted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def tokens(self, asked: int) -> int:
        """Return how many tokens a micro-batch may have: what was asked for, or less when that did not fit before."""
        try:
            return min(asked, int(json.loads(self._path.read_text())["max_tokens"]))
        except (OSError, ValueError, KeyError, TypeError):
            return asked

    def halve(self, collator: Collator, step: int, *, ranks_meet: bool) -> dict[str, Any]:
        """Go on with half as many tokens at a time; return what happened, for the record.

        Args:
            ranks_meet: in every forward pass: one of them alone cannot start over. All start again, with the new room.

        Raises:
            TrainError: a single row is all there is in a micro-batch already, or the ranks have to start again.
        """
        before = collator.max_tokens
        if before <= int(collator.lengths.max()):
            raise too_large(before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        collator.halve()
        files.write_json(self._path, {"max_tokens": collator.max_tokens})
        warn(
            f"step {step}: memory ran out with {before:,} tokens per forward pass; goes on with "
            f"{collator.max_tokens:,}, in more passes: the global batch and the result stay the same"
        )
        if ranks_meet:
            error = TrainError("memory ran out on one rank", do="start again: it goes on with smaller micro-batches")
            error.starts_again = True
            raise error
        return {"step": step, "event": "out of memory", "reason": f"{before} → {collator.max_tokens} tokens per pass"}
