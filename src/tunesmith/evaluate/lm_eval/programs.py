"""Tasks whose scoring runs programs that the model wrote: answers first, as always; then the scoring, in the sandbox.

While the model answers, nothing it says is run: the harness only fills its cache of answers. The scoring is the
harness's own, in a process that finds every answer in a copy of that cache, has no model, no network, and nothing to
write to but a directory of results (`sandbox.py`). What it leaves is taken back as plain files, and read as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tunesmith.evaluate.lm_eval import process
from tunesmith.evaluate.lm_eval.catalogue import INSIDE
from tunesmith.evaluate.lm_eval.work_order import Job
from tunesmith.store import files
from tunesmith.track.console import warn

_LIMIT_SECONDS = 3600
_LARGEST_FILE_BYTES = 1 << 30
# Libraries write into these while they read; the first is where the others are unless they are named.
_CACHES = {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "HF_EVALUATE_CACHE": "evaluate"}
_CACHES |= {"HF_MODULES_CACHE": "modules"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
_ANSWERS = "answers_rank0.db"  # the harness appends the rank to the name it is given
# Without it, tasks whose metric runs programs cannot even be loaded.
ALLOWED = {"HF_ALLOW_CODE_EVAL": "1"}


def caches() -> dict[str, str]:
    """Return the variables that name the caches of Hugging Face's libraries, filled in from their defaults."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or default).expanduser()
    return {name: os.environ.get(name) or str(home / below) for name, below in _CACHES.items()}


def score(job: Job, config: dict[str, Any], python: str, log: Path) -> None:
    """Score a job's answers in the sandbox.

    Args:
        job: its answers are all in its cache.
        config: what all jobs have in common.
        python: the interpreter that has the harness.
        log: receives what it prints.

    Raises:
        HarnessFailed: it ended with another code than 0, or left no results.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as name:  # short: sockets in it have 108 characters in all
        room = Path(name)
        scratch, results = room / "s", room / "r"
        scratch.mkdir()
        results.mkdir()
        shutil.copyfile(job.directory / _ANSWERS, results / _ANSWERS)
        for cache in outermost(caches().values()):
            Path(cache).mkdir(parents=True, exist_ok=True)  # in the sandbox nobody could
        work = _write_work(job, config, room, results)
        told = room / "told.json"
        order = {
            "told": str(told),
            "limit_seconds": _LIMIT_SECONDS,
            "scratch": str(scratch),
            "results": str(results),
            "caches": outermost(caches().values()),
            "environment": caches() | ALLOWED | _OFFLINE,
        }
        files.write_json(room / "order.json", order)
        sandbox = [sys.executable, "-m", "tunesmith.evaluate.lm_eval.sandbox", str(room / "order.json"), "--"]
        try:
            process.run([*sandbox, python, str(INSIDE), "run", str(work)], log, {}, title=job.which)
        finally:
            _tell(job, told)
        _take_back(job, results)


def outermost(directories: Iterable[str]) -> list[str]:
    """Return directories without those that lie in another of them."""
    real = sorted({str(Path(directory).resolve()) for directory in directories})
    return [path for path in real if not any(Path(path).is_relative_to(other) for other in real if other != path)]


def _write_work(job: Job, config: dict[str, Any], room: Path, results: Path) -> Path:
    """Write what the sandboxed harness is to do; returns the work order."""
    arguments: dict[str, Any] = {"model": "answers-known-already", "base_url": "http://127.0.0.1:1", "max_retries": 1}
    tokenizer = config["model_args"].get("tokenizer") or config["model_args"].get("pretrained")
    if config["apply_chat_template"]:  # prompts are looked up by their text, which the tokenizer's template makes
        arguments |= {"tokenizer_backend": "huggingface", "tokenizer": tokenizer}
    else:
        arguments |= {"tokenizer_backend": "none", "tokenized_requests": False}
    own = {
        "model": "local-completions",
        "model_args": arguments,
        "tasks": [job.task.name],
        "output_path": str(results / "results.json"),
        "use_cache": str(results / "answers"),
        "log_samples": True,
        "confirm_run_unsafe_code": True,
    }
    (room / "config.yaml").write_text(yaml.safe_dump(config | own), encoding="utf-8")
    files.write_json(
        room / "work.json", {"configs": [str(room / "config.yaml")], "include_defaults": not job.task.is_local}
    )
    return room / "work.json"


def _tell(job: Job, told: Path) -> None:
    """Keep what the sandbox held, and say so when that is less than it should be."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(told.read_text(encoding="utf-8"))
        files.write_json(job.directory / "sandbox.json", document)
        if not document["held"]:
            why = document["why_not"]
            what = f"programs of {job.task.name} run with limits on time and memory only: no namespaces here ({why})"
            warn(f"{what}; network and files are open to them")


def held(job: Job) -> str:
    """Return in words what the sandbox held while a job was scored."""
    try:
        document = json.loads((job.directory / "sandbox.json").read_text(encoding="utf-8"))
        return ", ".join(document["held"]) or "limits only"
    except (OSError, ValueError, KeyError):
        return "not known"


def _take_back(job: Job, results: Path) -> None:
    """Copy the harness's files, and nothing that only looks like one."""
    done = _plain_json(results / "done.json")
    names = [done["results"], *done["samples"].values()] if isinstance(done, dict) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise process.HarnessFailed("    the sandboxed scoring left names that are no file names")
        try:
            _copy(results / name, job.directory / name)
        except OSError as error:  # a link, or nothing at all
            raise process.HarnessFailed(f"    the sandboxed scoring left no file {name}: {error}") from None
    if not names:
        raise process.HarnessFailed("    the sandboxed scoring left no results")
    files.write_json(job.directory / "done.json", done)


def _plain_json(path: Path) -> Any:
    try:
        with _opened(path) as descriptor:
            return json.loads(os.read(descriptor, 1 << 20))
    except (OSError, ValueError, RecursionError):
        return None


def _copy(source: Path, target: Path) -> None:
    with _opened(source) as descriptor, files.writing(target) as temporary, temporary.open("wb") as copy:
        while piece := os.read(descriptor, 1 << 20):
            copy.write(piece)


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    """Open a plain file of bearable size: no link, no pipe, no device.

    Raises:
        HarnessFailed: it is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_FILE_BYTES:
            raise process.HarnessFailed(f"    the sandboxed scoring left {path.name}, which is no plain file")
        yield descriptor
    finally:
        os.close(descriptor)
