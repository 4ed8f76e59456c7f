"""The merged model against base + adapter, by their logits on a few prompts.

Both models compute in float32 with weights read from their files as they are needed, so that what differs is what
rounding the merged weights did, and the memory is that of a few tensors. On the side of base + adapter nothing is
folded: adapters act on the activations, as they do in training.

A model that cannot be computed that way (experts under other names in the files than in memory) is compared layer by
layer, on random inputs; the proof says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.errors import MergeError
from tunesmith.merge.plan import Operation
from tunesmith.model.adapter_mix import Mix, Share
from tunesmith.model.adapters import Change
from tunesmith.model.headers import read_headers
from tunesmith.model.load import DTYPES
from tunesmith.model.streamed import NotStreamable, Part, StreamedLinear, streamed_logits, streamed_model

NUM_PROBES, PROBE_TOKENS = 4, 64
_LARGE_PARAMETERS = 500_000_000  # above, prompts are half as long: every token passes through every weight twice
_NUM_SAMPLED_LAYERS = 24

# Largest difference allowed, as a share of the logits' range. Rounding each weight of a layer to n bits moves its
# output by about 2^-n, and depth multiplies that by a small factor.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Probe:
    """A prompt, and which of its tokens have a loss (those that an answer was trained on)."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class Before:
    """Base and adapter, as the plan sees them.

    Args:
        quantised_from: number format that NF4 was made from in training.
        trust_remote_code: as in the recipe.
    """

    operations: Mapping[str, Operation]
    mix: Mix | None
    quantised_from: str
    trust_remote_code: bool = False

    def parts(self, quantised: Sequence[str] | None = None) -> dict[str, Part]:
        """Return where each tensor comes from.

        Args:
            quantised: names of tensors that go through NF4; None for those of the plan.
        """
        four_bit = {name for name, o in self.operations.items() if o.is_quantised} if quantised is None else quantised
        return {
            name: Part(
                operation.source,
                self._reader(operation.shares),
                DTYPES[self.quantised_from] if name in four_bit else None,
            )
            for name, operation in self.operations.items()
        }

    def _reader(self, shares: tuple[Share, ...]) -> Callable[[], Change] | None:
        mix = self.mix
        return (lambda: mix.change(shares)) if shares and mix is not None else None


def num_probe_tokens(num_parameters: int) -> int:
    return PROBE_TOKENS // 2 if num_parameters > _LARGE_PARAMETERS else PROBE_TOKENS


def prove(before: Before, merged: Path, probes: list[Probe], dtype: str) -> dict[str, Any]:
    """Compare the logits of base + adapter with those of the merged model.

    Args:
        merged: directory of the merged model.
        dtype: number format of the merged weights.

    Raises:
        MergeError: they differ by more than rounding does.
    """
    try:
        first = _logits(merged, before.parts(), probes, before)
        second = _logits(merged, _parts_of(merged), probes, before)
        found = _compared(first, second, probes)
    except NotStreamable as reason:
        found = _by_layers(before, merged, str(reason))
    allowed = TOLERANCES[dtype] * found["logit_range"]
    proof = found | {"tolerance": allowed, "compute_dtype": "float32", "merged_dtype": dtype}
    largest = found["max_difference"]
    if not largest <= allowed:  # also when it is NaN
        what = (
            f"the merged model differs from base + adapter by {largest:.3g} in its logits; "
            f"rounding explains at most {allowed:.3g}"
        )
        raise MergeError(what, where=str(merged), do="nothing was written; please report this with the recipe")
    return proof


def _parts_of(directory: Path) -> dict[str, Part]:
    return {name: Part(info) for name, info in read_headers(directory).items()}


def _logits(config: Path, parts: dict[str, Part], probes: list[Probe], before: Before) -> list[Tensor]:
    model = streamed_model(config, parts, trust_remote_code=before.trust_remote_code)
    return streamed_logits(model, [probe.ids for probe in probes])


def _compared(first: list[Tensor], second: list[Tensor], probes: list[Probe]) -> dict[str, Any]:
    """Return how far two models' logits are from each other. The second's are overwritten."""
    largest = total = 0.0
    num_equal = num_tokens = num_logits = 0
    spread = 0.0
    for a, b in zip(first, second, strict=True):
        spread = max(spread, float(a.max() - a.min()))
        num_equal += int((a.argmax(-1) == b.argmax(-1)).sum())
        num_tokens, num_logits = num_tokens + a.shape[0], num_logits + a.numel()
        difference = b.sub_(a).abs_()
        worst = float(difference.max())
        largest = worst if math.isnan(worst) else max(largest, worst)
        total += float(difference.sum(dtype=torch.float64))
    return {
        "compared": "logits on probe prompts",
        "max_difference": largest,
        "mean_difference": total / max(1, num_logits),
        "logit_range": spread,
        "top1_agreement": num_equal / max(1, num_tokens),
        "num_prompts": len(probes),
        "num_tokens": num_tokens,
    }


# ── Which base a 4-bit adapter is folded onto ────────────────────────────────────────────────────────────────────────


def losses_of_bases(
    before: Before, directory: Path, probes: list[Probe], quantised: Sequence[str]
) -> dict[str, float] | None:
    """Return the mean loss on the probes of base + adapter, with the base after NF4 and with the original one.

    Args:
        directory: holds config.json as it will be.
        quantised: names of the tensors that were in NF4 in training.

    Returns:
        `nf4` and `original`; None when the model cannot be computed from its files, or no token has a loss.
    """
    if not any(any(probe.trained[1:]) for probe in probes):
        return None
    try:
        return {
            name: _loss(_logits(directory, before.parts(four_bit), probes, before), probes)
            for name, four_bit in (("nf4", quantised), ("original", ()))
        }
    except NotStreamable:
        return None


def _loss(logits: list[Tensor], probes: list[Probe]) -> float:
    total, count = 0.0, 0
    for logits_TV, probe_ in zip(logits, probes, strict=True):
        flags = torch.tensor(probe_.trained[1:])
        targets = torch.tensor(probe_.ids[1:])[flags]
        total += float(functional.cross_entropy(logits_TV[:-1][flags], targets, reduction="sum"))
        count += len(targets)
    return total / count


# ── Layer by layer ───────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def _by_layers(before: Before, merged: Path, reason: str) -> dict[str, Any]:
    """Compare the outputs of some adapted layers on random inputs, for models that cannot be computed from files."""
    after = read_headers(merged)
    parts = before.parts()
    adapted = [n for n, o in before.operations.items() if o.shares and not o.shares[0].layer.on_embedding]
    chosen = adapted[:: max(1, -(-len(adapted) // _NUM_SAMPLED_LAYERS))]
    generator = torch.Generator().manual_seed(0)
    largest = total = worst_share = spread = 0.0
    num_equal = num_rows = num_outputs = 0
    for name in chosen:
        transposed = before.operations[name].is_transposed
        shape = parts[name].info.shape
        x = torch.randn(8, shape[0] if transposed else shape[-1], generator=generator)
        first, second = (StreamedLinear(part, transposed=transposed)(x) for part in (parts[name], Part(after[name])))
        difference, range_ = (first - second).abs(), float(first.max() - first.min())
        share = float(difference.max()) / max(range_, 1e-30)
        if not share <= worst_share:
            worst_share, largest, spread = share, float(difference.max()), range_
        total += float(difference.sum())
        num_equal += int((first.argmax(-1) == second.argmax(-1)).sum())
        num_rows, num_outputs = num_rows + len(x), num_outputs + first.numel()
    return {
        "compared": f"outputs of {len(chosen)} of {len(adapted)} adapted layers on random inputs: {reason}",
        "max_difference": largest,
        "mean_difference": total / max(1, num_outputs),
        "logit_range": spread,
        "top1_agreement": num_equal / num_rows if num_rows else 1.0,
        "num_prompts": 0,
        "num_tokens": num_rows,
    }
