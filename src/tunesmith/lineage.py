"""Where a run's numbers come from: the commit, the packages, the machine, the command."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.hardware import probe

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "bitsandbytes", "datasets", "vllm",
    "sacrebleu", "rouge-score", "mlflow", "wandb", "tensorboardX",
)  # fmt: skip


def lineage() -> dict[str, Any]:
    """Return what a run needs to be traced and repeated. Costs a few git commands."""
    return {
        "tunesmith": __version__,
        "git": git_state(Path.cwd()),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": probe().to_json(),
        "platform": platform.platform(),
    }


def command_line() -> list[str]:
    """Return the command as a person would type it."""
    return ["tunesmith", *sys.argv[1:]]


def git_state(directory: Path) -> dict[str, Any]:
    """Return commit and dirtiness of the work tree around a directory; `commit` is None outside of one."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None}
    changed = (_git(directory, "status", "--porcelain") or "").splitlines()
    branch = _git(directory, "rev-parse", "--abbrev-ref", "HEAD")
    return {"commit": commit, "branch": branch, "dirty": bool(changed), "num_changed_files": len(changed)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that can change a result."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
