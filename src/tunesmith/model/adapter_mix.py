"""One or several adapters as one change of the base model, by PEFT's rules for weighted adapters.

    cat       Δ = Σ wᵢ·sᵢ·Bᵢ·Aᵢ                                          the changes add up; ranks may differ
    linear    A = Σ ±√|wᵢ·sᵢ|·Aᵢ, B = Σ √|wᵢ·sᵢ|·Bᵢ, Δ = B·A              of equal ranks; has cross terms

https://github.com/huggingface/peft/blob/v0.21.0/src/peft/tuners/lora/model.py (add_weighted_adapter)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from tunesmith.errors import MergeError
from tunesmith.model.adapter_files import Adapter, LayerAdapter
from tunesmith.model.adapters import Change
from tunesmith.model.headers import TensorInfo

Combination = Literal["cat", "linear"]


@dataclass(frozen=True)
class Share:
    """What one adapter adds to one layer."""

    layer: LayerAdapter
    scaling: float
    weight: float


@dataclass(frozen=True)
class Mix:
    """Adapters with their weights.

    Attributes:
        adapters: at least one.
        weights: one each. A single adapter of weight 1 is folded as PEFT's `merge_and_unload` does.
    """

    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...] = (1.0,)
    combination: Combination = "cat"

    @property
    def keeps_ties(self) -> bool:
        return any(adapter.keeps_ties for adapter in self.adapters)

    @property
    def fan_in_fan_out(self) -> bool:
        return any(adapter.fan_in_fan_out for adapter in self.adapters)

    @property
    def is_plain(self) -> bool:
        """Whether this is one adapter, as it is."""
        return self.weights == (1.0,)

    @cached_property
    def layers(self) -> dict[str, tuple[Share, ...]]:
        """Return each layer's shares by the base model's module name.

        Raises:
            MergeError: the adapters cannot be combined.
        """
        found: dict[str, list[Share]] = {}
        for adapter, weight in zip(self.adapters, self.weights, strict=True):
            for name, layer in adapter.layers.items():
                found.setdefault(name, []).append(Share(layer, adapter.settings.at(name).scaling, weight))
        if not self.is_plain:
            self._check(found)
        return {name: tuple(shares) for name, shares in found.items()}

    def _check(self, layers: dict[str, list[Share]]) -> None:
        if any(adapter.settings.use_dora for adapter in self.adapters):
            do = "merge one DoRA adapter with weight 1, or LoRA adapters only"
            raise MergeError("DoRA adapters cannot be weighted: their magnitudes do not add up", do=do)
        for name, shares in layers.items():
            ranks = {share.layer.parts["A"].shape[0] for share in shares}
            if self.combination == "linear" and len(ranks) > 1:
                what = f"`linear` adds matrices of one rank, and the adapters of {name!r} have {sorted(ranks)}"
                raise MergeError(what, do="use --combination cat")
            if len({(share.layer.parts["A"].shape[1], share.layer.parts["B"].shape[0]) for share in shares}) > 1:
                raise MergeError(f"the adapters belong to different models: their shapes of {name!r} differ")

    @cached_property
    def whole(self) -> dict[str, TensorInfo]:
        """Return where the tensors of modules that were trained whole lie.

        Raises:
            MergeError: two adapters hold the same one, or one with another weight than 1.
        """
        found: dict[str, TensorInfo] = {}
        for adapter, weight in zip(self.adapters, self.weights, strict=True):
            for name, info in adapter.whole.items():
                if name in found:
                    do = "leave one of them out: PEFT cannot add them up, either"
                    raise MergeError(f"two adapters hold a {name!r} of their own", do=do)
                if weight != 1.0:
                    do = "give this adapter the weight 1"
                    raise MergeError(f"an adapter with the weight {weight:g} holds a whole {name!r}", do=do)
                found[name] = info
        return found

    def change(self, shares: Sequence[Share]) -> Change:
        """Read what the shares do to their layer together. An embedding's A and B stay as PEFT holds them."""
        if self.is_plain:
            (share,) = shares
            return Change(share.layer.read_a(), share.layer.read_b(), share.scaling, share.layer.read_magnitude())
        if self.combination == "cat":
            A = torch.cat([share.layer.read_a() * share.weight * share.scaling for share in shares])
            return Change(A, torch.cat([share.layer.read_b() for share in shares], dim=1), 1.0)
        factors = [share.weight * share.scaling for share in shares]
        signed = torch.tensor([math.copysign(math.sqrt(abs(factor)), factor) for factor in factors])
        A = (torch.stack([share.layer.read_a() for share in shares]) * signed.view(-1, 1, 1)).sum(0)
        B = (torch.stack([share.layer.read_b() for share in shares]) * signed.abs().view(-1, 1, 1)).sum(0)
        return Change(A, B, 1.0)
