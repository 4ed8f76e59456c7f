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
