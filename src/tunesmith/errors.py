"""Every error that a user can meet, in one tree.

TunesmithError                     what went wrong · where · what to do
├── UsageError            exit 2   the command line is wrong
├── RecipeError           exit 2   the recipe is wrong; carries every problem found, not the first only
├── DataError             exit 3   rows, sources, templates; preflight refused to train
├── EnvironmentProblem    exit 4   an extra, a program, a device, a credential or room on the disk is missing
├── StageError            exit 5   a stage could not do its work
│   ├── ModelError                 a checkpoint is missing, broken or of an unknown shape
│   ├── TrainError                 the loss is not finite, memory ran out, a checkpoint cannot be used
│   │   └── RankLost               another process of the same training ended
│   ├── MergeError                 adapter and base do not fit, or the proof failed
│   ├── ServeError                 a server did not start, died or answered nonsense
│   ├── EvaluateError              nothing could be scored
│   ├── BenchError                 nothing could be timed
│   ├── PublishError               a target refused the release
│   └── TrackError                 a tracker that was asked for cannot start
├── GateFailed            exit 6   every stage ran; a rule of `gate` does not hold
└── Interrupted           exit 75  stopped by a signal; the same command continues the run

Exit 0 is success, 1 is a bug of ours (please report it), 141 that whoever read the output has gone (`| head`).
"""

from __future__ import annotations

import errno


class TunesmithError(Exception):
    """A problem told to the user in one message, never as a traceback.

    Args:
        what: one sentence that says what is wrong, with the offending value.
        where: file, `file:line`, key path or URL; empty when there is no place to point at.
        do: what the user can do about it, as an imperative sentence; empty when `what` says it.
    """

    exit_code = 5

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        self.what = what
        self.where = where
        self.do = do
        super().__init__(self.render())

    def render(self) -> str:
        """Return the message as shown: `where: what` and, on its own line, what to do."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  → {self.do}" if self.do else head


class UsageError(TunesmithError):
    exit_code = 2


class RecipeError(TunesmithError):
    """One or many problems of a recipe; `problems` keeps them apart for `--json`."""

    exit_code = 2

    def __init__(self, problems: list[TunesmithError]) -> None:
        assert problems, "a RecipeError without a problem"
        self.problems = problems
        super().__init__(problems[0].what, where=problems[0].where, do=problems[0].do)

    def render(self) -> str:
        # TunesmithError.__init__ renders before the subclass is complete on unpickling: keep it total.
        problems: list[TunesmithError] = getattr(self, "problems", [])
        if len(problems) == 1:
            return problems[0].render()
        body = "\n".join(problem.render() for problem in problems)
        return f"{len(problems)} problems\n{body}"


class DataError(TunesmithError):
    exit_code = 3


class EnvironmentProblem(TunesmithError):
    exit_code = 4


class StageError(TunesmithError):
    exit_code = 5


class ModelError(StageError):
    pass


class TrainError(StageError):
    """Attributes:
    starts_again: one rank alone met it, and all ranks together get over it by starting again.
    """

    starts_again = False


class RankLost(TrainError):
    starts_again = True


class MergeError(StageError):
    pass


class ServeError(StageError):
    pass


class EvaluateError(StageError):
    pass


class BenchError(StageError):
    pass


class PublishError(StageError):
    pass


class TrackError(StageError):
    pass


class GateFailed(TunesmithError):
    exit_code = 6


class Interrupted(TunesmithError):
    exit_code = 75


_TO_DO = {
    errno.ENOSPC: "make room on the disk, and give the same command again",
    errno.EDQUOT: "make room within your quota, and give the same command again",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "name a place that you may read and write, or change its permissions",
    errno.EPERM: "name a place that you may read and write, or change its permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOENT: "check the path",
    errno.EEXIST: "check the path: this is no directory",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk, and give the same command again",
    errno.ESTALE: "check the network file system, and give the same command again",
}


def refused_by_the_machine(error: OSError) -> EnvironmentProblem | None:
    """Return what the operating system would not do (a full disk, a place that is read-only) as an error that is told.

    None for what says nothing about a disk or a file: that may be a bug of ours.
    """
    about_a_file = error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
    if error.errno not in _TO_DO or not about_a_file:
        return None
    what = str(error.strerror or error)
    where = "" if error.filename is None else str(error.filename)
    return EnvironmentProblem(what[:1].lower() + what[1:], where=where, do=_TO_DO[error.errno])


def missing_extra(package: str, extra: str, *, needed_for: str) -> EnvironmentProblem:
    """Return the error for an optional dependency that is not installed."""
    return EnvironmentProblem(
        f"{needed_for} needs the package {package!r}, which is not installed",
        do=f"pip install 'tunesmith[{extra}]'",
    )


def starting_point(path: str) -> str:
    """Return where a relative path was looked for, to be put behind `check the path`; nothing for an absolute one."""
    from pathlib import Path

    return "" if Path(path).expanduser().is_absolute() else f"; it was looked for in {Path.cwd()}"


def nearest(word: str, choices: list[str]) -> str | None:
    """Return the choice most like `word`, or None when none is close."""
    import difflib

    matches = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return matches[0] if matches else None
