"""Stands in for a Python that has lm_eval: told by a script what to do with each work order.

Written to a file as an executable, it takes the place of the interpreter (`evaluate.lm_eval.python`): what the harness
would do with the model is left out, what it would leave on the disk is there, in its format.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

_PROGRAM = """\
#!{python}
import json, os, subprocess, sys, time
from pathlib import Path
import yaml

HERE = Path({here!r})
if sys.argv[1] == "-c":
    print("0.4.13")
    sys.exit()
if sys.argv[2] == "names":
    names = {{"fake_" + n: ["task", [], "generate_until", False, False, []] for n in ("a", "b", "c")}}
    names["fake_local"] = ["task", [], "generate_until", False, False, {data_files!r}]
    names["fake_code"] = ["task", [], "generate_until", True, False, []]
    names["fake_drawn"] = ["task", [], "generate_until", True, True, []]
    names["fake_choice"] = ["task", [], "multiple_choice", False, False, []]
    Path(sys.argv[3]).write_text(json.dumps({{"version": "0.4.13", "names": names}}))
    sys.exit()
order = json.loads(Path(sys.argv[3]).read_text())
for file in order["configs"]:
    config = yaml.safe_load(Path(file).read_text())
    (task,) = config["tasks"]
    print("@ task", task, flush=True)
    directory = Path(config["output_path"]).parent
    try:
        with (HERE / "asked.txt").open("a") as asked:
            asked.write(Path(file).parent.parent.name + " " + task + "\\n")
    except OSError:
        pass  # in the sandbox
    if order.get("answers_only"):
        Path(config["use_cache"] + "_rank0.db").write_bytes(b"answers")
        continue
    script = HERE / (task + ".py")
    if script.exists():
        exec(script.read_text())
    tuned = directory.parent.name == "tuned"
    lines = []
    for i in range(8):
        score = float(i % 2 == 0 or tuned)
        lines.append({{
            "doc_id": i, "doc": {{}}, "target": "x", "filter": "none", "metrics": ["exact_match"], "exact_match": score,
            "arguments": {{"gen_args_0": {{"arg_0": "question %d" % i, "arg_1": {{}}}}}}, "resps": [["answer"]],
            "filtered_resps": ["answer"], "doc_hash": "d%d" % i, "prompt_hash": "p%d" % i, "target_hash": "t",
        }})
    mean = sum(line["exact_match"] for line in lines) / 8
    (directory / "samples.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    results = {{
        "results": {{task: {{"alias": task, "exact_match,none": mean, "exact_match_stderr,none": 0.1}}}},
        "group_subtasks": {{}}, "versions": {{task: 1.0}}, "n-shot": {{task: 0}},
        "higher_is_better": {{task: {{"exact_match": True}}}},
    }}
    (directory / "results.json").write_text(json.dumps(results))
    done = {{"version": "0.4.13", "results": "results.json", "samples": {{task: "samples.jsonl"}}}}
    (directory / "done.json").write_text(json.dumps(done))
"""


def write(directory: Path, *, data_file: Path | None = None) -> Path:
    """Write the interpreter and return its path. `asked.txt` beside it gains a line per task, `MODEL TASK`.

    `fake_local` reads `data_file`. A file `TASK.py` in the directory is run when the task begins: it may print, sleep,
    or end the process.
    """
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "python"
    data_files = [str(data_file)] if data_file else []
    program.write_text(_PROGRAM.format(python=sys.executable, here=str(directory), data_files=data_files))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def asked(directory: Path) -> list[str]:
    """Return what was asked so far."""
    path = directory / "asked.txt"
    return path.read_text().splitlines() if path.exists() else []
