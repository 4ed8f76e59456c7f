"""How long the light verbs take, as multiples of `python -c pass`, in turn, in one process tree.

    python benchmarks/startup.py [--runs 15]

Limits: `--help` 6×, `check` and `plan` 15×. Prints medians and ratios; measure on an idle machine.
"""

from __future__ import annotations

import argparse
import compileall
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tunesmith

ROOT = Path(__file__).resolve().parent.parent
TUNESMITH = str(Path(sys.executable).parent / "tunesmith")
COMMANDS = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "tunesmith --help": ([TUNESMITH, "--help"], 6),
    "tunesmith check": ([TUNESMITH, "check", "recipes/quickstart.yaml"], 15),
    "tunesmith plan": ([TUNESMITH, "plan", "recipes/quickstart.yaml"], 15),
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    compileall.compile_dir(Path(tunesmith.__file__).parent, quiet=1)  # as pip does with what it installs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, (command, _) in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(measured[1:]) for name, measured in times.items()}  # the first warms up
    unit = medians["python -c pass"]
    failed = False
    for name, (_, limit) in COMMANDS.items():
        ratio = medians[name] / unit
        verdict = "" if limit is None else f"limit {limit}×  {'ok' if ratio <= limit else 'TOO SLOW'}"
        failed |= limit is not None and ratio > limit
        print(f"{name:<18} {1000 * medians[name]:7.1f} ms  {ratio:5.1f}×  {verdict}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
