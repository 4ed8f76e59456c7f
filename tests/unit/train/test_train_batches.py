from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests import tiny  # noqa: E402
from tunesmith.recipe.schema import Train  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train.batches import Collator, Layout, Stream, num_steps  # noqa: E402
from tunesmith.train.beginnings import MIN_SHARED  # noqa: E402
from tunesmith.train.optim import learning_rate, warmup_steps  # noqa: E402


@pytest.mark.parametrize(("rows", "epochs", "batch"), [(10, 3.0, 4), (7, 2.5, 16), (5, 0.3, 2), (64, 1.0, 8)])
def test_each_epoch_shows_each_row_once(rows: int, epochs: float, batch: int) -> None:
    stream = Stream(rows, Train(num_train_epochs=epochs, global_batch_size=batch), seed=3)
    shown = [int(row) for step in range(stream.num_steps) for row in stream.rows(step)]
    assert len(shown) == int(np.ceil(round(rows * epochs, 6)))
    for epoch in range(int(epochs)):
        assert Counter(shown[epoch * rows : (epoch + 1) * rows]) == Counter(range(rows))
    again = Stream(rows, Train(num_train_epochs=epochs, global_batch_size=batch), seed=3)
    backwards = [again.rows(step).tolist() for step in reversed(range(again.num_steps))]
    assert [row for part in reversed(backwards) for row in part] == shown, "a step's rows follow from its number alone"
    other = Stream(rows, Train(num_train_epochs=epochs, global_batch_size=batch), seed=4)
    assert rows < 6 or [int(r) for s in range(other.num_steps) for r in other.rows(s)] != shown


def test_max_steps_ends_earlier_only() -> None:
    assert num_steps(Train(num_train_epochs=2, global_batch_size=4, max_steps=3), 100) == 3
    assert num_steps(Train(num_train_epochs=1, global_batch_size=4, max_steps=300), 100) == 25
    assert num_steps(Train(num_train_epochs=0.01, global_batch_size=16), 3) == 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("layout", ["spans", "positions", "padded"])
@pytest.mark.parametrize("segments", [1, 3])
def test_micro_batches_hold_every_token_of_every_row(
    tmp_path: Path, segments: int, layout: Layout, num_ranks: int, shared: bool
) -> None:
    tiny.write_rows(tmp_path / "shards", num_rows=9, segments=segments, shared=shared)
    shards = Shards(tmp_path / "shards")
    rows = np.array([8, 1, 5, 0, 7, 2])
    cpu = torch.device("cpu")
    ranks = [
        Collator(shards, layout, max_tokens=130, device=cpu, rank=rank, num_ranks=num_ranks, even=True)
        for rank in range(num_ranks)
    ]
    by_rank = [list(collator.micro_batches(rows)) for collator in ranks]
    assert len({len(batches) for batches in by_rank}) == 1, "ranks that meet have as many micro-batches as each other"
    collator, batches = ranks[0], [batch for batches in by_rank for batch in batches if len(batch.rows)]
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == sorted(rows.tolist())
    assert sum(len(batch.select_N) for batch in batches) == collator.num_targets(rows)
    for batch in batches:
        flat = batch.ids_BT.flatten()
        assert (batch.positions_BT is not None) == (layout != "padded") and (batch.spans is not None) == (
            layout == "spans"
        )
        assert flat.numel() == batch.num_computed and (batch.num_computed <= 130 or len(batch.rows) == 1)
        for number in range(batch.num_sequences):
            pair, side = number % len(batch.rows), number // len(batch.rows)
            parts = [shards.segment(int(batch.rows[pair]), s) for s in ([0] if segments == 1 else [0, side + 1])]
            ids = np.concatenate([part[0] for part in parts]).astype(np.int64)
            trained = np.concatenate(
                [part[1] if s or segments == 1 else part[1] & False for s, part in enumerate(parts)]
            )
            mine = batch.sequence_N == number
            assert batch.targets_N[mine].tolist() == ids[1:][trained[1:]].tolist()
            assert flat[batch.select_N[mine]].tolist() == ids[:-1][trained[1:]].tolist()
    computed, tokens = (sum(getattr(batch, name) for batch in batches) for name in ("num_computed", "num_tokens"))
    if layout == "positions":
        assert computed == tokens
    elif layout == "spans":
        prompts = [len(shards.segment(int(row), 0)[0]) for row in rows] if segments == 3 else []
        alone = tokens - sum(length for length in prompts if length >= MIN_SHARED)
        assert computed <= alone if shared else computed == alone
        assert computed < alone or not shared or num_ranks > 1


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_the_dry_run_fills_a_micro_batch_of_every_rank(tmp_path: Path, num_ranks: int) -> None:
    tiny.write_rows(tmp_path / "shards", num_rows=64)
    shards = Shards(tmp_path / "shards")
    cpu = torch.device("cpu")
    for rank in range(num_ranks):
        collator = Collator(shards, "spans", max_tokens=200, device=cpu, rank=rank, num_ranks=num_ranks)
        sizes = [batch.num_computed for batch in collator.micro_batches(collator.largest())]
        assert max(sizes) > 200 - int(collator.lengths.max())


def test_ranks_get_about_the_same_work(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "shards", num_rows=64)
    shards = Shards(tmp_path / "shards")
    collator = Collator(shards, "spans", max_tokens=200, device=torch.device("cpu"), num_ranks=4)
    shares = collator.shares(np.arange(64))
    assert sorted(row for share in shares for family in share for row in family.rows) == list(range(64))
    loads = [sum(family.positions for family in share) for share in shares]
    assert max(loads) - min(loads) <= 5


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_learning_rate(kind: str) -> None:
    train = Train(learning_rate=1.0, lr_scheduler_type=kind, warmup_steps=4)  # type: ignore[arg-type]
    rates = [learning_rate(train, step, 24) for step in range(24)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    middle = {"linear": 0.5, "cosine": 0.5, "constant": 1.0}[kind]
    assert rates[14] == pytest.approx(middle)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert (rates[-1] < 0.06) == (kind != "constant")


def test_warm_up_of_nothing_given_is_three_per_cent() -> None:
    assert warmup_steps(Train(), 1000) == 30
    assert warmup_steps(Train(), 10) == 1
    assert warmup_steps(Train(warmup_ratio=0.1), 55) == 6
    assert warmup_steps(Train(warmup_ratio=0.0), 55) == 0
