"""Choosing the next token of every row.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch

from tunesmith.serve.embedded.sequence import Answer, Sampling, TokenLogprob


class Chooser:
    """Picks tokens; each sampled row has a random stream of its own, so that its neighbours change nothing."""

    def __init__(self) -> None:
        self._generators: dict[int, torch.Generator] = {}

    def choose(self, logits_RV: torch.Tensor, answers: list[Answer]) -> list[int]:
        """Return the next token id of every row."""
        chosen: list[int] = logits_RV.argmax(dim=-1).tolist()
        for row, answer in enumerate(answers):
            if answer.sampling.temperature > 0:
                chosen[row] = self._sample(logits_RV[row], answer)
        return chosen

    def forget(self, answer: Answer) -> None:
        """Drop the random stream of an answer that is done."""
        self._generators.pop(id(answer), None)

    def _sample(self, logits_V: torch.Tensor, answer: Answer) -> int:
        generator = self._generators.get(id(answer))
        if generator is None:
            # On the CPU, so that a seed means the same on every device.
            generator = self._generators[id(answer)] = torch.Generator().manual_seed(answer.seed)
        probabilities_V = distribution(logits_V.float().cpu(), answer.sampling)
        return int(torch.multinomial(probabilities_V, 1, generator=generator))


def distribution(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the probabilities after temperature, top-k and top-p, in this order (as vLLM and transformers do)."""
    logits_V = logits_V / sampling.temperature
    if 0 < sampling.top_k < logits_V.shape[-1]:
        threshold = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, float("-inf"))
    probabilities_V = logits_V.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered_V, index_V = probabilities_V.sort(descending=True, stable=True)
        # A token stays when those before it do not reach top_p yet: the first always stays.
        outside_V = ordered_V.cumsum(dim=-1) - ordered_V >= sampling.top_p
        outside_V[0] = False
        probabilities_V = probabilities_V.scatter(0, index_V, ordered_V.masked_fill(outside_V, 0.0))
    return probabilities_V


def logprob_of(logits_V: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Return a token's log-probability and the `num_top` most likely tokens."""
    logprobs_V = logits_V.float().log_softmax(dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        best = logprobs_V.topk(min(num_top, logprobs_V.shape[-1]))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs_V[token_id]), top)
