"""Choosing the next token of every row.

Shapes: R rows, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tunesmith.serve.embedded.forced import Guide
from tunesmith.serve.embedded.sequence import Answer, Sampling, TokenLogprob

# Sorting a vocabulary costs more than a small model's whole step; as a rule top-p ends among these.
_NUM_CANDIDATES = 256


def choose(logits_RV: Tensor, answers: list[Answer]) -> list[int]:
    """Return the next token id of every row.

    A sampled row takes one number of its own random stream per token, so that its neighbours change nothing.
    """
    chosen: list[int] = logits_RV.argmax(dim=-1).tolist()
    drawn = [row for row, answer in enumerate(answers) if answer.sampling.temperature > 0]
    if drawn:
        settings = [answers[row].sampling for row in drawn]
        uniforms = [answers[row].random() for row in drawn]
        for row, token_id in zip(drawn, draw(logits_RV[drawn], settings, uniforms), strict=True):
            chosen[row] = token_id
    for row, answer in enumerate(answers):
        if answer.guide is not None:
            chosen[row] = _guided(logits_RV[row].float(), answer, answer.guide)
    return chosen


def _guided(logits_V: Tensor, answer: Answer, guide: Guide) -> int:
    """Choose among the tokens that a forced answer may go on with; top-p and top-k do not apply to them.

    Raises:
        ValueError: no token of the vocabulary fits.
    """

    def best_first() -> Iterator[int]:
        order_V = logits_V
        if answer.sampling.temperature > 0:
            # Sorting noisy scores draws without replacement by the tokens' shares (Gumbel).
            generator = torch.Generator().manual_seed(int(answer.random() * 2**53))
            noise_V = -torch.empty(logits_V.shape[0]).exponential_(generator=generator).log()
            order_V = logits_V.cpu() / answer.sampling.temperature + noise_V
        # As a rule one of the first few fits: only else is the whole vocabulary put in order.
        yield from order_V.topk(min(64, order_V.shape[0])).indices.tolist()
        yield from order_V.argsort(descending=True).tolist()

    token_id = guide.take(best_first())
    if token_id is None:
        raise ValueError("no token of the vocabulary goes on with the form that the answer must have")
    return token_id


def draw(logits_RV: Tensor, settings: list[Sampling], uniforms: list[float]) -> list[int]:
    """Draw by temperature, then top-k, then top-p (as vLLM and transformers do), with one number of [0, 1) per row."""
    scaled_RV = logits_RV.float() / torch.tensor([s.temperature for s in settings], device=logits_RV.device)[:, None]
    uniform_R = torch.tensor(uniforms, device=logits_RV.device, dtype=torch.float64)
    is_cut = [s.top_p < 1 or 0 < s.top_k < logits_RV.shape[-1] for s in settings]
    ids = [0] * len(settings)
    cut, free = ([row for row, cut in enumerate(is_cut) if cut is wanted] for wanted in (True, False))
    if free:
        for row, token_id in zip(free, _at(scaled_RV[free].softmax(dim=-1), uniform_R[free]).tolist(), strict=True):
            ids[row] = token_id
    if cut:
        found = _draw_cut(scaled_RV[cut], [settings[row] for row in cut], uniform_R[cut], _NUM_CANDIDATES)
        for row, token_id in zip(cut, found, strict=True):
            ids[row] = token_id
    return ids


def _draw_cut(scaled_RV: Tensor, settings: list[Sampling], uniform_R: Tensor, num_candidates: int) -> list[int]:
    vocabulary = scaled_RV.shape[-1]
    most = (
        max(num_candidates, *(s.top_k for s in settings))
        if len(settings) > 1
        else max(num_candidates, settings[0].top_k)
    )
    best = scaled_RV.topk(min(most, vocabulary), dim=-1)
    top_k_R1 = torch.tensor([[s.top_k or vocabulary] for s in settings], device=scaled_RV.device)
    top_p_R1 = torch.tensor([[s.top_p] for s in settings], device=scaled_RV.device, dtype=torch.float64)
    outside_RK = torch.arange(best.values.shape[-1], device=scaled_RV.device) >= top_k_R1
    values_RK = best.values.double().masked_fill(outside_RK, float("-inf"))
    # What top-k leaves is all there is; without top-k, the tokens that were not looked at have their share, too.
    whole_R1 = scaled_RV.double().logsumexp(dim=-1, keepdim=True)
    total_R1 = torch.where(top_k_R1 < vocabulary, values_RK.logsumexp(dim=-1, keepdim=True), whole_R1)
    share_RK = (values_RK - total_R1).exp()
    sum_RK = share_RK.cumsum(dim=-1)
    if most < vocabulary and bool(((top_k_R1 >= vocabulary) & (sum_RK[:, -1:] < top_p_R1)).any()):
        return _draw_cut(scaled_RV, settings, uniform_R, vocabulary)
    # A token stays when those before it do not reach top_p yet: the first always stays.
    outside_RK = sum_RK - share_RK >= top_p_R1
    outside_RK[:, 0] = False
    at_R = _at(share_RK.masked_fill(outside_RK, 0.0), uniform_R)
    ids: list[int] = best.indices.gather(1, at_R[:, None])[:, 0].tolist()
    return ids


def _at(share_RK: Tensor, uniform_R: Tensor) -> Tensor:
    """Return where the running sum of each row's shares passes `uniform` of their total; never a share of 0."""
    sum_RK = share_RK.double().cumsum(dim=-1)
    wanted_R1 = (uniform_R * sum_RK[:, -1])[:, None]
    return torch.searchsorted(sum_RK, wanted_R1, right=True)[:, 0].clamp(max=share_RK.shape[-1] - 1)


def logprobs_of(logits_RV: Tensor, token_ids: list[int], num_top: list[int]) -> list[TokenLogprob]:
    """Return the log-probability of a token of every row, and each row's `num_top` most likely ones."""
    logprobs_RV = logits_RV.float().log_softmax(dim=-1)
    ids_R1 = torch.tensor(token_ids, device=logits_RV.device)[:, None]
    own = logprobs_RV.gather(1, ids_R1)[:, 0].tolist()
    if not any(num_top):
        return [TokenLogprob(token_id, value) for token_id, value in zip(token_ids, own, strict=True)]
    best = logprobs_RV.topk(min(max(num_top), logits_RV.shape[-1]), dim=-1)
    rows = zip(token_ids, own, num_top, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token_id, value, tuple(zip(ids[:count], values[:count], strict=True)))
        for token_id, value, count, ids, values in rows
    ]
