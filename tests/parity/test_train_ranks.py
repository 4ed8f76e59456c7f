"""One, two and four ranks, whole copies and shards: the gradients and the curve of one process and one big batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests import tiny  # noqa: E402
from tests.parity import ranks_worker as worker  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, adapters_off, attach  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.recipe.schema import Model  # noqa: E402
from tunesmith.store.run_dir import RunDir  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train.optim import Moved  # noqa: E402
from tunesmith.train.world import World  # noqa: E402

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    tiny.write_model(place / "base")
    tiny.write_model(place / "tied", tied=True, seed=2)
    tiny.write_model(place / "narrow", dtype="bfloat16", seed=3)
    for objective in ("sft", "dpo"):
        tiny.run_with_rows(place / objective, num_rows=worker.NUM_ROWS, objective=objective, shared=True)
    for training in worker.TRAININGS:
        for size in (1, 2):
            rows = {"num_rows": 11, "num_held_out": 5, "objective": training.objective}
            tiny.run_with_rows(place / f"{training.name}-{size}", **rows)
    return place


@pytest.fixture(scope="module", params=[2, 4])
def size(request: pytest.FixtureRequest, place: Path) -> int:
    """A number of ranks that have done their work."""
    num_ranks = int(request.param)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    program = str(ROOT / "tests" / "parity" / "ranks_worker.py")
    command = [sys.executable, "-m", "tunesmith.train.ranks", str(num_ranks), program, str(place)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=300)
    return num_ranks


def big_batch(shards: Shards, rows: range) -> tuple[Any, Any, Any]:
    """Return ids, attention mask and labels of all sequences side by side; of pairs, chosen and rejected in turn."""
    sides = [(0,)] if shards.num_segments == 1 else [(0, 1), (0, 2)]
    sequences = [[shards.segment(row, part) for part in side] for row in rows for side in sides]
    width = max(sum(len(ids) for ids, _ in parts) for parts in sequences)
    ids_BT = torch.zeros(len(sequences), width, dtype=torch.long)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
    for number, parts in enumerate(sequences):
        ids = np.concatenate([ids for ids, _ in parts]).astype(np.int64)
        trained = np.concatenate([flags & (part > 0 or len(sides) == 1) for part, (_, flags) in enumerate(parts)])
        ids_BT[number, : len(ids)] = torch.from_numpy(ids)
        mask_BT[number, : len(ids)] = 1
        labels_BT[number, : len(ids)] = torch.from_numpy(np.where(trained, ids, -100))
    return ids_BT, mask_BT, labels_BT


def log_probabilities(model: Any, batch: tuple[Any, Any, Any]) -> Any:
    ids_BT, mask_BT, labels_BT = batch
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
    trained_BT = labels_BT[:, 1:] != -100
    log_p_BT = torch.log_softmax(logits_BTV, -1).gather(2, ids_BT[:, 1:, None])[..., 0]
    return (log_p_BT * trained_BT).sum(1)


def plain(place: Path, objective: str, method: str, num_rows: int) -> dict[str, Any]:
    """Return loss and gradients of transformers' own forward pass over one padded batch, in float64."""
    recipe = worker.recipe_of(place, "base", objective, method, "ddp")
    settings = Model("x", dtype="float32", attn_implementation="eager")
    model = load_model(place / "base", settings, four_bit=False, device=torch.device("cpu"))
    batch = big_batch(Shards(RunDir(place / objective).train_tokens), range(num_rows))
    with torch.no_grad():
        reference = log_probabilities(model.double(), batch)
    model.float()
    if method != "full":
        attach(model, AdapterSettings.of(recipe.train.lora, method), seed=recipe.seed)
    moved = Moved(model)
    worker.shake(moved.weights)
    model.double()
    if objective == "sft":
        loss = model(input_ids=batch[0], attention_mask=batch[1], labels=batch[2], use_cache=False).loss
    else:
        ratios_P2 = (log_probabilities(model, batch) - reference).view(-1, 2)
        loss = -torch.nn.functional.logsigmoid(0.3 * (ratios_P2[:, 0] - ratios_P2[:, 1])).mean()
        if method != "full":
            with torch.no_grad(), adapters_off(model):
                assert torch.allclose(log_probabilities(model, batch), reference)
    loss.backward()
    return {"loss": loss.detach()} | {name: weight.grad for name, weight in moved.weights.items()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    assert abs(float(found["loss"]) - float(expected["loss"])) <= TOLERANCE * float(expected["loss"])
    scale = max(float(tensor.abs().max()) for name, tensor in expected.items() if name != "loss")
    assert scale > 1e-3
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= TOLERANCE * scale or name == "loss", name


@pytest.mark.parametrize("batch", worker.BATCHES)
@pytest.mark.parametrize("case", [case for case in worker.CASES if case[2] == "ddp"], ids="-".join)
def test_gradients_of_one_rank(place: Path, case: tuple[str, str, str], batch: str) -> None:
    """Packed, accumulated over several micro-batches, with shared prompts."""
    found = worker.gradients(place, case, ALONE, batch)
    assert_same(found, plain(place, case[0], case[1], worker.BATCHES[batch]))


def test_gradients_of_several_ranks(place: Path, size: int) -> None:
    for case in worker.CASES:
        for batch, num_rows in worker.BATCHES.items():
            found = load_file(place / f"{'-'.join(case)}-{batch}-{size}.safetensors")
            assert_same(found, plain(place, case[0], case[1], num_rows))


@pytest.mark.parametrize("training", worker.TRAININGS, ids=lambda training: training.name.replace(" ", "-"))
def test_trainings_of_two_ranks(place: Path, size: int, training: worker.Training) -> None:
    """The curve, the validation losses and the logits of `train/final` are those of one rank."""
    if size != 2:
        pytest.skip("two ranks are enough")
    alone, together = (RunDir(place / f"{training.name}-{number}") for number in (1, 2))
    worker.train(place, alone, training, ALONE)
    tolerance = 2e-2 if training.base == "narrow" else TOLERANCE
    for name in ("train/loss", "eval/loss"):
        expected, found = tiny.losses(alone, name), tiny.losses(together, name)
        assert [step for step, _ in found] == [step for step, _ in expected] and found
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=tolerance)
    ids_BT = torch.arange(3, 43).view(2, 20) * 7 % tiny.VOCAB_SIZE
    both = [logits(place / training.base, run_dir.trained, training, ids_BT) for run_dir in (alone, together)]
    bound = (5e-2 if training.base == "narrow" else 1e-4) * both[0].abs().max()
    assert (both[0] - both[1]).abs().max() <= bound
    before = logits(place / training.base, place / training.base, training, ids_BT)
    assert (both[0] - before).abs().max() > 1.5 * bound, "the training changed something"


@torch.no_grad()
def logits(base: Path, trained: Path, training: worker.Training, ids_BT: Any) -> Any:
    """Load with transformers, and with PEFT for an adapter."""
    from transformers import AutoModelForCausalLM

    whole = training.method == "full" or base == trained
    model = AutoModelForCausalLM.from_pretrained(str(trained if whole else base), dtype="auto")
    if not whole:
        peft = pytest.importorskip("peft")
        model = peft.PeftModel.from_pretrained(model, str(trained))
    elif training.base == "narrow":
        assert model.dtype == torch.bfloat16
    return model.eval()(input_ids=ids_BT).logits.float()
