"""Our verdicts beside the official checker's, over mutated answers to the real items.

Needs the official package in an environment of its own and the data; `benchmarks/bfcl_official_worker.py` says how.

    TUNESMITH_BFCL_PYTHON=/path/to/env/bin/python TUNESMITH_BFCL_DATA=DIR pytest tests/parity/test_bfcl_official.py

`benchmarks/bfcl_vs_official.py` does the same over 200,000 answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import TunesmithError
from tunesmith.evaluate.bfcl.location import locate

ROOT = Path(__file__).parents[2]


def _data() -> str | None:
    try:
        return str(locate(os.environ["TUNESMITH_BFCL_DATA"]))
    except (KeyError, TunesmithError):
        return None


PYTHON = os.environ.get("TUNESMITH_BFCL_PYTHON", "")
needs_official = pytest.mark.skipif(
    not PYTHON or _data() is None, reason="set TUNESMITH_BFCL_PYTHON and TUNESMITH_BFCL_DATA"
)


@needs_official
def test_verdicts_agree_over_a_sample_of_mutated_answers() -> None:
    pytest.importorskip("tree_sitter")
    arguments = ["--data", str(_data()), "--official", PYTHON, "--answers", "6000", "--seed", "11", "--rounds", "0"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/bfcl_vs_official.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert "the known eight: True" in done.stdout
    assert "different verdicts: 0" in done.stdout
