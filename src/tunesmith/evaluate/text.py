"""Answers compared with the reference answers of the user's own rows: exact match, Jaccard, ROUGE, BLEU.

* `exact_match`: equal letter by letter, white space at both ends apart.
* `jaccard`: words in both / words in either, as sets. A word is what stands between white space, lower-cased, with its
  punctuation. Two empty texts overlap fully.
* `rouge1`, `rouge2`, `rougeL`: F-measure of the package rouge-score (its own tokenisation, no stemming), mean over
  items.
* `bleu`: corpus BLEU of sacrebleu with its defaults (13a tokenisation, exponential smoothing), 0 … 100; its signature
  is kept with the scores. The score of a single item is sentence BLEU with effective order.

A failed request counts as an empty answer.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from tunesmith.errors import DataError, missing_extra
from tunesmith.evaluate.task import Array, Item, Judgement, Metric, Transcript, mean_statistics
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import TextTask
from tunesmith.rows.conversation import Conversation
from tunesmith.rows.examples import conversations

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class TextAnswers:
    """The task `evaluate.text`: the rows of its `files`, or those of one of its named `sets`."""

    def __init__(self, settings: TextTask, of_set: str = "") -> None:
        self._settings, self._set = settings, of_set
        self.name = f"text.{of_set}" if of_set else "text"
        wanted = settings.metrics
        self._rouge = _rouge_scorer() if "rouge" in wanted else None
        self._bleu = _Bleu() if "bleu" in wanted else None
        metrics: list[Metric] = []
        if "exact_match" in wanted:
            metrics.append(Metric("exact_match", is_binary=True))
        if "jaccard" in wanted:
            metrics.append(Metric("jaccard"))
        if self._rouge:
            metrics += [Metric(name) for name in ROUGE_TYPES]
        if self._bleu:
            metrics.append(Metric("bleu", maximum=100.0, combine=self._bleu.combine))
        self.metrics = tuple(metrics)

    def items(self) -> list[Item]:
        """Return one item per row: what precedes the last assistant turn is asked, its content is the reference."""
        settings = self._settings
        files = settings.sets[self._set] if self._set else settings.files
        key = f"evaluate.text.sets.{self._set}" if self._set else "evaluate.text.files"
        return row_items(files, settings.limit, settings.max_tokens, key=key)

    def method(self) -> dict[str, str]:
        """Return what decides the numbers besides the answers: sacrebleu's signature, the packages' versions."""
        found = {}
        if self._rouge:
            found["rouge"] = f"rouge-score {version('rouge-score')}, F-measure, no stemming"
        if self._bleu:
            found["bleu"] = self._bleu.signature()
        return found

    def judge(self, item: Item, said: Transcript) -> Judgement:
        text, reference = said.answer.text, item.reference
        scores = {"exact_match": float(exact_match(text, reference)), "jaccard": jaccard(text, reference)}
        if self._rouge:
            scores |= {name: score.fmeasure for name, score in self._rouge.score(reference, text).items()}
        statistics = mean_statistics({m.name: scores[m.name] for m in self.metrics if m.name in scores})
        if self._bleu:
            scores["bleu"], statistics["bleu"] = self._bleu.sentence(text, reference)
        correct = not said.error and scores["exact_match"] == 1.0
        return Judgement(correct, statistics, scores, answer_text=text)


def row_items(files: tuple[str, ...], limit: int | None, max_tokens: int, *, key: str) -> list[Item]:
    """Return one item per row of some files, with the content of its last assistant turn as reference.

    Args:
        files: as the recipe names them.
        limit: the first rows only.
        max_tokens: of an answer.
        key: where the recipe names the files, for messages.

    Raises:
        DataError: there is no row, or one without an answer in words.
    """
    expanded = tuple(expand(file) for file in files)
    found = conversations(expanded, limit=limit)
    if not found:
        raise DataError("there is no row to evaluate on", where=", ".join(expanded), do=f"check `{key}`")
    return [_item(where, conversation, max_tokens) for where, conversation in found]


def _item(where: str, conversation: Conversation, max_tokens: int) -> Item:
    for turn in range(len(conversation.messages) - 1, 0, -1):
        message = conversation.messages[turn]
        if message["role"] == "assistant" and message.get("content"):
            reference = message["content"]
            before = conversation.messages[:turn]
            return Item(f"{where}#{turn + 1}", before, conversation.tools, max_tokens, reference, reference)
    what = "the row has no assistant answer in words to compare with"
    raise DataError(what, where=where, do="remove the row, or evaluate tool conversations under `function_calls`")


def exact_match(text: str, reference: str) -> bool:
    """Return whether two texts are equal, apart from white space at both ends."""
    return text.strip() == reference.strip()


def jaccard(text: str, reference: str) -> float:
    """Return the overlap of two texts' sets of lower-cased words, 0 … 1."""
    left, right = set(text.lower().split()), set(reference.lower().split())
    return len(left & right) / len(left | right) if left or right else 1.0


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # here, because it imports nltk: more than a second
    except ImportError:
        raise missing_extra("rouge-score", "eval", needed_for="the text metric `rouge`") from None
    return RougeScorer(list(ROUGE_TYPES), use_stemmer=False)


class _Bleu:
    """BLEU from n-gram counts: those of items add up to those of the corpus."""

    def __init__(self) -> None:
        try:
            from sacrebleu.metrics import BLEU
        except ImportError:
            raise missing_extra("sacrebleu", "eval", needed_for="the text metric `bleu`") from None
        self._sentence, self._all = BLEU(effective_order=True), BLEU()
        self._compute: Callable[..., Any] = BLEU.compute_bleu

    def signature(self) -> str:
        """Return sacrebleu's signature of the corpus score, as papers quote it."""
        self._all.corpus_score([""], [[""]])  # the number of references is known after the first score only
        return str(self._all.get_signature())

    def sentence(self, text: str, reference: str) -> tuple[float, tuple[float, ...]]:
        """Return sentence BLEU, and (matches of 1 … 4-grams, totals of 1 … 4-grams, length, reference length)."""
        score = self._sentence.sentence_score(text, [reference])
        return float(score.score), (*score.counts, *score.totals, score.sys_len, score.ref_len)

    def combine(self, sums: Array) -> Array:
        """Return corpus BLEU for each row of summed counts."""
        return np.array([self._corpus([round(value) for value in row]) for row in sums.tolist()])

    def _corpus(self, sums: list[int]) -> float:
        score = self._compute(sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp", max_ngram_order=4)
        return float(score.score)
