"""Weights & Biases: offline files in the run directory by default, which `wandb sync` can send later."""

from __future__ import annotations

import os
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

    W&B's steps must not go back: a step that was sent is not sent again when a restarted training makes it again. Its
    numbers are the same, since a resumed training equals an uninterrupted one.
    """

    name = "W&B"

    def __init__(self, recipe: Recipe, settings: Wandb, run_dir: RunDir) -> None:
        if settings.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            do = "export WANDB_API_KEY=…, or set track.wandb.mode: offline"
            raise EnvironmentProblem("the environment variable WANDB_API_KEY is not set", where="track.wandb", do=do)
        try:
            import wandb
        except ImportError:
            raise missing_extra("wandb", "wandb", needed_for="track.wandb") from None
        project = settings.project or recipe.name
        run_id, known = identities.identity(run_dir, "wandb", f"{settings.mode} {project}")
        run_dir.wandb.mkdir(parents=True, exist_ok=True)
        try:
            self._run: Any = wandb.init(
                project=project,
                id=run_id,
                name=run_dir.path.name,
                resume="allow" if settings.mode == "online" else None,
                reinit="create_new",
                mode=settings.mode,
                dir=str(run_dir.path),
                config=None if known and settings.mode == "online" else plain(recipe),
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
        self._sent_step = max(identities.sent_step(run_dir, "wandb"), self._run.step - 1)

    def write(self, lines: list[Line]) -> None:
        for line in lines:
            if line.step > self._sent_step:
                self._run.log(line.metrics, step=line.step)

    def close(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=0 if outcome == "done" else 1)
