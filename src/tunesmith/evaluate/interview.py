"""Ask one model every item, keeping answers as they arrive and asking only what is not known yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.artifacts import Endpoint, Serving, Weights, Which
from tunesmith.errors import EvaluateError, StageError
from tunesmith.evaluate.answers import AnswerStore
from tunesmith.evaluate.client import Answer, Patience, Question, ask_all
from tunesmith.evaluate.task import Item
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root
from tunesmith.track.console import Progress, warn

_NUM_ROUNDS = 2  # the second one goes to an endpoint that was looked after in between


class Interview:
    """One model and what it has answered so far, in `answers.WHICH.jsonl`.

    Args:
        recipe: with an `evaluate` section.
        run_dir: holds the answers.
        serving: hands out the model's endpoint; not called when every answer is known.
        which: the model.
        patience: time limits and tries.
    """

    def __init__(self, recipe: Recipe, run_dir: RunDir, serving: Serving, which: Which, patience: Patience) -> None:
        assert recipe.evaluate is not None
        self._recipe, self._run_dir, self._serving = recipe, run_dir, serving
        self._which, self._patience = which, patience
        self._concurrency = recipe.evaluate.concurrency
        self._endpoint: Endpoint | None = None
        self._failed: dict[str, Answer] = {}

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item, in their order; a failed request is an answer with its error.

        Raises:
            EvaluateError: not one item was answered.
            ServeError: the server did not start.
        """
        depends_on = what_answers_depend_on(self._recipe, self._run_dir, self._which)
        keys = [_key(depends_on, item) for item in items]
        # Equal questions have equal keys and are asked once.
        questions = {
            key: Question(key, item.messages, item.tools, item.max_tokens)
            for key, item in zip(keys, items, strict=True)
        }
        path = self._run_dir.stage("evaluate") / f"answers.{self._which}.jsonl"
        with AnswerStore(path) as store, Progress(f"{self._which}", len(questions), "items") as progress:
            missing = [question for key, question in questions.items() if store.get(key) is None]
            progress.start_at(len(questions) - len(missing))
            self._ask(missing, store, progress)
            answers = [store.get(key) or self._failed[key] for key in keys]
        self._check(answers)
        return answers

    def _ask(self, missing: list[Question], store: AnswerStore, progress: Progress) -> None:
        """Ask what is missing; ask again what failed through the endpoint's fault."""

        def keep(question: Question, answer: Answer) -> None:
            if answer.error:
                self._failed[question.key] = answer
            else:
                self._failed.pop(question.key, None)
                store.put(question.key, answer)
                progress.advance()

        for round_number in range(_NUM_ROUNDS):
            if not missing:
                return
            try:
                self._endpoint = self._serving.endpoint(self._which)
            except StageError as error:
                if round_number == 0:
                    raise
                warn(f"the {self._which} model's server could not be started again: {error.what}")
                return
            ask_all(
                self._endpoint,
                missing,
                keep,
                concurrency=self._concurrency,
                seed=self._recipe.seed,
                patience=self._patience,
            )
            missing = [q for q in missing if q.key in self._failed and self._failed[q.key].may_succeed_later]

    def _check(self, answers: list[Answer]) -> None:
        """Tell how many requests failed and why; stop when there is nothing to score."""
        errors = [answer for answer in answers if answer.error]
        if not errors:
            return
        # `not_asked` is what follows from the others: it explains nothing.
        kinds = Counter(answer.error for answer in errors)
        reasons = Counter((a.error, a.detail) for a in errors if a.error != "not_asked") or Counter(
            (a.error, a.detail) for a in errors
        )
        (kind, detail), _ = reasons.most_common(1)[0]
        counted = ", ".join(f"{number} × {name}" for name, number in kinds.most_common())
        if len(errors) == len(answers):
            log = self._endpoint.log if self._endpoint else ""
            what = f"none of {len(answers)} items was answered by the {self._which} model: {counted}; {kind}: {detail}"
            do = f"read the server's log, {log}" if log else "check that the server answers /v1/chat/completions"
            raise EvaluateError(what, where=self._endpoint.url if self._endpoint else "", do=do)
        warn(
            f"{len(errors)} of {len(answers)} items were not answered by the {self._which} model ({counted}; {detail})"
        )


def what_answers_depend_on(recipe: Recipe, run_dir: RunDir, which: Which) -> dict[str, Any]:
    """Return what, besides the question, decides an answer: weights, template, engine, number format, seed."""
    model = run_dir.load(Weights).files if which == "tuned" else _base_model(recipe, run_dir)
    template = Path(recipe.data.chat_template)
    return {
        "model": model,
        "chat_template": files.sha256(template) if template.is_file() else recipe.data.chat_template,
        "engine": recipe.serve.engine,
        "max_model_len": recipe.serve.max_model_len,
        "dtype": recipe.model.dtype,
        "settings": {"temperature": 0, "seed": recipe.seed},
    }


def _base_model(recipe: Recipe, run_dir: RunDir) -> dict[str, Any]:
    """Return hashes of the base model: those the pipeline noted for this run, or those of its files now."""
    noted = run_dir.read_run().get("lineage", {}).get("model")
    if isinstance(noted, dict) and noted.get("weights") and noted.get("rest"):
        return {"weights": noted["weights"], "rest": noted["rest"]}
    from tunesmith.model.locate import locate

    cache = files.HashCache(cache_root(recipe.output_dir) / "hashes.json")
    directory = locate(recipe.model, recipe.output_dir)
    return {file.name: cache.sha256(file) for file in sorted(directory.iterdir()) if file.is_file()}


def _key(depends_on: dict[str, Any], item: Item) -> str:
    return files.fingerprint([depends_on, item.messages, item.tools, item.max_tokens])
