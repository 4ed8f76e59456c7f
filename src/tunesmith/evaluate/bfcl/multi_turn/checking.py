"""The verdict on one item: after every turn, the state of the programs and what the calls have answered.

Model and ground truth act in two simulations. A turn is right when the model has called something, every public
attribute is equal afterwards, and each result of the ground truth's calls is among the results of all the model's calls
so far. In a turn without ground truth, where the model should notice that something is missing, nothing is checked;
what the model does there counts in the next turn.

Source: `multi_turn_checker.py` and `_evaluate_single_multi_turn_entry` in `eval_runner.py`, gorilla at 6ea5797.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import LongContext
from tunesmith.evaluate.bfcl.multi_turn.long_context import stand_in
from tunesmith.evaluate.bfcl.multi_turn.world import Scene, World
from tunesmith.evaluate.bfcl.verdicts import VALID, Verdict

Step = Sequence[str]
Turn = Sequence[Step]

# Objects of the official checker are named after the model; any name without one of its own in it will do.
_MODEL, _GROUND_TRUTH = "model_eval", "model_ground_truth_eval"
_SHOWN_CHARACTERS = 300


def scene_of(item: Mapping[str, Any], long_context: LongContext | None = None) -> Scene:
    """Return what an item begins with; long context is added to the items whose id says so.

    Args:
        item: a line of the data.
        long_context: the official text where it is at hand; text of our own otherwise.
    """
    is_long = "long_context" in item["id"] or "composite" in item["id"]
    return Scene(item, (long_context or _stand_in()) if is_long else None)


_stand_in = functools.cache(stand_in)


def check(
    item: Mapping[str, Any],
    ground_truth: Sequence[Step],
    turns: Any,
    long_context: LongContext | None = None,
) -> Verdict:
    """Return the verdict on an item.

    Args:
        item: a line of the data.
        ground_truth: call strings of each turn.
        turns: call strings of each step of each turn, as `decoding` returns them; anything else is an answer that
            failed.
        long_context: the official text where it is at hand.
    """
    if not isinstance(turns, list):
        return Verdict(False, "multi_turn:inference_error", "the answer is no list of turns")
    if len(turns) != len(ground_truth):
        error = f"{len(turns)} turns were answered of {len(ground_truth)}"
        return Verdict(False, "multi_turn:force_terminated", error)
    scene = scene_of(item, long_context)
    model, reference = scene.world(_MODEL), scene.world(_GROUND_TRUTH)
    results: list[str] = []
    for number, (steps, wanted_calls) in enumerate(zip(turns, ground_truth, strict=True)):
        for step in steps:
            results += model.run(step)
        wanted = reference.run(wanted_calls)
        if not wanted_calls:
            continue
        verdict = _check_turn(number, is_empty(steps), (model, results), (reference, wanted))
        if verdict:
            return verdict
    return VALID


def is_empty(steps: Sequence[Sequence[Any]]) -> bool:
    """Return whether a turn holds nothing: no step, or a single one without a call."""
    return not steps or (len(steps) == 1 and not steps[0])


def _check_turn(
    number: int, was_silent: bool, model: tuple[World, list[str]], reference: tuple[World, list[str]]
) -> Verdict | None:
    if was_silent:
        return Verdict(False, "multi_turn:empty_turn_model_response", f"turn {number}: nothing was called")
    differing = [f"{program}.{attribute}" for program, attribute in reference[0].differences(model[0])]
    if differing:
        error = f"turn {number}: not as it should be: {', '.join(differing)}"
        return Verdict(False, "multi_turn:instance_state_mismatch", error)
    missing = _missing(reference[1], model[1])
    if missing:
        error = f"turn {number}: {len(missing)} results are missing, the first: {missing[0][:_SHOWN_CHARACTERS]}"
        return Verdict(False, "multi_turn:execution_response_mismatch", error)
    return None


def _missing(wanted: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the wanted results that have no counterpart of their own among those given, in any order."""
    left = list(given)
    missing = []
    for result in wanted:
        if result in left:
            left.remove(result)
        else:
            missing.append(result)
    return missing
