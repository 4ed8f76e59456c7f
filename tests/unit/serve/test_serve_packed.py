"""Packed weights give the plain products."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.serve.embedded.packed import PackedLinear, pack


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.table = nn.Linear(24, 40), Conv1D(56, 40), nn.Embedding(7, 5)
        self.last = nn.Linear(56, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.second(self.first(x)))
        return out


def test_products_are_the_same_for_any_number_of_rows() -> None:
    torch.manual_seed(0)
    model = Two().eval()
    inputs = [torch.randn(1, rows, 24) for rows in (1, 2, 16, 33, 200)]
    with torch.inference_mode():
        expected = [model(x) for x in inputs]
        assert pack(model) == 3
        assert isinstance(model.second, PackedLinear) and isinstance(model.table, nn.Embedding)
        for x, y in zip(inputs, expected, strict=True):
            torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)


def test_other_precisions_stay_as_they_are() -> None:
    model = Two().to(torch.bfloat16)
    assert pack(model) == 0
    assert type(model.first) is nn.Linear
