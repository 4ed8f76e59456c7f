"""What sequences begin with together: a system prompt with its tools, a pair's prompt, the turns of a dialogue so far.

In lexicographic order every sequence shares most with the one before it, of all that come earlier. So an order and one
length each describe the whole tree of common beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]

MIN_SHARED = 16  # tokens: fewer cost more in cutting and joining, layer by layer, than their products


@dataclass
class Family:
    """Rows that are computed together for what they share.

    Attributes:
        positions: what they take of a micro-batch.
    """

    rows: list[int]
    positions: int


def in_order(sequences: Sequence[Ids]) -> list[int]:
    """Return indices in lexicographic order of the tokens."""
    return sorted(range(len(sequences)), key=lambda n: sequences[n].astype(">u4").tobytes())


def num_common(first: Ids, second: Ids) -> int:
    """Return how many tokens two sequences begin with together, at most all of the second one but its last."""
    most = min(len(first), len(second) - 1)
    differs = np.flatnonzero(first[:most] != second[:most])
    return int(differs[0]) if len(differs) else max(0, most)


def families(rows: Sequence[int], beginnings: Sequence[Ids], lengths: Sequence[int], limit: int) -> list[Family]:
    """Group rows by what they begin with, where that is an eighth of them or more; a row alone is a family, too.

    A shared token costs a sixteenth of a position: its keys and values are kept again for everyone who reads them.

    Args:
        beginnings: what can be shared of each row.
        lengths: positions that each row takes alone.
        limit: positions that a family may take; a single row may be longer.
    """
    found: list[Family] = []
    last: Ids | None = None
    for n in in_order(beginnings):
        shared = num_common(last, beginnings[n]) if last is not None else 0
        cost = lengths[n] - shared + shared // 16
        worth_it = shared >= max(MIN_SHARED, lengths[n] // 8)
        if worth_it and found[-1].positions + cost <= limit:
            found[-1].rows.append(rows[n])
            found[-1].positions += cost
        else:
            found.append(Family([rows[n]], lengths[n]))
        last = beginnings[n]
    return found
