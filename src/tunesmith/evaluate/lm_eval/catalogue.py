"""What the harness calls its tasks: asked of the installed harness once per version, kept for later commands."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.errors import EnvironmentProblem, EvaluateError, RecipeError, TunesmithError
from tunesmith.recipe.environment import expand
from tunesmith.recipe.harness_names import names_for_people, translated
from tunesmith.recipe.schema import LmEval
from tunesmith.store import files
from tunesmith.track.console import say

INSIDE = Path(__file__).parent / "inside" / "work.py"
_ASKING_SECONDS = 300.0
_LOGLIKELIHOOD = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")


@dataclass(frozen=True)
class Entry:
    """What the harness says about one name."""

    kind: str  # task | group | tag
    members: tuple[str, ...]
    output_type: str
    runs_code: bool
    samples: bool  # answers are drawn, not the likeliest ones
    data_files: tuple[str, ...] = ()  # of the task's data set, where it names files


@dataclass(frozen=True)
class Chosen:
    """One task of the recipe in the harness's words: a task or a group, with the tasks it consists of."""

    name: str
    leaves: dict[str, Entry]
    is_group: bool
    is_local: bool  # no leaf is one of the harness's own

    @property
    def data_files(self) -> list[str]:
        return sorted({file for entry in self.leaves.values() for file in entry.data_files})

    @property
    def runs_code(self) -> bool:
        return any(entry.runs_code for entry in self.leaves.values())

    @property
    def samples(self) -> bool:
        return any(entry.samples for entry in self.leaves.values())

    @property
    def needs_logprobs(self) -> bool:
        return any(entry.output_type in _LOGLIKELIHOOD for entry in self.leaves.values())


@dataclass(frozen=True)
class Catalogue:
    """All names, those of `include_path` on top of the harness's own."""

    version: str
    entries: dict[str, Entry]
    local: frozenset[str]

    def choose(self, settings: LmEval) -> list[Chosen]:
        """Return what a recipe's tasks are, each once, in their order.

        Raises:
            RecipeError: a name is unknown, or a task runs code and that is not allowed.
        """
        problems: list[TunesmithError] = []
        chosen: dict[str, Chosen] = {}
        for index, word in enumerate(settings.tasks):
            where = f"evaluate.lm_eval.tasks[{index}]"
            names = self._names(word)
            if not names:
                problems.append(self._unknown(word, where))
            for name in names:
                chosen.setdefault(name, self._chosen(name))
        for task in chosen.values():
            if task.runs_code and not settings.allow_code_execution:
                problems.append(code_is_not_allowed(task.name))
            elif task.runs_code and (settings.gen_kwargs.get("do_sample", task.samples)):
                what = (
                    f"the task {task.name!r} runs programs that are drawn anew each time: none can be kept for scoring"
                )
                do = "set `evaluate.lm_eval.gen_kwargs: {do_sample: false}`, or choose a task with one answer each"
                problems.append(TunesmithError(what, where="evaluate.lm_eval.tasks", do=do))
        if problems:
            raise RecipeError(problems)
        return list(chosen.values())

    def _names(self, word: str) -> list[str]:
        """Return the tasks and groups behind a word; a tag is its tasks."""
        entry = self.entries.get(word)
        if entry is None:
            return [name for name in translated(word) if name in self.entries]
        return [word] if entry.kind != "tag" else [name for name in entry.members if name in self.entries]

    def _chosen(self, name: str) -> Chosen:
        leaves = self._leaves(name, frozenset())
        is_group = self.entries[name].kind == "group"
        return Chosen(name, leaves, is_group, bool(leaves) and all(leaf in self.local for leaf in leaves))

    def _leaves(self, name: str, above: frozenset[str]) -> dict[str, Entry]:
        entry = self.entries.get(name)
        if entry is None or name in above:
            return {}
        if entry.kind == "task":
            return {name: entry}
        found: dict[str, Entry] = {}
        for member in entry.members:
            found |= self._leaves(member, above | {name})
        return found

    def _unknown(self, word: str, where: str) -> TunesmithError:
        lower = {name.lower(): name for name in self.entries}
        near = [lower[match] for match in difflib.get_close_matches(word.lower(), list(lower), n=3, cutoff=0.6)]
        people = difflib.get_close_matches(word.lower(), names_for_people(), n=1, cutoff=0.6) if not near else []
        guess = ", ".join(near or people)
        do = f"did you mean {guess}?" if guess else "`lm_eval ls tasks` lists them; own ones go under `include_path`"
        return TunesmithError(f"lm_eval {self.version} has no task, group or tag {word!r}", where=where, do=do)


def code_is_not_allowed(name: str) -> TunesmithError:
    """Return the refusal of a task that runs what a model writes."""
    what = f"the task {name!r} runs programs that the model writes, and `allow_code_execution` is false"
    do = "read docs/lm-eval.md on what the sandbox holds, then set `evaluate.lm_eval.allow_code_execution: true`"
    return TunesmithError(what, where="evaluate.lm_eval.tasks", do=do)


def interpreter(settings: LmEval) -> str:
    """Return the Python that runs the harness."""
    return expand(settings.python) if settings.python else sys.executable


def catalogue(settings: LmEval, cache: Path) -> Catalogue:
    """Return the names of `include_path`, and those of the installed harness where they are needed.

    Costs 10 s for a version of the harness that was not asked before, a twentieth of a second afterwards; task files of
    one's own are read again when one of them has changed.

    Args:
        settings: which interpreter, which directory.
        cache: directory for what was learnt.

    Raises:
        EnvironmentProblem: the interpreter or the harness is not there.
        EvaluateError: the harness cannot read its tasks.
    """
    python = interpreter(settings)
    version = _version(python)
    local: dict[str, Entry] = {}
    if settings.include_path:
        directory = Path(expand(settings.include_path)).expanduser()
        if not directory.is_dir():
            do = "give the directory that holds your task files"
            raise EvaluateError("evaluate.lm_eval.include_path is no directory", where=str(directory), do=do)
        key = files.fingerprint([python, version, str(directory.absolute()), task_files(directory)])
        local = _asked(python, cache / f"names-{key}.json", directory)
    if _is_complete(local, settings.tasks):
        return Catalogue(version, local, frozenset(local))
    own = _asked(python, cache / f"names-{files.fingerprint([python, version])}.json", None)
    return Catalogue(version, own | local, frozenset(local))


def _is_complete(entries: dict[str, Entry], names: Sequence[str]) -> bool:
    """Return whether all names and the members of groups among them are there."""
    waiting, seen = list(names), set(names)
    while waiting:
        entry = entries.get(waiting.pop())
        if entry is None:
            return False
        waiting += [member for member in entry.members if member not in seen]
        seen.update(entry.members)
    return True


def task_files(directory: Path) -> dict[str, str]:
    """Return the hashes of what says what the tasks of a directory are: YAML and Python."""
    found = [file for pattern in ("*.yaml", "*.py") for file in directory.rglob(pattern) if file.is_file()]
    return {file.relative_to(directory).as_posix(): files.sha256(file) for file in sorted(found)}


def _version(python: str) -> str:
    if python == sys.executable:
        try:
            return metadata.version("lm_eval")
        except metadata.PackageNotFoundError:
            raise _not_installed(python) from None
    question = "from importlib.metadata import version as v; print(v('lm_eval'))"
    try:
        done = subprocess.run([python, "-c", question], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        do = "give the path of a Python that has lm_eval installed"
        raise EnvironmentProblem(f"it cannot be started: {error}", where="evaluate.lm_eval.python", do=do) from None
    if done.returncode != 0:
        raise _not_installed(python)
    return done.stdout.strip()


def _not_installed(python: str) -> EnvironmentProblem:
    here = python == sys.executable
    do = "pip install 'tunesmith[lm-eval]'" if here else f"{python} -m pip install 'lm_eval[hf,api]>=0.4.13'"
    return EnvironmentProblem("`evaluate.lm_eval` needs lm_eval, which is not installed", where=python, do=do)


def _asked(python: str, kept: Path, directory: Path | None) -> dict[str, Entry]:
    """Return what the harness said, now or before."""
    try:
        return _read(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if directory is None:
        say("asking lm_eval for the names of its tasks (once per version, about 10 s)")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "names.json"
        command = [python, str(INSIDE), "names", str(out), *([str(directory.absolute())] if directory else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ASKING_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise EvaluateError("the harness did not list its tasks in time", where=" ".join(command)) from None
        if done.returncode != 0 or not out.is_file():
            lines = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-12:])
            raise EvaluateError(f"the harness cannot list its tasks\n{lines}", where=" ".join(command[:2]))
        document = json.loads(out.read_text(encoding="utf-8"))
    files.write_json(kept, document)
    return _read(document)


def _read(document: dict[str, Any]) -> dict[str, Entry]:
    return {
        name: Entry(kind, tuple(members), output_type, runs_code, samples, tuple(data_files))
        for name, (kind, members, output_type, runs_code, samples, data_files) in document["names"].items()
    }
