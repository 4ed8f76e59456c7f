"""Hold the dialogues of all items with one model, keeping answers as they arrive and asking only what is not known yet.

A dialogue is held again from its start whenever it has to be; what it asks is answered from the store as far as the
store knows it. So an evaluation that was killed, or whose endpoint went away, sends only the requests that are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.artifacts import Endpoint, Weights, Which
from tunesmith.errors import EvaluateError, StageError
from tunesmith.evaluate.answers import AnswerStore
from tunesmith.evaluate.client import Answer, Client, Patience, Request
from tunesmith.evaluate.task import Item, Transcript
from tunesmith.recipe.schema import Recipe
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root
from tunesmith.track.console import Progress, warn

_NUM_ROUNDS = 2  # the second one goes to an endpoint that was looked after in between


@dataclass(frozen=True)
class Model:
    """Who is asked, and where the answers are kept.

    Args:
        name: for people, e.g. `base model`.
        endpoint: hands out a healthy endpoint; not called when every answer is known, called again when it failed.
        identity: what, besides the request, decides an answer; part of every key in the store.
        answers: the file answers are kept in.
        told: who that is, for the record: no secret in it. An interview adds what the endpoint would not take.
        shared: a file that answers of the same model are also kept in, for other runs.
    """

    name: str
    endpoint: Callable[[], Endpoint]
    identity: Any
    answers: Path
    told: dict[str, str] = field(default_factory=dict)
    shared: Path | None = None


class Interview:
    """Ask one model.

    Args:
        model: whom.
        concurrency: dialogues held at once.
        seed: sent with every request.
        patience: time limits and tries.
    """

    def __init__(self, model: Model, *, concurrency: int, seed: int, patience: Patience) -> None:
        self._model, self._concurrency, self._seed, self._patience = model, concurrency, seed, patience
        self._endpoint: Endpoint | None = None
        self._in_flight: dict[str, asyncio.Task[Answer]] = {}

    def transcripts(self, items: Sequence[Item]) -> list[Transcript]:
        """Return one transcript per item, in their order; a failed request ends one with its error.

        Raises:
            EvaluateError: there are items, and not one was answered.
            ServeError: the server did not start.
        """
        found: dict[int, Transcript] = {}
        with (
            AnswerStore(self._model.answers, self._model.shared) as store,
            Progress(self._model.name, len(items), "items") as progress,
        ):
            for index, item in enumerate(items):
                known = self._replay(item, store)
                if known is not None:
                    found[index] = known
            progress.start_at(len(found))
            self._ask_missing(items, found, store, progress)
        said = [found[index] for index in range(len(items))]
        self._tell_failures(said)
        return said

    def _replay(self, item: Item, store: AnswerStore) -> Transcript | None:
        """Return an item's transcript as far as the store alone can give it: whole, or not at all."""
        dialogue, answers, asked = item.begin(), [], ""
        try:
            request = next(dialogue)
            asked = prompt_hash(request)
            while (answer := store.get(self.key(request))) is not None:
                answers.append(answer)
                request = dialogue.send(answer)
        except StopIteration as stop:
            return Transcript(tuple(answers), stop.value, asked)
        finally:
            dialogue.close()
        return None

    def _ask_missing(
        self, items: Sequence[Item], found: dict[int, Transcript], store: AnswerStore, progress: Progress
    ) -> None:
        """Hold the dialogues that are missing; hold again those that failed through the endpoint's fault."""
        for round_number in range(_NUM_ROUNDS):
            missing = [i for i in range(len(items)) if i not in found or found[i].answer.may_succeed_later]
            if not missing:
                return
            try:
                self._endpoint = self._model.endpoint()
            except StageError as error:
                if round_number == 0:
                    raise
                warn(f"the {self._model.name} could not be reached again: {error.what}")
                return
            asyncio.run(self._hold(items, missing, found, store, progress))

    async def _hold(
        self,
        items: Sequence[Item],
        missing: Sequence[int],
        found: dict[int, Transcript],
        store: AnswerStore,
        progress: Progress,
    ) -> None:
        assert self._endpoint is not None
        waiting, num_failed = iter(missing), 0
        self._in_flight.clear()

        async def work(client: Client) -> None:
            nonlocal num_failed
            for index in waiting:
                found[index] = await self._converse(client, items[index], store)
                num_failed += bool(found[index].error)
                note = f"{num_failed} not answered" if num_failed else ""
                progress.advance(0 if found[index].error else 1, note)

        async with Client(
            self._endpoint, concurrency=self._concurrency, seed=self._seed, patience=self._patience
        ) as client:
            await asyncio.gather(*(work(client) for _ in range(min(self._concurrency, len(missing)))))
            if client.dialect.told:
                self._model.told["dialect"] = client.dialect.told
                warn(f"the {self._model.name} does not take every parameter; asked with {client.dialect.told}")
            if client.gone:
                left = sum(found[index].error == "not_asked" for index in missing)
                warn(f"the {self._model.name} stopped answering: {client.gone}; {left} items were left for later")

    async def _converse(self, client: Client, item: Item, store: AnswerStore) -> Transcript:
        dialogue, answers, asked = item.begin(), [], ""
        try:
            request = next(dialogue)
            asked = prompt_hash(request)
            while True:
                answer = await self._answer(client, request, store)
                answers.append(answer)
                if answer.error:
                    return Transcript(tuple(answers), prompt_hash=asked)
                request = dialogue.send(answer)
        except StopIteration as stop:
            return Transcript(tuple(answers), stop.value, asked)
        finally:
            dialogue.close()

    async def _answer(self, client: Client, request: Request, store: AnswerStore) -> Answer:
        """Return a request's answer: known, on its way already for another item, or asked for now."""
        key = self.key(request)
        known = store.get(key)
        if known is not None:
            return known
        if key not in self._in_flight:
            self._in_flight[key] = asyncio.create_task(client.ask(request))
            answer = await self._in_flight[key]
            if not answer.error:
                store.put(key, answer)
            return answer
        return await self._in_flight[key]

    def key(self, request: Request) -> str:
        """Return the name of a request's answer in the store: a hash of all that decides it."""
        return files.fingerprint([self._model.identity, self._seed, *request_parts(request)])

    def _tell_failures(self, said: Sequence[Transcript]) -> None:
        """Tell how many items failed and why; stop when there is nothing to score."""
        errors = [transcript.answer for transcript in said if transcript.error]
        if not errors:
            return
        # `not_asked` is what follows from the others: it explains nothing.
        kinds = Counter(answer.error for answer in errors)
        reasons = Counter((a.error, a.detail) for a in errors if a.error != "not_asked") or Counter(
            (a.error, a.detail) for a in errors
        )
        (kind, detail), _ = reasons.most_common(1)[0]
        counted = ", ".join(f"{number} × {name}" for name, number in kinds.most_common())
        if len(errors) == len(said):
            log = self._endpoint.log if self._endpoint else ""
            what = f"none of {len(said)} items was answered by the {self._model.name}: {counted}; {kind}: {detail}"
            do = f"read the server's log, {log}" if log else "check that the server answers /v1/chat/completions"
            raise EvaluateError(what, where=self._endpoint.url if self._endpoint else "", do=do)
        later = sum(answer.may_succeed_later for answer in errors)
        again = f"; the same command asks {later} of them again" if later else ""
        lost = f"{len(errors)} of {len(said)} items were not answered by the {self._model.name}"
        warn(f"{lost} ({counted}; {detail}){again}")


def prompt_hash(request: Request) -> str:
    """Return the hash of what a model is shown, with whatever settings: equal hashes, equal prompts."""
    return files.fingerprint([request.messages, request.tools, request.prompt])


def request_parts(request: Request) -> Iterator[Any]:
    """Yield what a request is made of, in a fixed order; what is left at its default is not told."""
    yield from (request.messages, request.tools, request.max_tokens)
    unusual = {"prompt": request.prompt, "stop": request.stop, "temperature": request.temperature}
    yield {name: value for name, value in unusual.items() if value}


def shared_answers(output_dir: str | Path, identity: Any) -> Path:
    """Return the file in which all runs below a directory keep the answers of one model."""
    return cache_root(output_dir) / "answers" / f"{files.fingerprint(identity)}.jsonl"


def software(engine: str) -> str:
    """Return the version of what computes a served model's answers: ours, or vLLM's."""
    if engine == "vllm":
        with contextlib.suppress(PackageNotFoundError):
            return f"vllm {version('vllm')}"
    return f"tunesmith {__version__}"


def what_answers_depend_on(recipe: Recipe, run_dir: RunDir, which: Which) -> dict[str, Any]:
    """Return what, besides the question, decides an answer: weights, template, engine, number format."""
    model = run_dir.load(Weights).files if which == "tuned" else _base_model(recipe, run_dir)
    template = Path(recipe.data.chat_template)
    return {
        "model": model,
        "chat_template": files.sha256(template) if template.is_file() else recipe.data.chat_template,
        "engine": recipe.serve.engine,
        "software": software(recipe.serve.engine),
        "max_model_len": recipe.serve.max_model_len,
        "dtype": recipe.model.dtype,
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
