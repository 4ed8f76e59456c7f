"""What moves, how it moves, and how fast.

Moved weights are float32 wherever they are updated: adapters are float32 themselves; what else moves in 16 bits (whole
models, modules beside an adapter) has a float32 copy here, with float32 gradients, because an update of relative size
1e-3 is below bfloat16's resolution and sums of many micro-batches would lose their small terms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.adapter_files import adapter_parameters
from tunesmith.model.adapters import adapters_of
from tunesmith.model.nf4 import bitsandbytes
from tunesmith.recipe.schema import Train

DEFAULT_WARMUP_RATIO = 0.03


class Moved:
    """The weights that training moves, by name, in float32.

    Attributes:
        weights: what the optimiser works on: the model's own parameters, or float32 copies of 16-bit ones.
    """

    def __init__(self, model: nn.Module) -> None:
        named = adapter_parameters(model) if adapters_of(model) else dict(model.named_parameters())
        self._in_model: dict[str, nn.Parameter] = named
        for parameter in named.values():
            parameter.requires_grad_(True)
        self.weights: dict[str, nn.Parameter] = {}
        for name, parameter in named.items():
            narrow = parameter.dtype != torch.float32
            self.weights[name] = nn.Parameter(parameter.detach().float()) if narrow else parameter
            if narrow:
                parameter.register_post_accumulate_grad_hook(self._gather(self.weights[name]))

    @staticmethod
    def _gather(master: nn.Parameter) -> Any:
        """Return what adds a finished 16-bit gradient to the float32 one and frees it, during the backward pass."""

        def add(parameter: nn.Parameter) -> None:
            assert parameter.grad is not None
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

        return add

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the float32 copies into the model."""
        for name, master in self.weights.items():
            if master is not self._in_model[name]:
                self._in_model[name].copy_(master)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.weights.values())


def build_optimizer(train: Train, weights: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser with two groups: matrices decay; biases, norms and magnitudes do not.

    Raises:
        EnvironmentProblem: an 8-bit optimiser, and bitsandbytes is not installed.
    """
    matrices = [weight for weight in weights.values() if weight.ndim >= 2]
    vectors = [weight for weight in weights.values() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if train.optim == "adafactor":
        return torch.optim.Adafactor(groups, lr=train.learning_rate)
    betas = (train.adam_beta1, train.adam_beta2)
    if train.optim == "adamw":
        return torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, fused=True)
    kinds = bitsandbytes("optim", needed_for=f"`train.optim: {train.optim}`")
    # On a CPU there is nothing to page to, and the library would take the other one with a warning.
    paged = train.optim == "paged_adamw_8bit" and any(weight.is_cuda for weight in weights.values())
    kind = kinds.PagedAdamW8bit if paged else kinds.AdamW8bit
    made: torch.optim.Optimizer = kind(groups, lr=train.learning_rate, betas=betas)
    return made


def learning_rate(train: Train, step: int, num_steps: int) -> float:
    """Return the learning rate of a step (counted from 0).

    Warm-up is linear and reaches the peak in its last step; the decay would reach zero one step after the last one.
    """
    warmup = warmup_steps(train, num_steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    if train.lr_scheduler_type == "linear":
        return train.learning_rate * (1 - done)
    if train.lr_scheduler_type == "cosine":
        return train.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return train.learning_rate


def warmup_steps(train: Train, num_steps: int) -> int:
    """Return the steps of warm-up; of a ratio, rounded up."""
    if train.warmup_steps is not None:
        return train.warmup_steps
    ratio = DEFAULT_WARMUP_RATIO if train.warmup_ratio is None else train.warmup_ratio
    return math.ceil(round(ratio * num_steps, 6))


def clip(weights: dict[str, nn.Parameter], max_grad_norm: float) -> float:
    """Scale gradients down to a global norm, and return the norm they had, over all shards."""
    norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), max_grad_norm)
    whole = getattr(norm, "full_tensor", None)  # of a DTensor, whose import would cost every training a second
    return float(whole() if whole else norm)


def optimizer_tensors(optimizer: torch.optim.Optimizer, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's state by name: `WEIGHT//exp_avg` and so on. Plain numbers become tensors."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if value is not None:
                found[f"{name}//{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def fill_optimizer(
    optimizer: torch.optim.Optimizer, weights: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("//")
        weight = weights[name]
        if key == "step":
            # Fused AdamW counts beside the weight on CUDA, others on the CPU; bitsandbytes counts in Python.
            counted = isinstance(optimizer, torch.optim.AdamW | torch.optim.Adafactor)
            fused = counted and optimizer.defaults.get("fused")
            optimizer.state[weight][key] = (tensor.to(weight.device) if fused else tensor) if counted else int(tensor)
        else:
            optimizer.state[weight][key] = tensor.to(weight.device)
