"""The launcher of ranks: what its signals and its end do to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

# Waits for a stop signal, and saves something for a while before it ends.
RANK = """
import os, signal, sys, time
from pathlib import Path
place, rank = Path(sys.argv[1]), os.environ["RANK"]
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: asked.append(number))
asked = []
(place / f"begun-{rank}").touch()
while not asked:
    time.sleep(0.01)
time.sleep(0.5)
(place / f"saved-{rank}").touch()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_that_comes_twice_lets_ranks_save(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "tunesmith.train.ranks", "2", str(tmp_path / "rank.py"), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    launcher = subprocess.Popen(command, env=environment)
    limit = time.monotonic() + 60
    while len(list(tmp_path.glob("begun-*"))) < 2:
        assert launcher.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    launcher.send_signal(number)
    time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 0
    assert len(list(tmp_path.glob("saved-*"))) == 2
