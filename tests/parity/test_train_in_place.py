"""Gradients that are added where they lie, and what is kept where it goes, beside autograd's own."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tests import tiny  # noqa: E402
from tunesmith.model.attention import Spans, attend  # noqa: E402
from tunesmith.model.head import split  # noqa: E402
from tunesmith.model.in_place import add_embeddings_in_place, going_backward_times  # noqa: E402
from tunesmith.model.load import load_model  # noqa: E402
from tunesmith.model.recomputed import keeping_less  # noqa: E402
from tunesmith.recipe.schema import Model  # noqa: E402
from tunesmith.tokens.shards import Shards  # noqa: E402
from tunesmith.train.batches import Collator  # noqa: E402
from tunesmith.train.objective import sft  # noqa: E402
from tunesmith.train.optim import Moved  # noqa: E402
from tunesmith.train.token_losses import TokenLosses  # noqa: E402

CPU = torch.device("cpu")


class Made(TorchDispatchMode):
    """Counts tensors of a shape that operations make in memory of their own."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {arg.data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape == self.shape and result.data_ptr() not in before:
            self.count += 1
        return result


def step(model: Any, moved: Moved, rows: Path, *, in_place: bool) -> tuple[dict[str, Any], int]:
    """Return the gradients of a step of several micro-batches, and how many matrices like the embedding were made."""
    losses = TokenLosses(split(model))
    if in_place:
        add_embeddings_in_place(model)
    shards = Shards(rows)
    batches = list(Collator(shards, "padded", max_tokens=90, device=CPU).micro_batches(np.arange(len(shards))))
    assert len(batches) > 2
    count = sum(len(batch.targets_N) for batch in batches)
    with Made(model.get_input_embeddings().weight.shape) as made:
        for batch in batches:
            with going_backward_times(1 / count) if in_place else contextlib.nullcontext():
                (sft(losses, batch)[0] / count).backward()
    found = {name: weight.grad for name, weight in moved.weights.items()}
    for weight in moved.weights.values():
        weight.grad = None
    return found, made.count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_heads_and_embeddings(tmp_path: Path, tied: bool, dtype: str) -> None:
    base = tiny.write_model(tmp_path / "model", tied=tied, dtype=dtype)
    tiny.write_rows(tmp_path / "rows", num_rows=9)
    model = load_model(base, Model("x", dtype=dtype, attn_implementation="sdpa"), four_bit=False, device=CPU)
    moved = Moved(model)
    expected, num_usual = step(model, moved, tmp_path / "rows", in_place=False)
    found, num_made = step(model, moved, tmp_path / "rows", in_place=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name
    if dtype == "float32":
        assert num_made == (1 if tied else 2) < num_usual  # the gradients themselves
    else:  # gathered in 32 bits elsewhere, as autograd makes them
        assert num_made == num_usual


def test_a_token_that_stands_for_nothing_learns_nothing() -> None:
    torch.manual_seed(0)
    usual, ours = (torch.nn.Embedding(11, 5, padding_idx=3) for _ in range(2))
    ours.load_state_dict(usual.state_dict())
    add_embeddings_in_place(torch.nn.Sequential(ours))
    ids, factors = torch.tensor([[1, 3, 1], [10, 3, 0]]), torch.randn(2, 3, 5)
    for _ in range(2):
        (usual(ids) * factors).sum().backward()
        with going_backward_times(1.0):
            (ours(ids) * factors).sum().backward()
    assert torch.allclose(ours.weight.grad, usual.weight.grad, rtol=1e-6)
    assert not ours.weight.grad[3].any()


def test_another_factor_than_promised_is_refused(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "model")
    tiny.write_rows(tmp_path / "rows", num_rows=2)
    model = load_model(base, Model("x", dtype="float32", attn_implementation="sdpa"), four_bit=False, device=CPU)
    Moved(model)
    (batch,) = Collator(Shards(tmp_path / "rows"), "padded", max_tokens=900, device=CPU).micro_batches(np.arange(2))
    with going_backward_times(0.5):
        loss, _ = sft(TokenLosses(split(model)), batch)
    with pytest.raises(AssertionError, match="another factor"):
        (loss / 3).backward()


def attention(less: bool) -> tuple[list[Any], int]:
    """Return outputs and gradients of packed rows, and how many numbers are kept besides inputs and output."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 19, 8, requires_grad=True) for heads in (6, 2, 2))
    spans = Spans.of([np.arange(7), np.arange(7, 12), np.arange(12, 19)], [0, 0, 0], CPU)
    known = {id(found) for found in gc.get_objects() if isinstance(found, torch.Tensor)}
    with keeping_less() if less else torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda kept: kept):
        out, _ = attend(None, q, k, v, None, spans=spans)
    places = {tensor.untyped_storage().data_ptr() for tensor in (q, k, v, out)}
    kept = {
        found.data_ptr(): found.numel()
        for found in gc.get_objects()
        if isinstance(found, torch.Tensor) and id(found) not in known
        if found.is_floating_point() and found.untyped_storage().data_ptr() not in places
    }
    out.square().sum().backward()
    return [out.detach(), q.grad, k.grad, v.grad], sum(kept.values())


def test_attention_over_packed_rows_is_kept_once() -> None:
    ours, num_kept = attention(less=True)
    usual, num_usual = attention(less=False)
    assert all(torch.equal(one, other) for one, other in zip(ours, usual, strict=True))
    assert num_usual - num_kept == 6 * 19 * 8
    assert num_kept == 6 * 19  # the sums of each query's scores
