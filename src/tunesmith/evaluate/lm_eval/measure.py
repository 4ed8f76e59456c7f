"""The door of this room: measure base and tuned with the harness, and give back scores.

What is finished is never done again: each task has a directory with its key, and in it a cache of the answers, so that
a killed evaluation goes on in the middle of a task. A task that fails costs its own numbers and nothing else.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.artifacts import Endpoint, Which
from tunesmith.errors import EvaluateError, RecipeError, TunesmithError
from tunesmith.evaluate.lm_eval import process
from tunesmith.evaluate.lm_eval.catalogue import INSIDE, Chosen, catalogue, interpreter
from tunesmith.evaluate.lm_eval.comparison import Record, Side, compare, groups_of, item_lines, task_name
from tunesmith.evaluate.lm_eval.programs import ALLOWED, held, score
from tunesmith.evaluate.lm_eval.results import Measured, read
from tunesmith.evaluate.lm_eval.work_order import Examinee, Job, Orders
from tunesmith.recipe.environment import expand, redact
from tunesmith.recipe.schema import LmEval, Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root
from tunesmith.track.console import say, warn

_PROBE_SECONDS = 60.0
_NUM_TRIES = 2  # the second one goes to an endpoint that was looked after in between
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "NO_PROXY": "127.0.0.1,localhost"}
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Findings:
    """What goes into `Scores`."""

    tasks: dict[str, dict[str, Record]] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)
    failures: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    protocol: dict[str, dict[str, Any]] = field(default_factory=dict)  # how the numbers of a task came about
    num_unfinished: int = 0  # tasks of a model that another try may finish


class Harness:
    """The harness on the models of one run.

    Args:
        recipe: with `evaluate.lm_eval`.
        run_dir: holds the harness's files and the items.
        models: whom it examines; endpoints are not called with `backend: checkpoint`, nor when everything is done.

    Raises:
        EnvironmentProblem: the harness is not installed.
        RecipeError: a task is unknown, not allowed, or nothing that a model's endpoint alone can be asked.
    """

    def __init__(self, recipe: Recipe, run_dir: RunDir, models: Mapping[Which, Examinee]) -> None:
        assert recipe.evaluate is not None and recipe.evaluate.lm_eval is not None
        self._recipe, self._run_dir, self._models = recipe, run_dir, models
        wanted = recipe.evaluate.lm_eval
        self._settings: LmEval = replace(wanted, backend=_backend(wanted, models.values()))
        names = catalogue(self._settings, cache_root(recipe.output_dir) / "lm_eval")
        self._chosen: list[Chosen] = names.choose(self._settings)
        self._version = names.version
        concurrency = recipe.evaluate.concurrency
        self._orders = {
            which: Orders(self._settings, model, which, run_dir, names.version, concurrency=concurrency)
            for which, model in models.items()
        }
        self._check_tokenizer()
        self._jobs: dict[Which, list[Job]] = {}
        self._why: dict[tuple[Which, str], str] = {}
        self._key = ""

    @property
    def loads_weights(self) -> bool:
        """Whether the harness holds the model itself: no server should be holding it, too."""
        return self._settings.backend == "checkpoint"

    def _check_tokenizer(self) -> None:
        asked = next((task.name for task in self._chosen if task.needs_logprobs), None)
        if asked and not self.loads_weights and not all(orders.knows_tokens for orders in self._orders.values()):
            what = f"the task {asked!r} weighs given answers token by token, and the endpoint's tokenizer is not known"
            do = "set `evaluate.lm_eval.tokenizer` to its directory or Hub id, or keep to tasks that generate text"
            raise RecipeError([TunesmithError(what, where="evaluate.lm_eval.tasks", do=do)])

    def measure(self, which: Which) -> None:
        """Do for one model what is not done yet.

        Raises:
            EvaluateError: not one task of this model could be done.
            ServeError: the server did not start.
        """
        jobs = self._jobs[which] = self._orders[which].jobs(self._chosen, self._recipe.output_dir)
        elsewhere = [job.task.name for job in jobs if job.take_from_shelf()]
        if elsewhere:
            say(f"  lm_eval {which}: {', '.join(elsewhere)} measured by an earlier run")
        missing_at_first = [job for job in jobs if not job.is_done()]
        for attempt in range(_NUM_TRIES):
            missing = [job for job in jobs if not job.is_done()]
            if not missing:
                break
            endpoint = None if self.loads_weights else self._models[which].endpoint()
            if endpoint is not None and any(job.task.needs_logprobs for job in missing):
                check_logprobs(endpoint)
            self._do(which, missing, endpoint)
            if attempt == 0 and endpoint is not None and any(not job.is_done() for job in missing):
                say(f"  lm_eval {which}: once more, from where it stopped")
                continue
            break
        for job in missing_at_first:
            if job.is_done():
                job.put_on_shelf()
        self._tell_failures(which, jobs)

    def _do(self, which: Which, jobs: Sequence[Job], endpoint: Endpoint | None) -> None:
        """Run one process for all local tasks and one for all others; when one ends early, go on behind its task.

        A task that runs programs gets two of its own: one that answers, one that scores in the sandbox.
        """
        config = self._orders[which].config(endpoint)
        self._key = expand(endpoint.api_key) if endpoint else ""
        for job in jobs:
            job.begin(config | ({"confirm_run_unsafe_code": True} if job.task.runs_code else {}))
        plain = [job for job in jobs if not job.task.runs_code]
        for of_kind in ([j for j in plain if j.task.is_local], [j for j in plain if not j.task.is_local]):
            waiting = list(of_kind)
            while waiting:
                self._run(which, waiting)
                # The first that is not done is what it failed at.
                waiting = [job for job in waiting if not job.is_done()][1:]
        for job in jobs:
            if job.task.runs_code and self._run(which, [job], answers_only=True):
                self._score(job, config)

    def _run(self, which: Which, jobs: Sequence[Job], *, answers_only: bool = False) -> bool:
        """Run one process of the harness over some jobs; return whether it came to its end."""
        order = self._run_dir.harness(which, "work.json")
        local = all(job.task.is_local for job in jobs)
        document = {"configs": [str(job.config.absolute()) for job in jobs], "include_defaults": not local}
        files.write_json(order, document | {"answers_only": answers_only})
        command = [interpreter(self._settings), str(INSIDE), "run", str(order.absolute())]
        more = dict(ALLOWED) if answers_only else {}
        more["OPENAI_API_KEY"] = self._key  # where the harness looks for an endpoint's key; a user's own is none of it
        return self._try(jobs, lambda log: process.run(command, log, _ENVIRONMENT | more, title=which))

    def _score(self, job: Job, config: dict[str, Any]) -> None:
        self._try([job], lambda log: score(job, config, interpreter(self._settings), log))

    def _try(self, jobs: Sequence[Job], work: Callable[[Path], None]) -> bool:
        """Do something that runs the harness; a failure is kept for the job that was under way."""
        log = self._run_dir.harness(jobs[0].which, "harness.log")
        try:
            work(log)
        except process.HarnessFailed as error:
            failed = next((job for job in jobs if not job.is_done()), jobs[-1])
            self._why[failed.which, failed.task.name] = f"{error}\n    all of it: {log}"
            return False
        return True

    def _tell_failures(self, which: Which, jobs: Sequence[Job]) -> None:
        failed = [job for job in jobs if not job.is_done()]
        for job in failed:
            why = redact(self._why.get((which, job.task.name), "    (it was not reached)"))
            message = f"lm_eval could not finish {job.task.name} with the {which} model\n{why}"
            if len(failed) == len(jobs):
                do = "what was answered is kept; the same command goes on there"
                raise EvaluateError(message, where=str(job.directory), do=do)
            warn(message)

    def findings(self) -> Findings:
        """Return scores, items and failures of what was measured; writes the items' files."""
        found = Findings()
        finished = {which: {job.task.name for job in jobs if job.is_done()} for which, jobs in self._jobs.items()}
        for task in self._chosen:
            missing: list[Which] = [which for which, names in finished.items() if task.name not in names]
            if missing:
                found.failures[task_name(task.name)] = {which: {"harness_failed": 1} for which in missing}
                found.num_unfinished += len(missing)
                continue
            of_models = {which: self._read(which, task.name) for which in self._jobs}
            sides = {which: Side({m.name: m for m in measured}) for which, measured in of_models.items()}
            self._add(found, sides, self._facts(task))
        return found

    def _read(self, which: Which, name: str) -> list[Measured]:
        return read(next(job for job in self._jobs[which] if job.task.name == name))

    def _facts(self, task: Chosen) -> Record:
        """Return what is said beside every number of a task."""
        facts: Record = {
            "harness": f"lm_eval {self._version}",
            "backend": "chat endpoint" if self._orders["tuned"].speaks_chat else self._settings.backend,
            "chat_template": "applied" if self._settings.apply_chat_template else "not applied",
            "limit": self._settings.limit,
        }
        jobs = [job for job in self._jobs["tuned"] if job.task.name == task.name]
        return facts | ({"sandbox": held(jobs[0])} if task.runs_code else {})

    def _add(self, found: Findings, sides: dict[Which, Side], facts: Record) -> None:
        of_groups = groups_of(sides["tuned"])
        for name, measured in sides["tuned"].measured.items():
            ours = task_name(name)
            # A group with numbers of its own says the main thing; its tasks are details.
            about = facts | ({"part_of": task_name(of_groups[name])} if name in of_groups else {})
            about |= {"task_version": measured.version, "num_fewshot": measured.num_fewshot}
            found.tasks[ours] = compare(name, sides, about, self._recipe.seed)
            found.protocol[ours] = {"num_items": len(measured.samples) or None, **about}
            if measured.samples:
                path = self._run_dir.items(ours)
                files.write_text(path, "\n".join(item_lines(name, sides)) + "\n")
                found.items[ours] = self._run_dir.relative(path)


def _backend(settings: LmEval, models: Iterable[Examinee]) -> Literal["endpoint", "checkpoint"]:
    """Return the backend that is asked for, or the one that fits: recipes of runs have decided, others have not."""
    known = list(models)
    if settings.backend == "checkpoint" and any(model.path is None for model in known):
        what = "`evaluate.lm_eval.backend: checkpoint` needs the model's files, and only its endpoint is known"
        raise RecipeError([TunesmithError(what, where="evaluate.lm_eval.backend", do="use `endpoint`")])
    if settings.backend != "auto":
        return settings.backend
    return "endpoint" if any(model.path is None or model.engine == "vllm" for model in known) else "checkpoint"


def check_logprobs(endpoint: Endpoint) -> None:
    """Ask an endpoint for the log probabilities of a prompt, which tasks with choices need.

    Raises:
        EvaluateError: it has no plain completions, or tells nothing about the prompt's tokens.
    """
    question = {
        "model": endpoint.model,
        "prompt": "a b",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    url = f"{endpoint.url.rstrip('/')}/v1/completions"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {expand(endpoint.api_key)}"}
    request = urllib.request.Request(url, json.dumps(question).encode(), headers)
    try:
        with _DIRECT.open(request, timeout=_PROBE_SECONDS) as response:
            told = json.loads(response.read())["choices"][0]["logprobs"]["token_logprobs"]
        reason = "" if len(told) > 1 else "it tells them for its own tokens only"
    except urllib.error.HTTPError as error:
        reason = f"it says {error.code} to /v1/completions"
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        what = "tasks that weigh given answers need the log probabilities of prompts (`echo` with `logprobs`), "
        do = "set `evaluate.lm_eval.backend: checkpoint`, or keep to tasks that generate text"
        raise EvaluateError(what + f"and the endpoint does not give them: {reason}", where=url, do=do)
