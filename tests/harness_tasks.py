"""Small task files for lm-evaluation-harness: multiple choice, generation with filters, a group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_COLOURS = ("red", "green", "blue", "yellow grey", "black")
_THINGS = ("grass", "the sky", "a lemon", "coal", "a rose", "the sea", "snow", "mud", "a frog", "night", "sand", "rust")
_CHOICE = """\
task: tiny_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "Question: {question} {{{{thing}}}}?\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: {version}
"""
_SUMS = """\
task: tiny_sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 8
  do_sample: false
filter_list:
  - name: first-letter
    filter:
      - function: regex
        regex_pattern: "([A-Za-z])"
      - function: take_first
  - name: as-is
    filter:
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
metadata:
  version: 2.5
"""
_GROUP = """\
group: tiny_group
task:
  - tiny_colours
  - tiny_sizes
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
metadata:
  version: 3.0
"""


_PROGRAMS = """\
task: tiny_programs
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
unsafe_code: true
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{program}}}}"
process_results: !function scoring.run_program
filter_list:
  - name: run
    filter:
      - function: custom
        filter_fn: !function scoring.run_in_filter
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
  do_sample: false
metric_list:
  - metric: passed
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_SCORING = """\
import subprocess, sys

def run_in_filter(resps, docs):
    for doc in docs:
        subprocess.run([sys.executable, "-c", doc["in_filter"]], timeout=60)
    return [resp[0] for resp in resps]

def run_program(doc, results):
    done = subprocess.run([sys.executable, "-c", doc["program"]], timeout=60)
    return {"passed": float(done.returncode == 0)}
"""


def write_programs(directory: Path, programs: list[str], in_filter: str) -> Path:
    """Write the task `tiny_programs`, which runs a program per row when it scores, and one more in its filter."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": f"Write program {i}:", "program": text, "in_filter": in_filter} for i, text in enumerate(programs)
    ]
    (directory / "programs.yaml").write_text(_PROGRAMS.format(file=_rows(directory / "programs.jsonl", rows)))
    (directory / "scoring.py").write_text(_SCORING)
    return directory


def write(directory: Path) -> Path:
    """Write the tasks `tiny_colours` and `tiny_sizes` (in the group `tiny_group`) and `tiny_sums`, with their data."""
    directory.mkdir(parents=True, exist_ok=True)
    _choice(directory, "colours", "What colour is", 1.0, num_rows=12)
    _choice(directory, "sizes", "How big is", 1.5, num_rows=7)
    sums = [{"question": f"The sum of {i} and {i % 7} is", "answer": "atr"[i % 3]} for i in range(9)]
    (directory / "sums.yaml").write_text(_SUMS.format(file=_rows(directory / "sums.jsonl", sums)))
    (directory / "group.yaml").write_text(_GROUP)
    return directory


def _choice(directory: Path, name: str, question: str, version: float, *, num_rows: int) -> None:
    rows = [
        {"thing": _THINGS[i], "choices": [_COLOURS[(i + k) % 5] for k in range(4)], "label": i % 4}
        for i in range(num_rows)
    ]
    file = _rows(directory / f"{name}.jsonl", rows)
    text = _CHOICE.format(name=name, file=file, question=question, version=version)
    (directory / f"{name}.yaml").write_text(text)


def _rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
