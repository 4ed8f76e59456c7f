"""The merged model against base + adapter, by their logits on a few prompts.

Both models compute in float32 with weights read from their files as they are needed, so that what differs is what
rounding the merged weights did, and the memory is that of a few tensors. On the side of base + adapter nothing is
folded: adapters act on the activations, as they do in training.

On the way each adapted layer is compared by itself, on some of the inputs that it had. Of a model that cannot be
computed from its files (experts under other names in the files than in memory) only the layers are compared, on random
inputs; the proof says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.errors import MergeError
from tunesmith.merge.plan import Operation
from tunesmith.model.adapter_mix import Mix, Share
from tunesmith.model.adapters import Change
from tunesmith.model.headers import TensorInfo, read_headers
from tunesmith.model.load import DTYPES
from tunesmith.model.streamed import (
    Aside,
    NotStreamable,
    Part,
    StreamedLinear,
    streamed_logits,
    streamed_model,
)

NUM_PROBES, PROBE_TOKENS = 4, 64
_LARGE_PARAMETERS = 500_000_000  # above, prompts are half as long: every token passes through every weight twice
_WATCHED_TOKENS = 8
_MOST_ROUNDINGS = 1.5  # where roundings are random, 0.4 is what comes out
# Distance of neighbouring numbers as a share of them, at most. In float32 the products' own rounding is larger.
_STEPS = {"float32": 2.0**-17, "float16": 2.0**-10, "bfloat16": 2.0**-7}

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

    def parts(self, quantised: Sequence[str] | None = None, seen: dict[str, Seen] | None = None) -> dict[str, Part]:
        """Return where each tensor comes from.

        Args:
            quantised: names of tensors that go through NF4; None for those of the plan.
            seen: is filled with what the adapted layers make of a few tokens.
        """
        parts = {name: self._part(name, quantised) for name in self.operations}
        if seen is not None:
            for name in self.layers():
                parts[name] = dataclasses.replace(parts[name], watch=partial(_keep, seen, name))
        return parts

    def _part(self, name: str, quantised: Sequence[str] | None) -> Part:
        operation = self.operations[name]
        four_bit = operation.is_quantised if quantised is None else name in quantised
        return Part(operation.source, self._reader(operation.shares), DTYPES[self.quantised_from] if four_bit else None)

    def layers(self) -> list[str]:
        """Return the names of the adapted linear layers' weights."""
        return [n for n, o in self.operations.items() if o.shares and not o.shares[0].layer.on_embedding]

    def _reader(self, shares: tuple[Share, ...]) -> Callable[[], Change] | None:
        mix = self.mix
        return (lambda: mix.change(shares)) if shares and mix is not None else None


@dataclass(frozen=True)
class Seen:
    """What a layer with its adapter makes of a few tokens: x (n, in), y (out, n), and Σ(y - W·xᵀ)²."""

    x_nI: Tensor
    y_On: Tensor
    effect: float


def _keep(seen: dict[str, Seen], name: str, x_NI: Tensor, plain_ON: Tensor, y_ON: Tensor) -> None:
    """Keep some of a layer's inputs, from all over the prompts, and their outputs."""
    step = max(1, len(x_NI) // _WATCHED_TOKENS)
    chosen = slice(0, step * _WATCHED_TOKENS, step)
    y_On = y_ON[:, chosen].clone()
    seen[name] = Seen(x_NI[chosen].clone(), y_On, float((y_On - plain_ON[:, chosen]).square().sum()))


def num_probe_tokens(num_parameters: int) -> int:
    return PROBE_TOKENS // 2 if num_parameters > _LARGE_PARAMETERS else PROBE_TOKENS


def prove(before: Before, merged: Path, probes: list[Probe], dtype: str) -> dict[str, Any]:
    """Compare the logits of base + adapter with those of the merged model, and each adapted layer's outputs.

    Args:
        merged: directory of the merged model.
        dtype: number format of the merged weights.

    Raises:
        MergeError: they differ by more than rounding does.
    """
    seen: dict[str, Seen] = {}
    errors: dict[str, tuple[float, float]] = {}
    try:
        first = _logits(merged, before.parts(seen=seen), probes, before)
        second = _logits(merged, _parts_of(merged, seen, errors), probes, before)
        found = _compared(first, second, probes)
    except NotStreamable as reason:
        _compute_layers(before, merged, seen, errors)
        found = {"compared": f"outputs of {len(seen)} adapted layers on random inputs, since {reason}"}
        found |= {"num_prompts": 0, "num_tokens": _WATCHED_TOKENS * len(seen)}
    proof = found | {"compute_dtype": "float32", "merged_dtype": dtype}
    do = "nothing was written; please report this with the recipe"
    if "logit_range" in found:
        largest, allowed = found["max_difference"], TOLERANCES[dtype] * found["logit_range"]
        proof["tolerance"] = allowed
        if not largest <= allowed:  # also when it is NaN
            what = f"the merged model differs from base + adapter by {largest:.3g} in its logits; "
            raise MergeError(f"{what}rounding explains at most {allowed:.3g}", where=str(merged), do=do)
    proof |= _compared_layers(seen, errors, dtype)
    if not proof["worst_layer_in_roundings"] <= _MOST_ROUNDINGS:
        what = f"the merged layer {proof['worst_layer']!r} differs from base + adapter by "
        what += f"{proof['worst_layer_in_roundings']:.3g} times what rounding explains"
        raise MergeError(what, where=str(merged), do=do)
    return proof


def _parts_of(merged: Path, seen: Mapping[str, Seen], errors: dict[str, tuple[float, float]]) -> dict[str, Part]:
    """Return where each tensor of the merged model comes from.

    Args:
        seen: of base + adapter.
        errors: is filled with each layer's Σ(y' - y)² on the same inputs, and Σ x²·w² of its weights.
    """

    def part(name: str, info: TensorInfo) -> Part:
        if name not in seen:
            return Part(info)

        def take(y_On: Tensor, squares: float) -> None:
            errors[name] = float((y_On - seen[name].y_On).square().sum()), squares

        return Part(info, aside=Aside(seen[name].x_nI, take))

    return {name: part(name, info) for name, info in read_headers(merged).items()}


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
def _compute_layers(
    before: Before, merged: Path, seen: dict[str, Seen], errors: dict[str, tuple[float, float]]
) -> None:
    """Compute the adapted layers of a model that cannot be computed, on random inputs."""
    generator = torch.Generator().manual_seed(0)
    first = before.parts(seen=seen)
    for name in before.layers():
        size = before.operations[name].shares[0].layer.parts["A"].shape[1]
        x = torch.randn(_WATCHED_TOKENS, size, generator=generator)
        StreamedLinear(first[name], transposed=before.operations[name].is_transposed)(x)
    second = _parts_of(merged, seen, errors)
    for name, found in seen.items():
        StreamedLinear(second[name], transposed=before.operations[name].is_transposed)(found.x_nI[:0])


def _compared_layers(seen: Mapping[str, Seen], errors: Mapping[str, tuple[float, float]], dtype: str) -> dict[str, Any]:
    """Compare each adapted layer's outputs on the same inputs, in units of what rounding its weights is expected to do.

    Logits may hide a small change that got lost in one layer; here it is seen as long as rounding itself leaves it.
    The unit is the length that errors of half a step in every weight, of random sign, give the outputs.
    """
    if not seen:
        return {"worst_layer_in_roundings": 0.0}
    worst, worst_name = 0.0, ""
    for name in seen:
        error, squares = errors.get(name, (math.inf, 0.0))  # a layer that the merged model does not have
        unit = _STEPS[dtype] / 2 * math.sqrt(squares) + 1e-30
        if not math.sqrt(error) / unit <= worst:
            worst, worst_name = math.sqrt(error) / unit, name
    total, changes = sum(errors[name][0] for name in errors), sum(found.effect for found in seen.values())
    share = math.sqrt(total / changes) if changes else 0.0
    return {"worst_layer": worst_name, "worst_layer_in_roundings": worst, "rounded_share_of_change": share}
