"""What the harness is to do: one configuration file per model and task, in the harness's own format.

Each can be run by hand: `lm_eval run --config config.yaml`. Whatever decides its numbers goes into its key, so that
finished work is found again and nothing else is.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tunesmith.artifacts import Endpoint, Which
from tunesmith.evaluate.lm_eval.catalogue import Chosen, task_files
from tunesmith.hardware import probe
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import LmEval
from tunesmith.recipe.walk import plain
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, cache_root
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer

_REQUEST_SECONDS = 600
_TOKENIZER_FILES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
# What a repetition may do differently without making other numbers.
_WITHOUT_EFFECT = ("allow_code_execution", "backend", "include_path", "python", "tasks")


@dataclass(frozen=True)
class Job:
    """One task (or group) for one model.

    Attributes:
        directory: receives the configuration, the harness's own files, its log and, last, `done.json`.
        key: hash of everything its numbers depend on.
        shelf: where other runs find the same work done (the base model is the same in many of them); None: nowhere.
    """

    task: Chosen
    which: Which
    directory: Path
    key: str
    shelf: Path | None = None

    @property
    def config(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def answers(self) -> Path:
        """The harness's own cache of answers; it appends `_rank0.db`."""
        return self.directory / "answers"

    def is_done(self) -> bool:
        """Return whether the harness has finished exactly this."""
        return _key_of(self.directory / "done.json") is not None and _key_of(self.directory / "key.json") == self.key

    def take_from_shelf(self) -> bool:
        """Return whether another run has done the same; its files are then here, too."""
        if self.is_done() or self.shelf is None or not (self.shelf / "done.json").is_file():
            return False
        files.link_tree(self.shelf, self.directory)
        return self.is_done()

    def put_on_shelf(self) -> None:
        """Keep the files of a finished job for other runs; the cache of answers has served its purpose."""
        if self.shelf is None:
            return
        done = json.loads((self.directory / "done.json").read_text(encoding="utf-8"))
        own = ("config.yaml", "done.json", "key.json", "sandbox.json")
        with files.writing_directory(self.shelf) as shelf:
            for name in (*own, done["results"], *done["samples"].values()):
                if (self.directory / name).is_file():
                    files.link_or_copy(self.directory / name, shelf / name)

    def begin(self, config: dict[str, Any]) -> None:
        """Write the configuration; answers to the same key stay, whatever else was there goes."""
        if _key_of(self.directory / "key.json") != self.key:
            shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "done.json").unlink(missing_ok=True)
        own = {
            "tasks": [self.task.name],
            "output_path": str((self.directory / "results.json").absolute()),
            "use_cache": str(self.answers.absolute()),
            "log_samples": True,
        }
        files.write_text(self.config, yaml.safe_dump(config | own, sort_keys=False, allow_unicode=True))
        files.write_json(self.directory / "key.json", {"key": self.key})


def _key_of(path: Path) -> str | None:
    """Return the key in a file, an empty one when the file has none, None when it cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return str(document.get("key", ""))
    except (OSError, ValueError, AttributeError):
        return None


@dataclass(frozen=True)
class Examinee:
    """A model as the harness meets it: by its files, by its endpoint, or by either.

    Attributes:
        endpoint: hands out a healthy endpoint; called again when it failed.
        identity: what its answers depend on besides prompts and settings.
        path: its directory; None when it is somewhere else, behind its endpoint.
        engine: the server program, where it is one of ours.
        chat_template: as in a recipe.
        max_model_len: longest prompt plus answer of the endpoint in tokens; None when nobody knows.
    """

    endpoint: Callable[[], Endpoint]
    identity: Mapping[str, Any]
    path: Path | None = None
    engine: str = ""
    dtype: str = "auto"
    chat_template: str = "model"
    max_model_len: int | None = None
    trust_remote_code: bool = False


class Orders:
    """Configurations and keys of the jobs of one model.

    Args:
        settings: with a backend that is decided.
        model: whom the harness examines.
        which: in whose place.
        run_dir: where jobs get their directories.
        version: of the harness.
    """

    def __init__(
        self, settings: LmEval, model: Examinee, which: Which, run_dir: RunDir, version: str, *, concurrency: int
    ) -> None:
        assert settings.backend != "auto", "the backend is decided"
        self._settings, self._model, self._which, self._run_dir = settings, model, which, run_dir
        self._version, self._concurrency = version, concurrency

    def jobs(self, tasks: Sequence[Chosen], output_dir: str) -> list[Job]:
        """Return the jobs, done or not."""
        depends_on, jobs = self._depends_on(), []
        for task in tasks:
            key = files.fingerprint([depends_on, self._of(task)])
            # Behind an address of somebody else's there may be another model tomorrow.
            shelf = cache_root(output_dir) / "lm_eval" / "done" / key if self._model.path else None
            jobs.append(Job(task, self._which, self._run_dir.harness(self._which, task.name), key, shelf))
        return jobs

    def _depends_on(self) -> dict[str, Any]:
        settings = {k: v for k, v in plain(self._settings).items() if k not in _WITHOUT_EFFECT}
        identity = dict(self._model.identity)
        if self._settings.backend == "endpoint":
            settings["batch_size"] = None
        else:
            identity = {k: v for k, v in identity.items() if k not in ("engine", "max_model_len", "software")}
        if not self._settings.apply_chat_template:
            identity.pop("chat_template", None)
        return {"identity": identity, "settings": settings, "backend": self._settings.backend}

    def _of(self, task: Chosen) -> dict[str, Any]:
        """Return what a task's numbers depend on besides model and settings."""
        own = self._settings.include_path and task.is_local
        local = task_files(Path(expand(str(self._settings.include_path))).expanduser()) if own else {}
        leaves = {name: dataclasses.astuple(entry) for name, entry in task.leaves.items()}
        data = {file: files.sha256(Path(file)) for file in task.data_files if Path(file).is_file()}
        return {"task": task.name, "leaves": leaves, "files": local, "data": data, "harness": self._version}

    def config(self, endpoint: Endpoint | None) -> dict[str, Any]:
        """Return what all jobs have in common, as the harness's configuration file says it."""
        settings = self._settings
        model, arguments = self._checkpoint() if endpoint is None else self._endpoint(endpoint)
        if self._model.trust_remote_code:
            arguments["trust_remote_code"] = True
        document: dict[str, Any] = {
            "model": model,
            "model_args": arguments,
            "device": "cuda:0" if probe().device == "cuda" else "cpu",
            "batch_size": settings.batch_size if endpoint is None else 1,
            "num_fewshot": settings.num_fewshot,
            "limit": settings.limit,
            "apply_chat_template": settings.apply_chat_template,
            "gen_kwargs": plain(settings.gen_kwargs),
        }
        if settings.include_path:
            document["include_path"] = str(Path(expand(settings.include_path)).expanduser().absolute())
        document |= plain(settings.extra)
        return document

    @property
    def knows_tokens(self) -> bool:
        """Whether there is a tokenizer: without one, prompts are texts, and given answers cannot be weighed."""
        return self._model.path is not None or self._settings.tokenizer is not None

    @property
    def speaks_chat(self) -> bool:
        """Whether the endpoint is asked for chat completions: it has the template, and nobody here has."""
        return self._settings.apply_chat_template and not self.knows_tokens

    def _checkpoint(self) -> tuple[str, dict[str, Any]]:
        path = self._model.path
        assert path is not None, "a checkpoint backend has a checkpoint"
        arguments: dict[str, Any] = {"pretrained": str(path.absolute()), "dtype": self._model.dtype}
        tokenizer = self._tokenizer
        if tokenizer != str(path.absolute()):
            arguments["tokenizer"] = tokenizer
        return "hf", arguments

    def _endpoint(self, endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
        route = "chat/completions" if self.speaks_chat else "completions"
        arguments: dict[str, Any] = {
            "model": endpoint.model,
            "base_url": f"{endpoint.url.rstrip('/')}/v1/{route}",
            "num_concurrent": self._concurrency,
            "timeout": _REQUEST_SECONDS,
        }
        tokenizer = self._tokenizer
        if tokenizer is None:
            arguments |= {"tokenizer_backend": "none", "tokenized_requests": False}
            return "local-chat-completions" if self.speaks_chat else "local-completions", arguments
        # As with a checkpoint: the tokenizer adds its start token, but not to a chat template's text, which has it.
        start_token = not self._settings.apply_chat_template and adds_start_token(Path(tokenizer))
        arguments |= {"tokenizer_backend": "huggingface", "tokenizer": tokenizer, "tokenized_requests": True}
        arguments["add_bos_token"] = start_token
        if self._model.max_model_len is not None:
            arguments["max_length"] = self._model.max_model_len
        return "local-completions", arguments

    @cached_property
    def _tokenizer(self) -> str | None:
        """Return the tokenizer whose chat template is that of training: a directory, or a name on the Hub."""
        model = self._model.path
        if model is None:
            return expand(self._settings.tokenizer) if self._settings.tokenizer else None
        wanted = expand(self._model.chat_template)
        if wanted == "model" or not self._settings.apply_chat_template:
            return str(model.absolute())
        target = self._run_dir.harness(self._which, "tokenizer")
        with files.writing_directory(target) as directory:
            for file in sorted(model.iterdir()):
                if file.is_file() and file.suffix in _TOKENIZER_FILES and ".safetensors." not in file.name:
                    shutil.copyfile(file, directory / file.name)
            # transformers reads this file before any other place for a template.
            template = template_for(load_tokenizer(model), wanted).text
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
        return str(target.absolute())


def adds_start_token(directory: Path) -> bool:
    """Return whether a tokenizer puts a token of its own in front of plain text."""
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        return False
    try:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    tokenizer = Tokenizer.from_file(str(file))
    return list(tokenizer.encode("a").ids[:1]) != list(tokenizer.encode("a", add_special_tokens=False).ids[:1])
