"""Log-probabilities of the answers under DPO's reference model: the model as it was loaded.

They never change, so every row is scored once, however many epochs follow, and no second model stays in memory. With an
adapter the reference is the model with the adapter off: a row is scored when it is first met, in the very micro-batch
that is about to be trained on, and the table travels with the checkpoints. A model that moves as a whole has no such
switch: its rows are scored before step 1, and kept in a file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunesmith.model.adapters import adapters_off
from tunesmith.store import files
from tunesmith.track.console import Progress
from tunesmith.train.batches import Batch, Collator, Rows
from tunesmith.train.objective import sequence_log_probabilities
from tunesmith.train.token_losses import TokenLosses
from tunesmith.train.world import World


class Reference:
    """What is known of the reference's log-probabilities.

    Attributes:
        table_N2: of the chosen and the rejected answer of each row; NaN where a row has not been scored.
    """

    def __init__(self, num_rows: int) -> None:
        self.table_N2 = torch.full((num_rows, 2), torch.nan)
        self._scoring = False

    def begin(self, rows: Rows) -> None:
        """Prepare for a global batch: all ranks score it together when one of its rows is new."""
        self._scoring = bool(self.table_N2[torch.from_numpy(rows)].isnan().any())

    def of(self, losses: TokenLosses, batch: Batch) -> Tensor:
        """Return the log-probabilities of a micro-batch's rows, (P, 2), scoring it when `begin` found it new."""
        at = torch.from_numpy(batch.rows)
        if self._scoring:
            was_training = losses.model.training
            losses.model.eval()
            with torch.no_grad(), adapters_off(losses.model):
                both = sequence_log_probabilities(losses, batch).float().cpu()
            losses.model.train(was_training)
            self.table_N2[at] = both.view(2, -1).T
        return self.table_N2[at]

    def end(self, rows: Rows, world: World) -> None:
        """Learn what the other ranks have scored."""
        if not self._scoring or world.size == 1:
            return
        at = torch.from_numpy(rows)
        mine = self.table_N2[at]
        known = (~mine.isnan()).float().to(world.device)
        total = world.sum_tensor(mine.nan_to_num().to(world.device))
        self.table_N2[at] = (total / world.sum_tensor(known)).cpu()

    def fill(
        self, losses: TokenLosses, collator: Collator, rows: Rows, world: World, cache: Path, identity: str
    ) -> None:
        """Score rows now, or read them from a file that an earlier start of the same training left."""
        known = _read(cache, identity) if world.is_first else None
        if world.from_first(known is not None):
            self.table_N2 = world.sum_tensor(known if known is not None else torch.zeros_like(self.table_N2))
            return
        with Progress("reference", len(rows), "pairs") as progress:
            for part in np.array_split(np.sort(rows), max(1, len(rows) // 256)):
                self.begin(part)
                for batch in collator.micro_batches(part):
                    self.of(losses, batch)
                self.end(part, world)
                progress.advance(len(part))
        if world.is_first:
            _write(cache, identity, self.table_N2)


def _read(cache: Path, identity: str) -> Tensor | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(cache), framework="pt") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return None
            table: Tensor = file.get_tensor("log_probabilities")
            return table
    except (OSError, SafetensorError):
        return None


def _write(cache: Path, identity: str, table_N2: Tensor) -> None:
    from safetensors.torch import save_file

    with files.writing(cache) as temporary:
        save_file({"log_probabilities": table_N2.contiguous()}, str(temporary), metadata={"identity": identity})
