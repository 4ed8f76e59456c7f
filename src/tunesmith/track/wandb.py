"""Weights & Biases: offline files in the run directory by default, which `wandb sync` can send later."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import EnvironmentProblem, TrackError, missing_extra
from tunesmith.recipe.schema import Recipe, Wandb
from tunesmith.recipe.walk import plain
from tunesmith.store.run_dir import RunDir
from tunesmith.track import identities
from tunesmith.track.jsonl import Line
from tunesmith.track.mirror import Outcome, brief


class WandbMirror:
    """One W&B run under one id, whatever the number of processes.

    Offline, each process writes all lines of metrics.jsonl into a new file and removes the files before it: W&B keeps
    what it is given in memory for a while, and a kill loses it. Online, the server says up to which step it has the
    run, and gets what comes after; W&B's steps cannot go back.
    """

    name = "W&B"

    def __init__(self, recipe: Recipe, settings: Wandb, run_dir: RunDir) -> None:
        online = settings.mode == "online"
        if online and not os.environ.get("WANDB_API_KEY"):
            do = "export WANDB_API_KEY=…, or set track.wandb.mode: offline"
            raise EnvironmentProblem("the environment variable WANDB_API_KEY is not set", where="track.wandb", do=do)
        try:
            import wandb
        except ImportError:
            raise missing_extra("wandb", "wandb", needed_for="track.wandb") from None
        project = settings.project or recipe.name
        run_id = identities.identity(run_dir, "wandb", f"{settings.mode} {project}")
        earlier = list(run_dir.wandb.glob(f"offline-run-*-{run_id}"))
        try:
            run_dir.wandb.mkdir(parents=True, exist_ok=True)
            self._run: Any = wandb.init(
                project=project,
                id=run_id,
                name=run_dir.path.name,
                resume="allow" if online else None,
                reinit="create_new",
                mode=settings.mode,
                dir=str(run_dir.path),
                config=plain(recipe),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    x_disable_meta=True,
                    use_dot_wandb=False,
                ),
            )
        except Exception as error:
            do = "correct track.wandb, set its mode to offline, or take wandb out of track"
            raise TrackError(f"W&B cannot start: {brief(error)}", where="track.wandb", do=do) from error
        self._first_step = int(self._run.step) if online else 0
        for directory in earlier:
            if directory != Path(self._run.dir).parent:
                with contextlib.suppress(OSError):
                    shutil.rmtree(directory)

    def write(self, lines: list[Line]) -> None:
        for line in lines:
            if line.step >= self._first_step:
                self._run.log({"_timestamp": line.time_seconds} | line.metrics, step=line.step)

    def close(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=0 if outcome == "done" else 1)
