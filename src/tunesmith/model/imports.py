"""PyTorch and transformers, imported in one go.

That is most of what passes between a command and its first step, and it is one core's work in Python.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from functools import cache

from tunesmith.errors import missing_extra

# transformers imports these wherever they are installed, for losses of object detection and for models spread over
# devices (5.23: loss/loss_for_object_detection.py, integrations/accelerate.py). Nothing here needs either.
_LEFT_OUT = ("scipy", "accelerate")


@cache
def import_libraries() -> None:
    """Import what every model needs. Costs about three seconds the first time.

    Three thousand modules make a million objects, all of which stay: looking for garbage among them takes a sixth of
    the time and finds none.

    Raises:
        EnvironmentProblem: one of them is not installed.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        with _not_found(_LEFT_OUT):
            import transformers.modeling_utils  # noqa: F401
    except ImportError as error:
        raise missing_extra((error.name or "torch").partition(".")[0], "train", needed_for="training") from None
    finally:
        gc.freeze()  # later collections leave these objects alone
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _not_found(packages: tuple[str, ...]) -> Iterator[None]:
    """Let packages that nobody has imported yet look as if they were not installed; afterwards they can be imported.

    None in the place of a module is how Python's import system is told so (language reference, 5.3.1).
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
