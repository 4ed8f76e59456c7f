"""Our multi-turn verdicts and simulated programs beside the official ones.

    TUNESMITH_BFCL_PYTHON=ENV/bin/python TUNESMITH_BFCL_DATA=DIR pytest tests/parity/test_bfcl_multi_turn_official.py

`benchmarks/bfcl_multi_turn_vs_official.py` says what has to be installed there, and does the same over more.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON, DATA = os.environ.get("TUNESMITH_BFCL_PYTHON", ""), os.environ.get("TUNESMITH_BFCL_DATA", "")


@pytest.mark.skipif(not (PYTHON and DATA), reason="set TUNESMITH_BFCL_PYTHON and TUNESMITH_BFCL_DATA")
def test_verdicts_and_programs_agree_over_a_sample() -> None:
    script = ROOT / "benchmarks" / "bfcl_multi_turn_vs_official.py"
    command = [PYTHON, str(script), "--data", DATA, "--answers", "2000", "--sequences", "400", "--seed", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert "official 800/800, ours 800/800" in done.stdout and "2000/2000 agree" in done.stdout
