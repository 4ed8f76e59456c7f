"""Real rows of several formats, mixed: every row is accounted for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.families import write_family
from tunesmith.artifacts import RowCounts
from tunesmith.data.stage import run
from tunesmith.recipe.schema import Data, Model, Recipe, Source, Train
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.shards import Shards

ROWS = Path(os.environ.get("TUNESMITH_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")
pytestmark = pytest.mark.skipif(not ROWS.is_dir(), reason=f"no real rows at {ROWS} (set TUNESMITH_TEST_DATA)")

GLAIVE = Source(str(ROWS / "sft/glaive_toolcall_en_demo.json"))
ALPACA = Source(str(ROWS / "sft/alpaca_en_demo.json"), weight=0.5)
GSM8K = Source(
    str(ROWS / "gsm8k/train.jsonl"), columns={"question": "prompt", "answer": "completion"}, weight=1.5, max_rows=1_000
)
PAIRS = Source(str(ROWS / "dpo/dpo_en_demo.json"))


def tokenised(tmp_path: Path, family: str, data: Data, objective: Any) -> tuple[Any, RowCounts, RunDir]:
    model = write_family(tmp_path / "model", family)
    train = Train(objective=objective)
    run_dir = RunDir(tmp_path / "run")
    dataset = run(Recipe("t", Model(str(model)), data, output_dir=str(tmp_path / "out"), train=train), run_dir)
    counts = RowCounts(**dataset.counts)
    assert counts.unaccounted() == 0
    return dataset, counts, run_dir


@pytest.mark.parametrize("family", ["qwen", "llama3"])
@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_mixed_conversations_add_up(tmp_path: Path, family: str, overlong: Any) -> None:
    data = Data(
        (GLAIVE, ALPACA, GSM8K),
        validation_fraction=0.1,
        max_length=768,
        overlong=overlong,
        chat_template=family,
        max_cut_rows_fraction=1.0,
    )
    dataset, counts, run_dir = tokenised(tmp_path, family, data, "sft")
    assert counts.read == 300 + 999 + 1_000 == sum(source["read"] for source in dataset.sources)
    assert [source["format"] for source in dataset.sources] == ["sharegpt", "instruction", "prompt_completion"]
    assert counts.quarantined == 0 and counts.duplicates > 0 and 400 < counts.unweighted < 600
    assert (counts.truncated > 0) == (overlong == "truncate")
    train, validation = Shards(run_dir.absolute(dataset.train)), Shards(run_dir.absolute(dataset.validation))
    assert train.num_rows == counts.train and validation.num_rows == len(validation) == counts.validation
    assert len(train) == dataset.num_sequences > counts.train
    assert max(train.lengths.max(), validation.lengths.max()) == dataset.longest_tokens <= 768
    assert (train.num_trained > 0).all() and (validation.num_trained > 0).all()


def test_pairs_add_up(tmp_path: Path) -> None:
    data = Data((PAIRS,), max_length=1_024, overlong="truncate", chat_template="qwen", max_cut_rows_fraction=1.0)
    dataset, counts, run_dir = tokenised(tmp_path, "qwen", data, "dpo")
    assert counts.read == 300 and counts.train + counts.overlong_dropped + counts.duplicates == 300
    shards = Shards(run_dir.absolute(dataset.train))
    assert (shards.lengths[:, 0:1] + shards.lengths[:, 1:] <= 1_024).all()
    assert (shards.num_trained[:, 1:] > 0).all() and not shards.num_trained[:, 0].any()
