"""Every method and objective trains, merges and leaves a directory that others load; stops and goes on exactly."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import tiny  # noqa: E402
from tunesmith.errors import Interrupted, ModelError, TrainError  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402
from tunesmith.train import stage  # noqa: E402

ROOT = Path(__file__).parents[3]
METHODS = ("full", "lora", "dora", "qlora", "qdora")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(base: Path, tmp_path: Path, objective: str, method: str) -> None:
    if method.startswith("q"):
        pytest.importorskip("bitsandbytes")
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=12, num_held_out=5, objective=objective)
    recipe = tiny.recipe_for(base, tmp_path, objective=objective, method=method, num_train_epochs=4.0, eval_steps=5)
    record = stage.run(recipe, run_dir)
    curve = tiny.losses(run_dir)
    assert [step for step, _ in curve] == list(range(1, 13))
    assert record.num_steps == 12 and curve[-1][1] < 0.95 * curve[0][1]
    assert (record.first_loss, record.final_loss) == (curve[0][1], curve[-1][1])
    evaluated = tiny.losses(run_dir, "eval/loss")
    assert [step for step, _ in evaluated] == [5, 10, 12] and record.validation_loss == evaluated[-1][1]
    if objective == "dpo":
        assert curve[0][1] == pytest.approx(0.693147, abs=1e-4), "the policy begins as the reference"
        assert tiny.losses(run_dir, "train/reward_accuracy")[-1][1] > 0.5


def test_adapter_directory_holds_what_serving_needs(base: Path, tmp_path: Path) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=4)
    template = tmp_path / "other.jinja"
    template.write_text(tiny.TEMPLATE.replace("<|im_end|>", "<|im_end|> "))
    recipe = tiny.recipe_for(base, tmp_path)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, chat_template=str(template)))
    stage.run(recipe, run_dir)
    assert (run_dir.trained / "chat_template.jinja").read_text() == template.read_text()
    config = json.loads((run_dir.trained / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in run_dir.trained.iterdir()}


def test_generation_settings_get_the_end_of_turn(base: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "base"
    shutil.copytree(base, other)
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=4)
    stage.run(tiny.recipe_for(other, tmp_path), run_dir)
    assert json.loads((run_dir.trained / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_finished_training_is_not_repeated(base: Path, tmp_path: Path) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=6)
    recipe = tiny.recipe_for(base, tmp_path)
    first = stage.run(recipe, run_dir)
    before = (run_dir.trained / "adapter_model.safetensors").stat().st_mtime_ns
    assert stage.run(recipe, run_dir) == first
    assert (run_dir.trained / "adapter_model.safetensors").stat().st_mtime_ns == before
    changed = dataclasses.replace(recipe, seed=recipe.seed + 1)
    assert stage.run(changed, run_dir).first_loss != first.first_loss, "another seed is another training"


def test_fractions_of_epochs_and_the_last_batch(base: Path, tmp_path: Path) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=10)
    record = stage.run(tiny.recipe_for(base, tmp_path, num_train_epochs=1.5), run_dir)
    assert record.num_steps == 4, "15 sequences in batches of 4"
    assert tiny.losses(run_dir, "train/epoch")[-1][1] == 1.5


def test_loss_that_is_not_finite(base: Path, tmp_path: Path) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=8)
    with pytest.raises(TrainError, match=r"not finite in step [2-9]") as caught:
        stage.run(tiny.recipe_for(base, tmp_path, learning_rate=1e30, method="full", num_train_epochs=4.0), run_dir)
    assert "sequences of this step" in caught.value.do


def test_targets_that_match_nothing(base: Path, tmp_path: Path) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=4)
    recipe = tiny.recipe_for(base, tmp_path, lora=tiny.schema.Lora(target_modules=("qproj",)))
    with pytest.raises(ModelError, match="no linear layer matches") as caught:
        stage.run(recipe, run_dir)
    assert "did you mean 'q_proj'?" in caught.value.do


def test_tokenizer_with_more_ids_than_rows(base: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "base"
    shutil.copytree(base, other)
    tiny.write_tokenizer(other, vocab_size=tiny.VOCAB_SIZE)
    document = json.loads((other / "tokenizer.json").read_text())
    added = {**document["added_tokens"][0], "id": tiny.VOCAB_SIZE + 3, "content": "<|beyond|>"}
    document["added_tokens"].append(added)
    (other / "tokenizer.json").write_text(json.dumps(document))
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=4)
    with pytest.raises(ModelError, match="embedding"):
        stage.run(tiny.recipe_for(other, tmp_path), run_dir)


# ── Stopped and resumed ──────────────────────────────────────────────────────────────────────────────────────────────

_PROGRAM = """
import json, sys
from pathlib import Path
from tests import tiny
from tunesmith.errors import TunesmithError
from tunesmith.store.run_dir import RunDir
from tunesmith.train import stage
base, output, run, settings = sys.argv[1:]
try:
    stage.run(tiny.recipe_for(Path(base), Path(output), **json.loads(settings)), RunDir(run))
except TunesmithError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(base: Path, output: Path, run_dir: RunDir, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROGRAM, str(base), str(output), str(run_dir.path), json.dumps(settings)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)


def wait_for_step(run_dir: RunDir, step: int, child: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and child.poll() is None:
        if run_dir.metrics.exists() and len(run_dir.metrics.read_bytes().splitlines()) >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} never came, exit code {child.poll()}")


def uninterrupted(base: Path, path: Path, settings: dict[str, Any], **rows: Any) -> RunDir:
    run_dir = tiny.run_with_rows(path / "whole", **rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stage.run(tiny.recipe_for(base, path, **settings), run_dir)
    torch.set_num_threads(threads)
    return run_dir


def assert_equal(found: RunDir, expected: RunDir) -> None:
    assert tiny.losses(found) == tiny.losses(expected)
    assert tiny.losses(found, "eval/loss") == tiny.losses(expected, "eval/loss")
    for file in expected.trained.glob("*.safetensors"):
        ours, theirs = load_file(found.trained / file.name), load_file(file)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("objective", "method", "signal_number"),
    [
        ("sft", "lora", signal.SIGKILL),
        pytest.param("sft", "full", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("dpo", "dora", signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    base: Path, tmp_path: Path, objective: str, method: str, signal_number: signal.Signals
) -> None:
    settings: dict[str, Any] = {
        "objective": objective, "method": method, "num_train_epochs": 14.0, "save_steps": 5, "eval_steps": 8,
    }  # fmt: skip
    if method != "full":
        settings["lora"] = {"r": 4, "alpha": 8.0, "dropout": 0.1}
    rows = {"num_rows": 12, "num_held_out": 3, "objective": objective}
    expected = uninterrupted(base, tmp_path, settings, **rows)

    run_dir = tiny.run_with_rows(tmp_path / "stopped", **rows)
    child = start(base, tmp_path, run_dir, settings)
    wait_for_step(run_dir, 13, child)
    child.send_signal(signal_number)
    code = child.wait(60)
    if signal_number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == Interrupted.exit_code
        steps = [int(path.name.removeprefix("step-")) for path in run_dir.checkpoints.glob("step-*")]
        assert max(steps) == tiny.losses(run_dir)[-1][0], "the step it came in is saved"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    record = stage.run(tiny.recipe_for(base, tmp_path, **settings), run_dir)
    torch.set_num_threads(threads)
    assert len(record.resumed_from_steps) == 1 and 0 < record.resumed_from_steps[0] < 42
    assert_equal(run_dir, expected)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest"])
def test_broken_checkpoint_is_set_aside(
    base: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"num_train_epochs": 4.0, "save_steps": 3}
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=12)
    stage.run(tiny.recipe_for(base, tmp_path, **settings), run_dir)
    expected = load_file(run_dir.trained / "adapter_model.safetensors")
    newest = run_dir.checkpoints / "step-000012"
    file = newest / ("manifest.json" if damage == "manifest" else "optimizer.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    (run_dir.trained / "training.json").unlink()
    record = stage.run(tiny.recipe_for(base, tmp_path, **settings), run_dir)
    assert record.resumed_from_steps == (9,)
    told = capsys.readouterr().err
    assert "step-000012 is not used" in told and "it is now broken-step-000012" in told
    assert "removed the broken checkpoint that was set aside: broken-step-000012" in told
    assert not list(run_dir.checkpoints.glob("broken-*")), "the training is whole without it"
    found = load_file(run_dir.trained / "adapter_model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_the_newest_checkpoints_stay(base: Path, tmp_path: Path) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=12)
    recipe = tiny.recipe_for(base, tmp_path, num_train_epochs=4.0, save_steps=2, save_total_limit=3)
    stage.run(recipe, run_dir)
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == [
        "step-000008", "step-000010", "step-000012",
    ]  # fmt: skip


def test_checkpoint_of_other_settings_is_not_resumed(base: Path, tmp_path: Path) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=12)
    stage.run(tiny.recipe_for(base, tmp_path, save_steps=1), run_dir)
    record = stage.run(tiny.recipe_for(base, tmp_path, save_steps=1, learning_rate=5e-3), run_dir)
    assert record.resumed_from_steps == ()


def test_a_disk_that_takes_no_checkpoint_does_not_stop_training(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tiny.run_with_rows(tmp_path / "run", num_rows=8)
    run_dir.checkpoints.parent.mkdir(parents=True)
    run_dir.checkpoints.write_text("a file stands where the directory should be")
    record = stage.run(tiny.recipe_for(base, tmp_path), run_dir)
    assert record.num_steps == 2
    assert "could not be written, training goes on" in capsys.readouterr().err
