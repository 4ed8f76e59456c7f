"""Log-probabilities of the answers under DPO's reference model, computed once before step 1.

The reference is the model as it was loaded (with an adapter: the adapter off). Its numbers never change, so every row
is scored once, however many epochs follow, and no second model stays in memory. They are kept in a file: a resumed
training reads the very same ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunesmith.model.adapters import adapters_off
from tunesmith.model.head import SplitModel
from tunesmith.store import files
from tunesmith.track.console import Progress
from tunesmith.train.batches import Collator, Rows
from tunesmith.train.objective import sequence_log_probabilities


def reference_log_probabilities(
    split: SplitModel, collator: Collator, rows: Rows, num_rows: int, *, cache: Path, identity: str
) -> Tensor:
    """Return log p of the chosen and the rejected answer, (num_rows, 2); NaN for rows that are not in `rows`.

    Args:
        rows: which to score.
        cache: file that keeps them, used again when its identity is the same.
    """
    known = _read(cache, identity)
    if known is not None:
        return known
    table = torch.full((num_rows, 2), torch.nan)
    split.model.eval()
    with torch.no_grad(), adapters_off(split.model), Progress("reference", len(rows), "pairs") as progress:
        for batch in collator.micro_batches(np.sort(rows)):
            both = sequence_log_probabilities(split, batch).float().cpu()
            table[torch.from_numpy(batch.rows)] = both.view(2, -1).T
            progress.advance(len(batch.rows))
    split.model.train()
    _write(cache, identity, table)
    return table


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


def _write(cache: Path, identity: str, table: Tensor) -> None:
    from safetensors.torch import save_file

    with files.writing(cache) as temporary:
        save_file({"log_probabilities": table.contiguous()}, str(temporary), metadata={"identity": identity})
