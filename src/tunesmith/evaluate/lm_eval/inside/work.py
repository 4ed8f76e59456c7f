"""The part that runs inside the harness's own Python: a plain script, which knows the standard library and lm_eval.

It may be another interpreter with other packages than tunesmith's, so nothing of tunesmith is imported here, and it
says nothing back but files:

* `work.py names OUT.json [INCLUDE_PATH]` writes what the harness calls its tasks, groups and tags;
* `work.py run WORK.json` evaluates one model on tasks, one after another, and leaves for each the harness's own files
  and, last, `done.json`. The model is loaded once, and the index of tasks (8 s for the 14,000 files of the harness) is
  read once. What `lm_eval run --config config.yaml` would do for each task alone is what happens here, in its order.

Written against lm_eval 0.4.13: `TaskManager`, `EvaluatorConfig.from_config`, `simple_evaluate`, `EvaluationTracker`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def names(out: str, include_path: str | None = None) -> None:
    """Write, by name, kind, members, output type, whether it runs code, whether it samples, and data files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    entries = {}
    for name, entry in manager.task_index.items():
        settings = entry.cfg or {}
        generation = settings.get("generation_kwargs") or {}
        entries[name] = [
            "tag" if entry.kind.name == "TAG" else "group" if entry.kind.name == "GROUP" else "task",
            sorted(entry.tags) if entry.kind.name == "TAG" else _members(settings.get("task")),
            settings.get("output_type") or "",
            bool(settings.get("unsafe_code", False)),
            bool(isinstance(generation, dict) and generation.get("do_sample", False)),
            _data_files(settings.get("dataset_kwargs")),
        ]
    _write(Path(out), {"version": lm_eval.__version__, "names": entries})


def _members(listed: object) -> list[str]:
    """Return the names of a group's members; one that is defined in place counts by its own name."""
    found = []
    for member in listed if isinstance(listed, list) else []:
        name = (member.get("task") or member.get("group")) if isinstance(member, dict) else member
        if isinstance(name, str):
            found.append(name)
        elif isinstance(name, list):
            found += _members(name)
    return found


def _data_files(arguments: object) -> list[str]:
    """Return the files that a task's data set is read from, where the task names them."""
    named = arguments.get("data_files") if isinstance(arguments, dict) else None
    listed = list(named.values()) if isinstance(named, dict) else [named]
    flat = [file for part in listed for file in (part if isinstance(part, list) else [part])]
    return [file for file in flat if isinstance(file, str)]


def run(work: str) -> None:
    """Evaluate every task of a work order: `{"configs": [FILE.yaml, …], "include_defaults": true}`.

    With `answers_only` the model answers into the harness's cache, and nothing is made of what it says.
    """
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.tasks import TaskManager

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    order = json.loads(Path(work).read_text(encoding="utf-8"))
    configs = [EvaluatorConfig.from_config(file) for file in order["configs"]]
    first = configs[0]
    _say("loading the names of tasks")
    manager = TaskManager(
        include_path=first.include_path, include_defaults=order["include_defaults"], metadata=first.metadata
    )
    _say("loading the model")
    sizes = {"batch_size": first.batch_size, "max_batch_size": first.max_batch_size, "device": first.device}
    model = get_model(first.model).create_from_arg_obj(dict(first.model_args), sizes)
    for config in configs:
        _say("task " + " ".join(config.tasks))
        _evaluate(config, model, manager, "" if order.get("answers_only") else lm_eval.__version__)


def _evaluate(config, model, manager, version: str) -> None:  # type: ignore[no-untyped-def] # classes of the harness
    """Evaluate as the harness's command line would; without a version, stop where the answers are known."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=config.output_path)
    seeds = config.seed or [None] * 4
    tasks = config.tasks
    if not version:
        # Filters are the first to touch what the model said, and some run it. Without filters nothing is scored.
        tasks = list(manager.load(config.tasks)["tasks"].values())
        for task in tasks:
            task._filters = []
    results = simple_evaluate(
        model=model,
        model_args=config.model_args,
        tasks=tasks,
        num_fewshot=config.num_fewshot,
        batch_size=config.batch_size,
        max_batch_size=config.max_batch_size,
        device=config.device,
        use_cache=config.use_cache,
        limit=config.limit,
        log_samples=config.log_samples,
        evaluation_tracker=tracker,
        system_instruction=config.system_instruction,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        gen_kwargs=config.gen_kwargs,
        task_manager=manager,
        predict_only=config.predict_only,
        random_seed=seeds[0],
        numpy_random_seed=seeds[1],
        torch_random_seed=seeds[2],
        fewshot_random_seed=seeds[3],
        confirm_run_unsafe_code=config.confirm_run_unsafe_code,
        metadata=config.metadata,
    )
    if not version:
        return
    directory = Path(config.output_path).parent
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    # The harness only warns when it cannot write; without its files the task is not done.
    written = f"results_{tracker.date_id}.json"
    files = {task: f"samples_{task}_{tracker.date_id}.jsonl" for task in results["configs"]}
    missing = [name for name in (written, *files.values()) if not (directory / name).is_file()]
    if missing:
        raise OSError("the harness could not write " + ", ".join(missing) + " in " + str(directory))
    _write(directory / "done.json", {"version": version, "results": written, "samples": files})


def _say(what: str) -> None:
    print("@ " + what, flush=True)


def _write(path: Path, document: object) -> None:
    """Write JSON so that the file is there whole or not at all."""
    beginning = path.with_name(path.name + ".part")
    beginning.write_text(json.dumps(document), encoding="utf-8")
    beginning.replace(path)


if __name__ == "__main__":
    from lm_eval.utils import setup_logging

    setup_logging()
    if sys.argv[1] == "names":
        names(*sys.argv[2:])
    else:
        run(*sys.argv[2:])
