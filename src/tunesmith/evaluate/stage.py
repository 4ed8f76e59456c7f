"""Measure the tuned model beside the base model: the same items, the same prompts, the same seed.

The base model is asked first, then the tuned one. Answers are kept as they arrive, so a killed evaluation asks only
what is missing. An endpoint that dies is started once more; what fails even then is counted as wrong, is left out of
the paired comparison, and never stops the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Scores, Serving, Weights, Which
from tunesmith.evaluate.client import Patience
from tunesmith.evaluate.function_calls import FunctionCalls
from tunesmith.evaluate.interview import Interview, Model, request_parts, what_answers_depend_on
from tunesmith.evaluate.lm_eval.measure import Findings, Harness
from tunesmith.evaluate.summary import Outcome, failures, summarise
from tunesmith.evaluate.task import Item, Task, Transcript
from tunesmith.evaluate.text import TextAnswers
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import Evaluate, Recipe
from tunesmith.rows.conversation import Message
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.fingerprint import check_probes, probes_of

_PROMPT_TAIL_CHARACTERS = 600


def run(recipe: Recipe, run_dir: RunDir, serving: Serving, *, patience: Patience | None = None) -> Scores:
    """Ask and judge every task of `recipe.evaluate`.

    Raises:
        DataError: a file of a task is missing, or a row in it cannot be read.
        EvaluateError: not one item was answered by one of the models.
        StageError: the tuned model would read other tokens than in training.
    """
    assert recipe.evaluate is not None, "the recipe evaluates nothing"
    started = time.monotonic()
    template_fingerprint = _checked_template(recipe, run_dir)
    tasks = tasks_of(recipe.evaluate)
    items = [task.items() for task in tasks]
    everything = [item for of_task in items for item in of_task]
    models: tuple[Which, ...] = ("base", "tuned") if recipe.evaluate.base_model else ("tuned",)
    harness = Harness(recipe, run_dir, serving) if recipe.evaluate.lm_eval else None
    if harness and harness.loads_weights:  # before a server holds them, too
        for which in models:
            harness.measure(which)
    said: dict[Which, list[Transcript]] = {}
    for which in models:
        interview = Interview(
            _model(recipe, run_dir, serving, which),
            concurrency=recipe.evaluate.concurrency,
            seed=recipe.seed,
            patience=patience or Patience(),
        )
        said[which] = interview.transcripts(everything)
        if harness and not harness.loads_weights:
            harness.measure(which)

    numbers: dict[str, dict[str, dict[str, float | int | str | None]]] = {}
    mistakes: dict[str, dict[str, dict[str, int]]] = {}
    begin = 0
    for task, of_task in zip(tasks, items, strict=True):
        end = begin + len(of_task)
        outcomes = {which: _judge(task, of_task, said[which][begin:end]) for which in models}
        numbers[task.name] = summarise(task.metrics, outcomes, recipe.seed)
        mistakes[task.name] = {which: failures(of_model) for which, of_model in outcomes.items()}
        _write_items(run_dir.items(task.name), of_task, outcomes)
        begin = end
    of_harness = harness.findings() if harness else Findings()
    num_unanswered = sum(it.answer.may_succeed_later for of_model in said.values() for it in of_model)
    return Scores(
        tasks=numbers | of_harness.tasks,
        items={task.name: run_dir.relative(run_dir.items(task.name)) for task in tasks} | of_harness.items,
        seconds=round(time.monotonic() - started, 3),
        failures=mistakes | of_harness.failures,
        num_unanswered=num_unanswered + of_harness.num_unfinished,
        template_fingerprint=template_fingerprint,
    )


def _checked_template(recipe: Recipe, run_dir: RunDir) -> str:
    """Return the fingerprint of what the tuned model reads, '' for models merged before there was one."""
    weights = run_dir.find(Weights)
    if weights is None or not weights.template_fingerprint:
        return ""
    directory = run_dir.absolute(weights.path)
    found = probes_of(directory, expand(recipe.data.chat_template))
    return check_probes(found, run_dir.trained, stage="evaluate", where=directory)


def tasks_of(evaluate: Evaluate) -> list[Task]:
    """Return the tasks that a recipe asks for."""
    tasks: list[Task] = []
    if evaluate.text:
        tasks.append(TextAnswers(evaluate.text))
    if evaluate.function_calls:
        tasks.append(FunctionCalls(evaluate.function_calls))
    return tasks


def summary(scores: Scores) -> dict[str, float]:
    """Return the numbers that trackers show, by names such as `evaluate/text/exact_match/tuned`."""
    found: dict[str, float] = {}
    for task, metrics in scores.tasks.items():
        for metric, record in metrics.items():
            for which in ("base", "tuned"):
                value = record.get(which)
                if isinstance(value, int | float):
                    found[f"evaluate/{task.replace('.', '/')}/{metric}/{which}"] = float(value)
    return found


def _model(recipe: Recipe, run_dir: RunDir, serving: Serving, which: Which) -> Model:
    return Model(
        name=f"{which} model",
        endpoint=lambda: serving.endpoint(which),
        identity=what_answers_depend_on(recipe, run_dir, which),
        answers=run_dir.stage("evaluate") / f"answers.{which}.jsonl",
    )


def _judge(task: Task, items: Sequence[Item], said: Sequence[Transcript]) -> list[Outcome]:
    return [Outcome(transcript, task.judge(item, transcript)) for item, transcript in zip(items, said, strict=True)]


def _write_items(path: Path, items: Sequence[Item], outcomes: Mapping[Which, Sequence[Outcome]]) -> None:
    """Write one line per item: its prompt's end, the reference, and what each model made of it."""
    lines = []
    for index, item in enumerate(items):
        line: dict[str, Any] = {
            "id": item.id,
            "prompt_sha256": _prompt_hash(item),
            "prompt_tail": _prompt_tail(item.messages),
            "reference": item.reference_text,
        }
        for which, of_model in outcomes.items():
            line[which] = _told(of_model[index])
        lines.append(_one_line(line))
    # A row may hold half of a surrogate pair, which UTF-8 cannot.
    files.write_bytes(path, ("\n".join(lines) + "\n").encode("utf-8", "replace"))


def _one_line(document: dict[str, Any]) -> str:
    """Return JSON on one line for every reader: some also break lines at these three, which JSON leaves as they are."""
    text = json.dumps(document, ensure_ascii=False)
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _told(outcome: Outcome) -> dict[str, Any]:
    answer, judgement = outcome.said.answer, outcome.judgement
    return {
        "answer": judgement.answer_text,
        "correct": judgement.correct,
        "scores": judgement.scores,
        "error": judgement.error or (f"request_failed:{answer.error}" if answer.error else ""),
        "detail": answer.detail,
        "finish_reason": answer.finish_reason,
        "num_requests": len(outcome.said.answers),
        "latency_seconds": round(sum(each.latency_seconds for each in outcome.said.answers), 4),
        "num_prompt_tokens": _sum(each.num_prompt_tokens for each in outcome.said.answers),
        "num_completion_tokens": _sum(each.num_completion_tokens for each in outcome.said.answers),
    }


def _sum(counts: Iterable[int | None]) -> int | None:
    """Return the sum of counts, None when one of them is not known."""
    known = list(counts)
    return None if not known or None in known else sum(count for count in known if count is not None)


def _prompt_hash(item: Item) -> str:
    """Return the hash of what is asked first: equal hashes, equal prompts."""
    return files.fingerprint([*request_parts(next(item.begin()))])


def _prompt_tail(messages: Sequence[Message]) -> str:
    """Return the last message of the prompt, its end when it is long."""
    content = str(messages[-1].get("content") or "") if messages else ""
    return content if len(content) <= _PROMPT_TAIL_CHARACTERS else f"…{content[-_PROMPT_TAIL_CHARACTERS:]}"
