"""Loss on held-out rows: a mean over all their trained tokens (or pairs), not over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.model.head import SplitModel
from tunesmith.train.batches import Collator
from tunesmith.train.objective import Objective
from tunesmith.train.stop import StopSignals

_ROWS_AT_ONCE = 256  # sorted by length within such a piece


@dataclass(frozen=True)
class Validation:
    """The held-out rows.

    Attributes:
        objective: takes the place of training's where that one knows its own rows only (DPO's reference).
    """

    collator: Collator
    num_rows: int
    counts_pairs: bool
    objective: Objective | None = None

    def measure(self, split: SplitModel, objective: Objective, stop: StopSignals) -> dict[str, float] | None:
        """Return `eval/loss` and the objective's other means; None when a stop signal came meanwhile."""
        total, count, sums = 0.0, 0, dict[str, Any]()
        split.model.eval()
        try:
            with torch.no_grad():
                for begin in range(0, self.num_rows, _ROWS_AT_ONCE):
                    rows = np.arange(begin, min(begin + _ROWS_AT_ONCE, self.num_rows))
                    count += len(rows) if self.counts_pairs else self.collator.num_targets(rows)
                    for batch in self.collator.micro_batches(rows):
                        if stop.requested:
                            return None
                        loss_sum, more = (self.objective or objective)(split, batch)
                        total += float(loss_sum)
                        sums = {name: sums.get(name, 0.0) + float(value) for name, value in more.items()}
        finally:
            split.model.train()
        count = max(1, count)
        return {"eval/loss": total / count} | {f"eval/{name}": value / count for name, value in sums.items()}
