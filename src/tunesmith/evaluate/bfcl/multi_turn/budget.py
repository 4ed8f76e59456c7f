"""How much work a model's calls may cause. No honest answer comes near; text that wants the machine's time does."""

from __future__ import annotations


class WorkLimit(Exception):
    """A call wants more work than any right answer needs. To the model it is a failed call like any other."""


class Budget:
    """What the calls of one item may still spend.

    Args:
        num_calls: calls that are executed.
        num_steps: files visited, lines compared, and the like.
        num_characters: of text written to files and handed back.
    """

    def __init__(self, num_calls: int = 5_000, num_steps: int = 2_000_000, num_characters: int = 20_000_000) -> None:
        self._num_calls, self._num_steps, self._num_characters = num_calls, num_steps, num_characters

    def call(self) -> None:
        """Count a call.

        Raises:
            WorkLimit: there have been too many.
        """
        self._num_calls -= 1
        if self._num_calls < 0:
            raise WorkLimit("too many calls")

    def steps(self, num: int = 1) -> None:
        """Count steps of work.

        Raises:
            WorkLimit: there have been too many.
        """
        self._num_steps -= num
        if self._num_steps < 0:
            raise WorkLimit("too much work")

    def characters(self, num: int) -> None:
        """Count text.

        Raises:
            WorkLimit: there has been too much.
        """
        self._num_characters -= num
        if self._num_characters < 0:
            raise WorkLimit("too much text")
