"""Measure the tuned model beside the base model: the same items, the same prompts, the same seed.

The base model is asked first, then the tuned one. Answers are kept as they arrive, so a killed evaluation asks only
what is missing. An endpoint that dies is started once more; what fails even then counts as not answered, is left out of
the paired comparison, and never stops the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Scores, Serving, Weights, Which
from tunesmith.evaluate import all_cores
from tunesmith.evaluate.bfcl.task import Leaderboard, leaderboard_numbers
from tunesmith.evaluate.bfcl.task import tasks as leaderboard_tasks
from tunesmith.evaluate.client import Patience
from tunesmith.evaluate.function_calls import FunctionCalls
from tunesmith.evaluate.interview import Interview, Model, shared_answers, what_answers_depend_on
from tunesmith.evaluate.judge import Judge
from tunesmith.evaluate.lm_eval.measure import Findings, Harness
from tunesmith.evaluate.lm_eval.work_order import Examinee
from tunesmith.evaluate.summary import Outcome, failures, summarise
from tunesmith.evaluate.task import Item, Task, Transcript, method_of
from tunesmith.evaluate.text import TextAnswers
from tunesmith.model.locate import locate
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
    template_fingerprint = _checked_template(recipe, run_dir)
    models = {which: _served(recipe, run_dir, serving, which) for which in _wanted(recipe.evaluate)}
    harness = Harness(recipe, run_dir, _examinees(recipe, run_dir, models)) if recipe.evaluate.lm_eval else None
    scores = measure(recipe, run_dir, models, patience=patience, harness=harness)
    return replace(scores, template_fingerprint=template_fingerprint)


def refuse_unreadable(recipe: Recipe) -> None:
    """Raise what would keep the tasks from being asked, before hours of work: a package, a file or a row.

    Raises:
        DataError, EnvironmentProblem: as `run`.
    """
    assert recipe.evaluate is not None, "the recipe evaluates nothing"
    for task in tasks_of(recipe.evaluate):
        task.items()


def measure(
    recipe: Recipe,
    run_dir: RunDir,
    models: Mapping[Which, Model],
    *,
    patience: Patience | None = None,
    harness: Harness | None = None,
) -> Scores:
    """Ask any models the tasks of `recipe.evaluate`, one model after the other, and judge what they say.

    Raises:
        DataError, EvaluateError: as `run`.
    """
    evaluate = recipe.evaluate
    assert evaluate is not None, "the recipe evaluates nothing"
    started = time.monotonic()
    patience = patience or Patience.with_limit(evaluate.request_timeout_seconds)

    def ask(model: Model, asked: Sequence[Item]) -> list[Transcript]:
        interview = Interview(model, concurrency=evaluate.concurrency, seed=recipe.seed, patience=patience)
        return interview.transcripts(asked)

    tasks = tasks_of(evaluate)
    items = {task.name: task.items() for task in tasks}
    if harness and harness.loads_weights:  # before a server holds them, too
        for which in models:
            harness.measure(which)
    said: dict[Which, dict[str, list[Transcript]]] = {}
    for which, model in models.items():
        said[which] = _by_task(items, ask(model, [item for of_task in items.values() for item in of_task]))
        if harness and not harness.loads_weights:
            harness.measure(which)
    outcomes: dict[str, dict[Which, list[Outcome]]] = {}
    for task in tasks:
        of_task = {which: found[task.name] for which, found in said.items()}
        if isinstance(task, Judge):
            referee = task.referee(run_dir.stage("evaluate") / "answers.judge.jsonl", patience.timeout_seconds)
            outcomes[task.name] = task.outcomes(items[task.name], of_task, partial(ask, referee))
        else:
            outcomes[task.name] = {w: _judge(task, items[task.name], found) for w, found in of_task.items()}
        _write_items(run_dir.items(task.name), items[task.name], outcomes[task.name])
        if isinstance(task, Leaderboard):
            results = run_dir.stage("evaluate") / "results"
            task.write_results(results, recipe.name, items[task.name], outcomes[task.name])
    scores = _scores(recipe, run_dir, models, tasks, outcomes)
    return replace(_with_harness(scores, harness), seconds=round(time.monotonic() - started, 3))


def _by_task(items: Mapping[str, Sequence[Item]], said: Sequence[Transcript]) -> dict[str, list[Transcript]]:
    """Give every task its part of what was said to all items in turn."""
    found, begin = {}, 0
    for name, of_task in items.items():
        found[name] = list(said[begin : begin + len(of_task)])
        begin += len(of_task)
    return found


def _scores(
    recipe: Recipe,
    run_dir: RunDir,
    models: Mapping[Which, Model],
    tasks: Sequence[Task],
    outcomes: Mapping[str, Mapping[Which, Sequence[Outcome]]],
) -> Scores:
    everyone = [outcome for of_task in outcomes.values() for of_model in of_task.values() for outcome in of_model]
    # A judge's failure stands in the outcomes of both models, and is one answer.
    lost = {id(outcome.said.answer) for outcome in everyone if outcome.said.answer.may_succeed_later}
    measured = {task.name: summarise(task.metrics, outcomes[task.name], recipe.seed) for task in tasks}
    return Scores(
        tasks=measured | leaderboard_numbers(measured),
        items={task.name: run_dir.relative(run_dir.items(task.name)) for task in tasks},
        failures={name: {w: failures(found) for w, found in of_task.items()} for name, of_task in outcomes.items()},
        num_unanswered=len(lost),
        protocol=_protocol(recipe, models, tasks, outcomes),
    )


def _with_harness(scores: Scores, harness: Harness | None) -> Scores:
    """Return the scores with those of lm-evaluation-harness beside them."""
    found = harness.findings() if harness else Findings()
    return replace(
        scores,
        tasks=scores.tasks | found.tasks,
        items=scores.items | found.items,
        failures=scores.failures | found.failures,
        num_unanswered=scores.num_unanswered + found.num_unfinished,
        protocol=scores.protocol | {"tasks": scores.protocol["tasks"] | found.protocol},
    )


def _protocol(
    recipe: Recipe,
    models: Mapping[Which, Model],
    tasks: Sequence[Task],
    outcomes: Mapping[str, Mapping[Which, Sequence[Outcome]]],
) -> dict[str, Any]:
    """Return how the numbers came about. That both models were asked the same is found from what was sent."""
    told: dict[str, Any] = {"seed": recipe.seed, "temperature": 0, "tasks": {}}
    told["models"] = {which: model.told for which, model in models.items()}
    for task in tasks:
        hashes = {
            which: files.fingerprint([outcome.said.prompt_hash for outcome in found])
            for which, found in outcomes[task.name].items()
        }
        assert len(set(hashes.values())) == 1, f"base and tuned were not asked the same in {task.name}: {hashes}"
        num_items = len(next(iter(outcomes[task.name].values())))
        told["tasks"][task.name] = {"num_items": num_items, "prompts": hashes, **method_of(task)}
    return told


def _wanted(evaluate: Evaluate) -> tuple[Which, ...]:
    return ("base", "tuned") if evaluate.base_model else ("tuned",)


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
        names = ["", *evaluate.text.sets] if evaluate.text.files else [*evaluate.text.sets]
        tasks += [TextAnswers(evaluate.text, name) for name in names]
    if evaluate.function_calls:
        tasks.append(FunctionCalls(evaluate.function_calls))
    if evaluate.bfcl:
        tasks += leaderboard_tasks(evaluate.bfcl)
    if evaluate.judge:
        tasks.append(Judge(evaluate.judge))
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


def _served(recipe: Recipe, run_dir: RunDir, serving: Serving, which: Which) -> Model:
    identity = what_answers_depend_on(recipe, run_dir, which)
    return Model(
        name=f"{which} model",
        endpoint=lambda: serving.endpoint(which),
        identity=identity,
        answers=run_dir.stage("evaluate") / f"answers.{which}.jsonl",
        told={"engine": recipe.serve.engine, "fingerprint": files.fingerprint(identity)},
        shared=shared_answers(recipe.output_dir, identity) if which == "base" else None,
    )


def _examinees(recipe: Recipe, run_dir: RunDir, models: Mapping[Which, Model]) -> dict[Which, Examinee]:
    """Return the models of a run as lm-evaluation-harness meets them."""
    length = recipe.serve.max_model_len
    settings: dict[str, Any] = {
        "engine": recipe.serve.engine,
        "dtype": recipe.model.dtype,
        "chat_template": recipe.data.chat_template,
        "max_model_len": length if isinstance(length, int) else None,
        "trust_remote_code": recipe.model.trust_remote_code,
    }
    found: dict[Which, Examinee] = {}
    for which, model in models.items():
        base = which == "base"
        path = locate(recipe.model, recipe.output_dir) if base else run_dir.absolute(run_dir.load(Weights).path)
        found[which] = Examinee(model.endpoint, model.identity, path, **settings)
    return found


def _judge(task: Task, items: Sequence[Item], said: Sequence[Transcript]) -> list[Outcome]:
    judgements = all_cores.results(lambda pair: task.judge(*pair), list(zip(items, said, strict=True)))
    return [Outcome(transcript, judgement) for transcript, judgement in zip(said, judgements, strict=True)]


def _write_items(path: Path, items: Sequence[Item], outcomes: Mapping[Which, Sequence[Outcome]]) -> None:
    """Write one line per item: its prompt's end, the reference, and what each model made of it."""
    lines = []
    for index, item in enumerate(items):
        line: dict[str, Any] = {
            "id": item.id,
            "prompt_hash": next(iter(outcomes.values()))[index].said.prompt_hash,
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
        "answered": not answer.error,
        "correct": judgement.correct,
        "scores": judgement.scores,
        "error": judgement.error or (f"request_failed:{answer.error}" if answer.error else ""),
        "detail": answer.detail or judgement.note,
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


def _prompt_tail(messages: Sequence[Message]) -> str:
    """Return the last message of the prompt, its end when it is long."""
    content = str(messages[-1].get("content") or "") if messages else ""
    return content if len(content) <= _PROMPT_TAIL_CHARACTERS else f"…{content[-_PROMPT_TAIL_CHARACTERS:]}"
