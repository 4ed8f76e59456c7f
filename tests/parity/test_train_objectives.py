"""Losses and gradients of training against plain references, in float32 on tiny models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, adapters_off, attach  # noqa: E402
from tunesmith.model.attention import NAME  # noqa: E402
from tunesmith.model.head import keeps_packed_rows_apart, split, use_spans  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.recipe.schema import Dpo, Model  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train import objective as objectives  # noqa: E402
from tunesmith.train import token_losses  # noqa: E402
from tunesmith.train.batches import Collator, Layout  # noqa: E402
from tunesmith.train.optim import Moved  # noqa: E402
from tunesmith.train.token_losses import TokenLosses  # noqa: E402

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen2", "gemma2", "mistral", "granite", "gpt2")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: tiny.write_model(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    path = tmp_path_factory.mktemp("rows") / "shards"
    tiny.write_rows(path, num_rows=12, shared=True)
    return Shards(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    path = tmp_path_factory.mktemp("pairs") / "shards"
    tiny.write_rows(path, num_rows=7, segments=3, longest=18, shared=True)
    return Shards(path)


def model_for(base: Path, method: str) -> tuple[Any, Moved]:
    model = load_model(base, Model("x", dtype="float32", attn_implementation="sdpa"), four_bit=False, device=CPU)
    if method != "full":
        attach(model, AdapterSettings(5, 10.0, 0.0, "all-linear", method == "dora"), seed=3)
    moved = Moved(model)
    if method != "full":
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for weight in moved.weights.values():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model, moved


def gradients(
    model: Any, moved: Moved, objective: Any, shards: Shards, *, size: int, layout: Layout = "padded"
) -> tuple[float, dict[str, Any]]:
    """Return the mean loss of all rows and the gradients of one step."""
    for weight in moved.weights.values():
        weight.grad = None
    collator = Collator(shards, layout, max_tokens=size * 40 * shards.num_segments, device=CPU)
    all_rows = np.arange(len(shards))
    count = collator.num_targets(all_rows) if shards.num_segments == 1 else len(all_rows)
    losses, total = TokenLosses(split(model, over_spans=layout == "spans")), 0.0
    assert layout != "spans" or use_spans(losses.split)
    num_computed = num_tokens = 0
    for batch in collator.micro_batches(all_rows):
        num_computed, num_tokens = num_computed + batch.num_computed, num_tokens + batch.num_tokens
        loss_sum, _ = objective(losses, batch)
        (loss_sum / count).backward()
        total += float(loss_sum.detach())
    assert layout != "spans" or size == 1 or num_computed < num_tokens, "what these rows share is computed once"
    return total / count, {
        name: weight.grad.clone() for name, weight in moved.weights.items() if weight.grad is not None
    }


def reference_sft(model: Any, shards: Shards) -> Any:
    """Return the loss that transformers computes itself, over one padded batch with labels and an attention mask."""
    segments = [shards.segment(row, 0) for row in range(len(shards))]
    width = max(len(ids) for ids, _ in segments)
    ids_BT = torch.zeros(len(segments), width, dtype=torch.long)
    labels_BT, mask_BT = torch.full_like(ids_BT, -100), torch.zeros_like(ids_BT)
    for row, (ids, trained) in enumerate(segments):
        ids_BT[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        labels_BT[row, : len(ids)] = torch.from_numpy(np.where(trained, ids.astype(np.int64), -100))
        mask_BT[row, : len(ids)] = 1
    return model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, use_cache=False).loss


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert set(found) == set(expected)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sft_equals_transformers_own_loss(bases: dict[str, Path], rows: Shards, family: str, method: str) -> None:
    model, moved = model_for(bases[family], method)
    loss, found = gradients(model, moved, objectives.sft, rows, size=5)
    for weight in moved.weights.values():
        weight.grad = None
    expected = reference_sft(model, rows)
    expected.backward()
    assert abs(loss - float(expected.detach())) < 1e-5
    assert_close(found, {name: weight.grad for name, weight in moved.weights.items() if weight.grad is not None})


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize(
    ("size", "layout"), [(1, "padded"), (3, "padded"), (5, "positions"), (1, "spans"), (4, "spans"), (12, "spans")]
)
def test_result_does_not_depend_on_the_micro_batch(
    bases: dict[str, Path], rows: Shards, method: str, size: int, layout: Layout, family: str
) -> None:
    model, moved = model_for(bases[family], method)
    loss, expected = gradients(model, moved, objectives.sft, rows, size=12)
    other_loss, found = gradients(model, moved, objectives.sft, rows, size=size, layout=layout)
    assert abs(loss - other_loss) < 1e-5
    assert_close(found, expected)


def test_chunks_of_the_head_change_nothing(
    bases: dict[str, Path], rows: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("full", "lora"):
        model, moved = model_for(bases["qwen2"], method)
        _, expected = gradients(model, moved, objectives.sft, rows, size=12)
        with monkeypatch.context() as patched:
            patched.setitem(token_losses.LOGITS_CHUNK_BYTES, "cpu", 4 * tiny.VOCAB_SIZE * 17)
            _, found = gradients(model, moved, objectives.sft, rows, size=12)
        assert_close(found, expected)


def test_gradient_checkpointing_changes_nothing(bases: dict[str, Path], rows: Shards) -> None:
    model, moved = model_for(bases["llama"], "dora")
    _, expected = gradients(model, moved, objectives.sft, rows, size=4)
    model.activation_checkpointing_enable({"use_reentrant": False})
    _, found = gradients(model, moved, objectives.sft, rows, size=4)
    assert_close(found, expected)


def plain_log_probability(model: Any, shards: Shards, row: int, side: int) -> Any:
    """Return log p(answer | prompt), one sequence at a time, from the model's own logits."""
    prompt, answer = shards.segment(row, 0)[0], shards.segment(row, side)[0]
    ids_T = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
    logprobs_T = torch.log_softmax(logits_TV[:-1], -1).gather(1, ids_T[1:, None])[:, 0]
    return logprobs_T[len(prompt) - 1 :].sum()


@pytest.mark.parametrize(
    ("size", "layout"), [(2, "padded"), (7, "padded"), (1, "spans"), (3, "spans"), (7, "positions")]
)
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "settings",
    [Dpo(beta=0.3), Dpo(beta=0.3, label_smoothing=0.2), Dpo(beta=0.2, loss_type="ipo"), Dpo(loss_type="hinge")],
    ids=["sigmoid", "smoothed", "ipo", "hinge"],
)
def test_dpo_equals_the_plain_formula(
    bases: dict[str, Path], pairs: Shards, settings: Dpo, size: int, layout: Layout, method: str
) -> None:
    """The plain formula takes one sequence at a time; `spans` computes each pair's prompt once."""
    model, moved = model_for(bases["llama"], method)
    with torch.no_grad(), adapters_off(model):
        reference = torch.stack(
            [torch.stack([plain_log_probability(model, pairs, row, side) for side in (1, 2)]) for row in range(7)]
        )
    if method == "full":
        reference = reference + 0.5 * torch.arange(14).view(7, 2).sin()  # a policy that is not its own reference

    def known(losses: Any, batch: Any) -> Any:
        return reference[torch.from_numpy(batch.rows)]

    loss, found = gradients(model, moved, objectives.DpoObjective(settings, known), pairs, size=size, layout=layout)
    model.set_attn_implementation("sdpa")
    for weight in moved.weights.values():
        weight.grad = None
    total = torch.zeros(())
    for row in range(7):
        ratios = [plain_log_probability(model, pairs, row, side) - reference[row, side - 1] for side in (1, 2)]
        margin, beta, e = ratios[0] - ratios[1], settings.beta, settings.label_smoothing
        if settings.loss_type == "sigmoid":
            sigmoid = torch.sigmoid(beta * margin)
            total = total - (1 - e) * torch.log(sigmoid) - e * torch.log(1 - sigmoid)
        elif settings.loss_type == "hinge":
            total = total + torch.clamp(1 - beta * margin, min=0)
        else:
            means = [ratio / len(pairs.segment(row, side)[0]) for side, ratio in zip((1, 2), ratios, strict=True)]
            total = total + (means[0] - means[1] - 1 / (2 * beta)) ** 2
    (total / 7).backward()
    assert abs(loss - float(total.detach()) / 7) < 1e-5 * max(1.0, abs(loss))
    assert_close(found, {name: weight.grad for name, weight in moved.weights.items() if weight.grad is not None}, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_give_the_models_own_logits(bases: dict[str, Path], family: str) -> None:
    model, _ = model_for(bases[family], "lora")
    parts = split(model)
    assert parts.hidden.__name__ == "hidden", "taken apart, not computed whole"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_look_shows_both_where_a_family_can(bases: dict[str, Path], family: str) -> None:
    model, _ = model_for(bases[family], "lora")
    before = model.config._attn_implementation
    parts = split(model, over_spans=True)
    assert parts.hidden.__name__ == "hidden"
    assert parts.over_spans == use_spans(split(model_for(bases[family], "lora")[0]))
    assert parts.over_spans == (family != "gemma2"), "it caps its scores"
    assert model.config._attn_implementation == (NAME if parts.over_spans else before)


def test_a_family_that_does_more_after_its_head_still_trains(bases: dict[str, Path], rows: Shards) -> None:
    """A head that is scaled in a way that no table knows is noticed, and all logits are computed."""
    model, moved = model_for(bases["llama"], "lora")
    plain = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = scaled
    assert split(model).hidden.__name__ == "whole"
    closer = split(model, over_spans=True)
    assert closer.hidden.__name__ == "whole" and not closer.over_spans
    assert use_spans(closer)
    model.set_attn_implementation("sdpa")
    loss, _ = gradients(model, moved, objectives.sft, rows, size=4)
    model.forward = plain
    other, _ = gradients(model, moved, objectives.sft, rows, size=4)
    assert abs(loss - other) > 1e-3


def test_packing_is_refused_where_rows_mix(bases: dict[str, Path]) -> None:
    model, _ = model_for(bases["llama"], "lora")
    parts = split(model)
    assert keeps_packed_rows_apart(parts)

    def mixing(ids_BT: Any, positions_BT: Any, spans: Any) -> Any:
        return model.get_decoder()(
            input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), position_ids=positions_BT, use_cache=False
        ).last_hidden_state

    assert not keeps_packed_rows_apart(dataclasses.replace(parts, hidden=mixing))


def test_sixteen_bit_weights_gather_gradients_in_float32(bases: dict[str, Path], rows: Shards) -> None:
    model = load_model(
        bases["llama"], Model("x", dtype="bfloat16", attn_implementation="sdpa"), four_bit=False, device=CPU
    )
    moved = Moved(model)
    assert all(weight.dtype == torch.float32 for weight in moved.weights.values())
    _, whole = gradients(model, moved, objectives.sft, rows, size=12)
    _, pieces = gradients(model, moved, objectives.sft, rows, size=1)
    exact_model, exact_moved = model_for(bases["llama"], "full")
    _, exact = gradients(exact_model, exact_moved, objectives.sft, rows, size=12)
    assert all(parameter.grad is None for parameter in model.parameters())
    for found in (whole, pieces):
        assert_close(found, exact, 3e-2)
    with torch.no_grad():
        next(iter(moved.weights.values())).add_(1.0)
    moved.write_back()
    name, master = next(iter(moved.weights.items()))
    assert torch.equal(model.get_parameter(name), master.to(torch.bfloat16))
