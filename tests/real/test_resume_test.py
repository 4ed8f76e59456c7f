"""`tunesmith resume-test`: the proof on a real recipe, and that it notices a difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import resume_test
from tunesmith.store.run_dir import RunDir

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.real
@pytest.mark.slow
def test_kill_and_resume_equals_no_kill(tmp_path: Path) -> None:
    settings = [f"output_dir={tmp_path}", "train.global_batch_size=2", "data.train=quickstart/data/train.jsonl"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "tunesmith", "resume-test", "recipes/quickstart.yaml", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--steps", "8", "--kills", "1", "--json"], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    proof = json.loads(done.stdout)
    assert (
        proof["ok"] and proof["first_difference"] is None and proof["files_compared"] == ["adapter_model.safetensors"]
    )
    assert len(proof["killed_at_steps"]) == 1
    assert list(tmp_path.glob("resume-test-*")) == [], "both trainings are removed"


def finished(output_dir: Path, losses: list[float], weights: bytes) -> resume_test._Training:
    run_dir = RunDir(output_dir / "runs" / "20260101-000000-mine")
    run_dir.trained.mkdir(parents=True)
    (run_dir.trained / "adapter_model.safetensors").write_bytes(weights)
    lines = [json.dumps({"step": step, "time": 0.0, "train/loss": loss}) for step, loss in enumerate(losses, 1)]
    run_dir.metrics.write_text("".join(f"{line}\n" for line in lines))
    return resume_test._Training(Path("r.yaml"), [], output_dir)


@pytest.mark.parametrize(
    ("losses", "weights", "told"),
    [
        ([2.0, 1.5, 1.25], b"same", None),
        ([2.0, 1.5, 1.2500000000000002], b"same", "the loss of step 3"),
        ([2.0, 1.5], b"same", "3 and 2 points"),
        ([2.0, 1.5, 1.25], b"samf", "adapter_model.safetensors differs"),
    ],
)
def test_the_smallest_difference_is_told(tmp_path: Path, losses: list[float], weights: bytes, told: str | None) -> None:
    whole = finished(tmp_path / "whole", [2.0, 1.5, 1.25], b"same")
    difference, compared = resume_test._difference(whole, finished(tmp_path / "killed", losses, weights))
    assert compared == ("adapter_model.safetensors",)
    assert (told is None and difference is None) or (told is not None and told in str(difference))


def test_senseless_numbers_are_refused() -> None:
    command = [sys.executable, "-m", "tunesmith", "resume-test", "recipes/quickstart.yaml", "--steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "at least two steps" in done.stderr and "Traceback" not in done.stderr
