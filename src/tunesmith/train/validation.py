"""Loss on held-out rows: a mean over all their trained tokens (or pairs), not over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.train.batches import Collator
from tunesmith.train.objective import METRICS, Objective
from tunesmith.train.reference import Reference
from tunesmith.train.stop import StopSignals
from tunesmith.train.token_losses import TokenLosses
from tunesmith.train.world import World

_ROWS_AT_ONCE = 64  # of one rank; ranks agree to go on between such pieces


@dataclass(frozen=True)
class Validation:
    """The held-out rows.

    Attributes:
        reference: of DPO; it knows these rows only, and `objective` uses it.
    """

    collator: Collator
    num_rows: int
    objective: Objective
    reference: Reference | None = None

    def measure(self, losses: TokenLosses, world: World, stop: StopSignals) -> dict[str, float] | None:
        """Return `eval/loss` and the objective's other means; None when a stop signal came meanwhile."""
        count, sums = 0, dict.fromkeys(("loss", *METRICS["dpo" if self.reference else "sft"]), 0.0)
        losses.model.eval()
        try:
            with torch.no_grad():
                for begin in range(0, self.num_rows, _ROWS_AT_ONCE * world.size):
                    rows = np.arange(begin, min(begin + _ROWS_AT_ONCE * world.size, self.num_rows))
                    count += len(rows) if self.reference else self.collator.num_targets(rows)
                    if self.reference:
                        self.reference.begin(rows)
                    for batch in self.collator.micro_batches(rows):
                        if stop.requested and world.size == 1:
                            return None
                        loss_sum, more = self.objective(losses, batch)
                        for name, value in (more | {"loss": loss_sum}).items():
                            sums[name] += float(value)
                    if self.reference:
                        self.reference.end(rows, world)
                    if world.sums([float(bool(stop.requested))])[0]:
                        return None
        finally:
            losses.model.train()
        whole = world.sums(list(sums.values()))
        return {f"eval/{name}": value / max(1, count) for name, value in zip(sums, whole, strict=True)}
