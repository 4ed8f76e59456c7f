"""Our text metrics against rouge-score and sacrebleu called by hand: equal to 1e-9."""

from __future__ import annotations

import json
import statistics as plain
from pathlib import Path

import numpy as np
import pytest

from tunesmith.evaluate.client import Answer
from tunesmith.evaluate.summary import Outcome, summarise
from tunesmith.evaluate.task import Item, Transcript
from tunesmith.evaluate.text import TextAnswers
from tunesmith.recipe.schema import TextTask

sacrebleu = pytest.importorskip("sacrebleu", reason="extra `eval`")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="extra `eval`")

PAIRS = [
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("", "Nothing was said, so nothing matches."),
    ("Exactly the same sentence, with 3.14 and U.S. dots.", "Exactly the same sentence, with 3.14 and U.S. dots."),
    ("one", "two"),
    ("Größe und Maß sind größer", "Die Größe und das Maß sind groß"),
    ("a b c d e f g h", "h g f e d c b a"),
    ("12 x 12 = 144 &amp; so on", "12 × 12 = 144 & so on"),
]


@pytest.fixture
def record(tmp_path: Path) -> dict[str, dict[str, object]]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "p", "completion": reference}) + "\n" for _, reference in PAIRS))
    task = TextAnswers(TextTask((str(rows),)))
    answers = [Transcript((Answer(text),)) for text, _ in PAIRS]
    outcomes = [Outcome(a, task.judge(i, a)) for i, a in zip(task.items(), answers, strict=True)]
    return {"all": summarise(task.metrics, {"tuned": outcomes}, 0), "items": [o.judgement.scores for o in outcomes]}  # type: ignore[dict-item]


def test_corpus_bleu(record: dict[str, dict[str, dict[str, object]]]) -> None:
    expected = sacrebleu.corpus_bleu([text for text, _ in PAIRS], [[reference for _, reference in PAIRS]]).score
    assert expected > 10
    assert record["all"]["bleu"]["tuned"] == pytest.approx(expected, rel=1e-9)


def test_corpus_bleu_without_any_four_gram() -> None:
    task = TextAnswers(TextTask(("unused",), ("bleu",)))
    texts, references = ["a b c", "d e"], ["a b x", "d f"]
    expected = sacrebleu.corpus_bleu(texts, [references]).score
    counts = [task._bleu.sentence(t, r)[1] for t, r in zip(texts, references, strict=True)]  # type: ignore[union-attr]
    found = task._bleu.combine(np.array(counts, dtype=float).sum(axis=0, keepdims=True))  # type: ignore[union-attr]
    assert found[0] == pytest.approx(expected, rel=1e-9)


def test_sentence_bleu(record: dict[str, list[dict[str, float]]]) -> None:
    for (text, reference), scores in zip(PAIRS, record["items"], strict=True):
        assert scores["bleu"] == pytest.approx(sacrebleu.sentence_bleu(text, [reference]).score, rel=1e-9)


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge(record: dict[str, dict[str, dict[str, object]]], kind: str) -> None:
    scorer = rouge_scorer.RougeScorer([kind])
    expected = plain.fmean(scorer.score(reference, text)[kind].fmeasure for text, reference in PAIRS)
    assert 0 < expected < 1
    assert record["all"][kind]["tuned"] == pytest.approx(expected, rel=1e-9)


def test_the_signature_is_sacrebleus_own(record: dict[str, object], tmp_path: Path) -> None:
    metric = sacrebleu.metrics.BLEU()
    metric.corpus_score([text for text, _ in PAIRS], [[reference for _, reference in PAIRS]])
    assert TextAnswers(TextTask(("unused",))).method()["bleu"] == str(metric.get_signature())


def test_many_random_texts(tmp_path: Path) -> None:
    """Corpus BLEU from added counts, and mean ROUGE, on texts with repeats, punctuation, other scripts and nothing."""
    rng = np.random.default_rng(3)
    words = ["the", "cat", "sat", "on", "mat", ".", ",", "Größe", "日本", "3.14", "U.S.", "don't", "—", "&amp;", "the"]
    texts = [" ".join(rng.choice(words, rng.integers(0, 25))) for _ in range(200)]
    pairs = [(a, b or "x") for a, b in zip(texts[:100], texts[100:], strict=True)]
    task = TextAnswers(TextTask(("unused",)))
    items = [Item("i", (), (), 8, reference, reference) for _, reference in pairs]
    said = [Transcript((Answer(text),)) for text, _ in pairs]
    found = summarise(
        task.metrics, {"tuned": [Outcome(s, task.judge(i, s)) for i, s in zip(items, said, strict=True)]}, 0
    )
    expected = sacrebleu.corpus_bleu([text for text, _ in pairs], [[reference for _, reference in pairs]]).score
    assert found["bleu"]["tuned"] == pytest.approx(expected, rel=1e-9)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(reference, text) for text, reference in pairs]
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert found[kind]["tuned"] == pytest.approx(plain.fmean(score[kind].fmeasure for score in scores), rel=1e-9)
