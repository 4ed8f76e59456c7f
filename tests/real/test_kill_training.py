"""`kill -9` of all ranks at random moments, then the same again: not a bit of the result differs.

TUNESMITH_KILLS says how many kills there are of every case, three by default.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import tiny  # noqa: E402
from tests.warm import Ranks, warm_up  # noqa: E402
from tunesmith.artifacts import Checkpoint  # noqa: E402
from tunesmith.recipe.dump import dump_recipe  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402

pytestmark = [pytest.mark.real, pytest.mark.slow]
NUM_KILLS = int(os.environ.get("TUNESMITH_KILLS", "3"))
KILLS_OF_A_RUN = 3
NUM_STEPS = 48
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"r": 4, "alpha": 8.0, "dropout": 0.1}},
    "full": {"method": "full", "learning_rate": 1e-3},
    "dpo": {"method": "lora", "objective": "dpo", "lora": {"r": 4, "alpha": 8.0}},
}


@dataclass
class Kills:
    """Where kills struck."""

    at_steps: list[int] = field(default_factory=list)
    before_the_first_step: int = 0
    inside_saves: int = 0
    after_the_last_step: int = 0
    resumed_from: list[int] = field(default_factory=list)

    def note(self, run_dir: RunDir, lines_before: int) -> None:
        step = len(tiny.losses(run_dir)) if run_dir.metrics.exists() else 0
        self.at_steps.append(step)
        self.before_the_first_step += step == lines_before
        self.after_the_last_step += step == NUM_STEPS
        self.inside_saves += any(run_dir.checkpoints.glob(".step-*.tmp")) if run_dir.checkpoints.exists() else 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    warm_up()
    return tiny.write_model(tmp_path_factory.mktemp("model") / "base")


def prepare(base: Path, place: Path, name: str, size: int, settings: dict[str, Any]) -> RunDir:
    """Return a run whose data stage is done; saves follow one another closely, so that kills fall into them."""
    objective = settings.get("objective", "sft")
    run_dir = tiny.run_with_rows(place / name, num_rows=24, num_held_out=3, objective=objective)
    recipe = tiny.recipe_for(
        base, place, num_train_epochs=8.0, save_steps=2, eval_steps=10, num_processes=size,
        parallelism="fsdp2" if settings["method"] == "full" else "ddp", **settings,
    )  # fmt: skip
    # The loader refuses to validate without rows for it; these were held out by hand.
    run_dir.resolved_recipe.write_text(
        dump_recipe(recipe).replace("validation_fraction: 0.0", "validation_fraction: 0.1")
    )
    run_dir.write_run({})
    return run_dir


def assert_identical(found: RunDir, expected: RunDir) -> None:
    for name in ("train/loss", "eval/loss", "train/grad_norm"):
        assert tiny.losses(found, name) == tiny.losses(expected, name)
    assert len(tiny.losses(found)) == NUM_STEPS
    files = sorted(expected.trained.glob("*.safetensors"))
    assert files
    for file in files:
        ours, theirs = load_file(found.trained / file.name), load_file(file)
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_moment(
    base: Path, tmp_path: Path, case: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = prepare(base, tmp_path, "undisturbed", size, CASES[case])
    began = time.monotonic()
    Ranks(expected.path, size).finish()
    seconds = time.monotonic() - began
    choose, kills = random.Random(), Kills()
    while len(kills.at_steps) < NUM_KILLS:
        run_dir = prepare(base, tmp_path, "killed", size, CASES[case])
        for _ in range(min(KILLS_OF_A_RUN, NUM_KILLS - len(kills.at_steps))):
            before = len(tiny.losses(run_dir)) if run_dir.metrics.exists() else 0
            ranks = Ranks(run_dir.path, size)
            time.sleep(choose.uniform(0.0, seconds))
            ended = not ranks.running()
            ranks.kill()
            if ended:
                break
            kills.note(run_dir, before)
        Ranks(run_dir.path, size).finish()
        assert_identical(run_dir, expected)
        kills.resumed_from += run_dir.load(Checkpoint).resumed_from_steps
        shutil.rmtree(run_dir.path)
    with capsys.disabled():
        print(f"\n{case}, {size} ranks, {seconds:.1f} s undisturbed: {len(kills.at_steps)} {kills}")
