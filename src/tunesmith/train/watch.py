"""Whether a training is well: steps that must not be taken, and signs that something is wrong before it is too late."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from tunesmith.recipe.schema import Train
from tunesmith.track.console import warn

WINDOW = 32  # steps


def fault_of(loss: float, norm: float, recent: list[float], train: Train) -> str | None:
    """Return why a step must not be taken, or None.

    Args:
        recent: losses of the steps before it, newest last.
    """
    if not math.isfinite(loss):
        return "the loss is not finite"
    if not math.isfinite(norm):
        return "the gradient is not finite"
    factor = train.max_loss_spike
    if factor is not None and len(recent) >= WINDOW // 2:
        median = statistics.median(recent)
        if loss > factor * median:
            return f"the loss jumped to {loss:.4g}, more than {factor:g} times the {median:.4g} of the steps before"
    return None


class Watch:
    """Looks at every step and says, once each, what is wrong and what to do about it."""

    def __init__(self, train: Train) -> None:
        self._train = train
        self._told: set[str] = set()
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._speeds: list[float] = []
        self._lowest: tuple[float, int] | None = None
        self._validation: list[float] = []

    def step(self, step: int, loss: float, norm: float, tokens_per_second: float) -> None:
        """Take the numbers of a step."""
        for values, value in ((self._losses, loss), (self._norms, norm), (self._speeds, tokens_per_second)):
            values.append(value)
            del values[:-WINDOW]
        if len(self._losses) < WINDOW:
            return
        mean = statistics.fmean(self._losses)
        if self._lowest is None or mean < self._lowest[0]:
            self._lowest = (mean, step)
        for sign in _SIGNS:
            said = sign(self, step)
            if said and sign.__name__ not in self._told:
                self._told.add(sign.__name__)
                warn(f"step {step}: {said}")

    def validated(self, step: int, loss: float) -> None:
        """Take a validation loss."""
        self._validation.append(loss)
        last = self._validation[-4:]
        if len(last) == 4 and last == sorted(last) and last[0] < last[-1] and "overfitting" not in self._told:
            self._told.add("overfitting")
            warn(
                f"step {step}: the validation loss has risen three times in a row, {last[0]:.4f} to {last[-1]:.4f}: "
                "the model learns its rows by heart; fewer epochs, or early_stopping_patience, would end it at its best"
            )

    def nothing_moves(self, step: int) -> str | None:
        if max(self._norms) > 1e-9:
            return None
        return (
            f"the gradient has been zero for {WINDOW} steps: nothing is learnt. Check data.train_on and "
            "train.lora.target_modules (`tunesmith data show` prints what is trained)"
        )

    def mostly_clipped(self, step: int) -> str | None:
        if statistics.median(self._norms) < 20 * self._train.max_grad_norm:
            return None
        return (
            f"gradients are cut down more than twenty times in most steps (norm {statistics.median(self._norms):.3g}, "
            f"max_grad_norm {self._train.max_grad_norm:g}): lower train.learning_rate, or look for broken rows"
        )

    def loss_rises(self, step: int) -> str | None:
        assert self._lowest is not None
        lowest, at = self._lowest
        mean = statistics.fmean(self._losses)
        if mean < 1.5 * lowest or mean - lowest < 0.1:
            return None
        return (
            f"the loss has risen from {lowest:.4f} (around step {at}) to {mean:.4f}: train.learning_rate "
            f"({self._train.learning_rate:g}) is probably too high; train.on_bad_step: rollback goes back"
        )

    def slower_than_before(self, step: int) -> str | None:
        if statistics.median(self._speeds[-8:]) > 0.5 * statistics.median(self._speeds[:16]):
            return None
        return (
            f"training runs at {statistics.median(self._speeds[-8:]):,.0f} tokens/s, less than half of what it did "
            "before: something else computes on this machine, or it throttles"
        )


_SIGNS: tuple[Callable[[Watch, int], str | None], ...] = (
    Watch.nothing_moves,
    Watch.mostly_clipped,
    Watch.loss_rises,
    Watch.slower_than_before,
)
