"""TensorBoard event files in the run directory, written by tensorboardX (which needs neither torch nor TensorFlow)."""

from __future__ import annotations

from tunesmith.errors import TrackError, missing_extra
from tunesmith.store.run_dir import RunDir
from tunesmith.track.jsonl import Line
from tunesmith.track.mirror import Outcome, brief

_FLUSH_SECONDS = 5


class TensorBoardMirror:
    """Each process writes one new file, which holds all lines of metrics.jsonl and voids the files before it.

    Events wait in a buffer for some seconds and are lost by a kill; starting over heals that. Readers void by the
    SessionLog START event with step 0 (`purge_step`), as TensorBoard's own restarts do.
    """

    name = "TensorBoard"

    def __init__(self, run_dir: RunDir) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboardX", "tensorboard", needed_for="track.tensorboard") from None
        directory = run_dir.tensorboard
        # Readers go through the files by name, which begins with the time in seconds: the number orders the rest.
        number = len(list(directory.glob("events.out.tfevents.*")))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(
                str(directory), purge_step=0, flush_secs=_FLUSH_SECONDS, filename_suffix=f".{number:04d}"
            )
        except OSError as error:
            do = "make the run directory writable, or take tensorboard out of track"
            raise TrackError(
                f"TensorBoard files cannot be written: {brief(error)}", where=str(directory), do=do
            ) from None

    def write(self, lines: list[Line]) -> None:
        for line in lines:
            for name, value in line.metrics.items():
                self._writer.add_scalar(name, value, line.step, walltime=line.time_seconds)

    def close(self, outcome: Outcome) -> None:
        self._writer.close()
