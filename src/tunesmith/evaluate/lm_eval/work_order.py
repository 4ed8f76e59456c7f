"""What the harness is to do: one configuration file per model and task, in the harness's own format.

Each can be run by hand: `lm_eval run --config config.yaml`. Whatever decides its numbers goes into its key, so that
finished work is found again and nothing else is.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.artifacts import Endpoint, Weights, Which
from tunesmith.evaluate.interview import what_answers_depend_on
from tunesmith.evaluate.lm_eval.catalogue import Catalogue, Chosen, task_files
from tunesmith.hardware import probe
from tunesmith.model.locate import locate
from tunesmith.recipe.environment import expand
from tunesmith.recipe.schema import LmEval, Recipe
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
        shelf: where other runs find the same work done; the base model is the same in many of them.
    """

    task: Chosen
    which: Which
    directory: Path
    key: str
    shelf: Path

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
        if self.is_done() or not (self.shelf / "done.json").is_file():
            return False
        files.link_tree(self.shelf, self.directory)
        return self.is_done()

    def put_on_shelf(self) -> None:
        """Keep the files of a finished job for other runs; the cache of answers has served its purpose."""
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


class Orders:
    """Configurations and keys of one run's jobs.

    Args:
        recipe: resolved, with `evaluate.lm_eval`.
        run_dir: where the tuned model is, and where jobs get their directories.
        catalogue: the harness's names.
    """

    def __init__(self, recipe: Recipe, run_dir: RunDir, catalogue: Catalogue) -> None:
        assert recipe.evaluate is not None and recipe.evaluate.lm_eval is not None
        self._recipe, self._run_dir, self._catalogue = recipe, run_dir, catalogue
        self._settings: LmEval = recipe.evaluate.lm_eval
        self._concurrency = recipe.evaluate.concurrency

    def jobs(self, which: Which, tasks: list[Chosen]) -> list[Job]:
        """Return the jobs of one model, done or not."""
        depends_on, jobs = self._depends_on(which), []
        for task in tasks:
            key = files.fingerprint([depends_on, self._of(task)])
            shelf = cache_root(self._recipe.output_dir) / "lm_eval" / "done" / key
            jobs.append(Job(task, which, self._run_dir.harness(which, task.name), key, shelf))
        return jobs

    def _depends_on(self, which: Which) -> dict[str, Any]:
        settings = {k: v for k, v in plain(self._settings).items() if k not in _WITHOUT_EFFECT}
        if self._settings.backend == "endpoint":
            settings["batch_size"] = None
        answers = what_answers_depend_on(self._recipe, self._run_dir, which)
        if self._settings.backend == "checkpoint":
            answers = {k: v for k, v in answers.items() if k not in ("engine", "max_model_len")}
        if not self._settings.apply_chat_template:
            answers.pop("chat_template", None)
        # The harness has seeds of its own, the same for everybody: published numbers rest on them.
        answers.pop("settings", None)
        return {"answers": answers, "settings": settings, "backend": self._settings.backend}

    def _of(self, task: Chosen) -> dict[str, Any]:
        """Return what a task's numbers depend on besides model and settings."""
        own = self._settings.include_path and task.is_local
        local = task_files(Path(expand(str(self._settings.include_path))).expanduser()) if own else {}
        leaves = {name: dataclasses.astuple(entry) for name, entry in task.leaves.items()}
        data = {file: files.sha256(Path(file)) for file in task.data_files if Path(file).is_file()}
        return {"task": task.name, "leaves": leaves, "files": local, "data": data, "harness": self._catalogue.version}

    def config(self, which: Which, endpoint: Endpoint | None) -> dict[str, Any]:
        """Return what all jobs of one model have in common, as the harness's configuration file says it."""
        settings = self._settings
        model, arguments = self._checkpoint(which) if endpoint is None else self._endpoint(which, endpoint)
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

    def _checkpoint(self, which: Which) -> tuple[str, dict[str, Any]]:
        path = self._model_path(which)
        arguments: dict[str, Any] = {"pretrained": str(path.absolute()), "dtype": self._recipe.model.dtype}
        tokenizer = self._tokenizer(which)
        if tokenizer != path:
            arguments["tokenizer"] = str(tokenizer.absolute())
        if self._recipe.model.trust_remote_code:
            arguments["trust_remote_code"] = True
        return "hf", arguments

    def _endpoint(self, which: Which, endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
        tokenizer = self._tokenizer(which)
        # As with a checkpoint: the tokenizer adds its start token, but not to a chat template's text, which has it.
        start_token = not self._settings.apply_chat_template and adds_start_token(tokenizer)
        arguments: dict[str, Any] = {
            "model": endpoint.model,
            "base_url": f"{endpoint.url.rstrip('/')}/v1/completions",
            "tokenizer": str(tokenizer.absolute()),
            "tokenizer_backend": "huggingface",
            "tokenized_requests": True,
            "add_bos_token": start_token,
            "max_length": self._recipe.serve.max_model_len,
            "num_concurrent": self._concurrency,
            "timeout": _REQUEST_SECONDS,
        }
        if self._recipe.model.trust_remote_code:
            arguments["trust_remote_code"] = True
        return "local-completions", arguments

    def _model_path(self, which: Which) -> Path:
        if which == "base":
            return locate(self._recipe.model, self._recipe.output_dir)
        return self._run_dir.absolute(self._run_dir.load(Weights).path)

    def _tokenizer(self, which: Which) -> Path:
        """Return a directory whose tokenizer has the chat template of training: the model's own where it has it."""
        model = self._model_path(which)
        wanted = expand(self._recipe.data.chat_template)
        if wanted == "model" or not self._settings.apply_chat_template:
            return model
        target = self._run_dir.harness(which, "tokenizer")
        with files.writing_directory(target) as directory:
            for file in sorted(model.iterdir()):
                if file.is_file() and file.suffix in _TOKENIZER_FILES and ".safetensors." not in file.name:
                    shutil.copyfile(file, directory / file.name)
            # transformers reads this file before any other place for a template.
            template = template_for(load_tokenizer(model), wanted).text
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
        return target


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
