"""Refuse to train when the result would be worthless, with the figures that say so.

Each check looks at what was actually tokenised, so it holds for any template, tokenizer and data set. The failures
are those that otherwise show only as a model that never stops, or as a loss of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.artifacts import RowCounts
from tunesmith.data.building import Tally
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Recipe

_RAISE_LENGTH = "raise data.max_length, shorten the rows, or raise data.max_cut_rows_fraction if that is meant"


@dataclass(frozen=True)
class Evidence:
    """What the checks look at.

    Attributes:
        end_tokens: the texts of the tokens that end an answer of this model.
        model_vocab_size: rows of the embedding table; None when config.json does not say.
    """

    recipe: Recipe
    counts: RowCounts
    tally: Tally
    end_tokens: tuple[str, ...]
    start_token: str | None
    model_vocab_size: int | None


def preflight(evidence: Evidence) -> list[str]:
    """Check the tokenised rows; return warnings.

    Raises:
        DataError: training on them would be worthless.
    """
    for check in _CHECKS:
        check(evidence)
    num_sequences, batch = evidence.tally.num_sequences, evidence.recipe.train.global_batch_size
    if num_sequences < batch:
        return [f"an epoch has {num_sequences} sequences, fewer than one global batch ({batch})"]
    return []


def _rows_are_cut(evidence: Evidence) -> None:
    counts, data = evidence.counts, evidence.recipe.data
    cut = counts.overlong_dropped + counts.truncated
    whole = counts.train + counts.validation + counts.overlong_dropped
    if cut and cut > data.max_cut_rows_fraction * whole:
        what = f"{cut:,} of {whole:,} rows ({cut / whole:.1%}) are longer than {data.max_length:,} tokens"
        counted = f"{counts.overlong_dropped:,} dropped, {counts.truncated:,} truncated"
        what = f"{what} ({counted}), and data.max_cut_rows_fraction allows {data.max_cut_rows_fraction:.1%}"
        raise DataError(what, where="data.max_length", do=_RAISE_LENGTH)


def _rows_are_there(evidence: Evidence) -> None:
    if evidence.counts.train:
        return
    fates = {name: count for name, count in vars(evidence.counts).items() if count and name != "truncated"}
    told = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in fates.items())
    raise DataError(f"no row is left to train on ({told})", where="data.train", do="see the counts for where they went")


def _tokens_are_trained(evidence: Evidence) -> None:
    tally, data = evidence.tally, evidence.recipe.data
    share = tally.num_trained_tokens / max(1, tally.num_tokens)
    if tally.num_trained_tokens and share >= data.min_trained_tokens_fraction:
        return
    what = f"{tally.num_trained_tokens:,} of {tally.num_tokens:,} tokens have a loss ({share:.3%})"
    what += f", and data.min_trained_tokens_fraction asks for {data.min_trained_tokens_fraction:.3%}"
    do = f"look at `tunesmith data show`; data.train_on is {data.train_on!r}"
    raise DataError(what, where="data.train_on", do=do)


def _end_is_trained(evidence: Evidence) -> None:
    if evidence.tally.num_rows_with_trained_end:
        return
    if not evidence.end_tokens:
        what = "the model names no token that ends an answer, so it would never learn to stop"
        do = "set eos_token in tokenizer_config.json or eos_token_id in generation_config.json of the model"
        raise DataError(what, where=evidence.recipe.model.name_or_path, do=do)
    ends = ", ".join(evidence.end_tokens)
    what = f"none of the {evidence.counts.train:,} rows trains a token that ends an answer ({ends}): "
    do = "use a template whose turns end with one of them, or add the template's end token to eos_token_id in "
    do += "generation_config.json of the model (with data.overlong = truncate, check that max_length leaves the ends)"
    raise DataError(what + "the model would never learn to stop", where="data.chat_template", do=do)


def _start_is_single(evidence: Evidence) -> None:
    doubled = evidence.tally.num_rows_with_doubled_start
    if doubled:
        what = f"{doubled:,} rows begin with {evidence.start_token} twice"
        do = "the chat template writes it already: take it out of the rows (or out of the template)"
        raise DataError(what, where="data.chat_template", do=do)


def _validation_is_there(evidence: Evidence) -> None:
    data, counts = evidence.recipe.data, evidence.counts
    if counts.validation or not (data.validation or data.validation_fraction):
        return
    if data.validation:
        what, where, do = "no row of the validation sources could be kept", "data.validation", "check their rows"
    else:
        share = f"{data.validation_fraction:.2%}"
        what = f"of {counts.train:,} rows none is held out with data.validation_fraction = {share}"
        where, do = "data.validation_fraction", "raise it, or set it to 0"
    raise DataError(what, where=where, do=do)


def _ids_fit_the_model(evidence: Evidence) -> None:
    limit, largest = evidence.model_vocab_size, evidence.tally.largest_id
    if limit is not None and largest >= limit:
        what = f"the rows hold token id {largest:,}, and the model's embedding table has {limit:,} rows"
        do = "the tokenizer does not belong to this model, or tokens were added to it without widening the model"
        raise DataError(what, where=evidence.recipe.model.name_or_path, do=do)


_CHECKS: tuple[Callable[[Evidence], None], ...] = (
    _rows_are_cut,
    _rows_are_there,
    _ids_fit_the_model,
    _tokens_are_trained,
    _end_is_trained,
    _start_is_single,
    _validation_is_there,
)
