"""What a model is given to read for a few fixed conversations: the same in every stage, or the run stops.

A template or tokenizer that changes between training and use costs accuracy without a word. So every stage that
renders conversations renders these, and compares the ids with those of training (`template_probes.json`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import StageError
from tunesmith.store import files
from tunesmith.tokens.chat import Messages, Tools, render
from tunesmith.tokens.jinja import TemplateProblem, at_time
from tunesmith.tokens.templates import ChatTemplate, template_for
from tunesmith.tokens.tokenizer import ChatTokenizer, load_tokenizer

PROBES_FILE = "template_probes.json"

_NOON = datetime(2024, 2, 29, 12, 0, 0)  # some templates write today's date
_ASKED = {"role": "user", "content": "What's 12 × 7?\n\tAnswer  briefly."}
_ANSWERED = {"role": "assistant", "content": "84 – naïve, but right. 🙂"}
_SYSTEM = {"role": "system", "content": "You are terse."}
_THANKS = {"role": "user", "content": "Thanks! And 0.5 × 3?"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "unit": "celsius"}},
}
_CALLED = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"temperature": 21.5}'}
_WEATHER = {"role": "user", "content": "Weather in Zürich?"}

# name -> messages, tools; the ones that end with the user's turn are given to the model to go on from
PROBES: Mapping[str, tuple[Messages, Tools]] = {
    "plain": ((_ASKED,), ()),
    "system": ((_SYSTEM, _ASKED), ()),
    "multi-turn": ((_SYSTEM, _ASKED, _ANSWERED, _THANKS), ()),
    "answered": ((_ASKED, _ANSWERED), ()),
    "tools": ((_WEATHER,), (_TOOL,)),
    "tool call": ((_WEATHER, _CALLED, _RESULT), (_TOOL,)),
}


@dataclass(frozen=True)
class Rendering:
    """One conversation as the model reads it; one that the template refuses has no ids and says why."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TemplateProbes:
    """Every probe as rendered and encoded."""

    renderings: Mapping[str, Rendering]

    @property
    def fingerprint(self) -> str:
        """Hash of the ids; what a template says when it refuses does not count."""
        return files.fingerprint({name: list(rendering.ids) for name, rendering in self.renderings.items()})

    def to_json(self) -> dict[str, Any]:
        found = {name: {"text": r.text, "ids": list(r.ids)} for name, r in self.renderings.items()}
        return {"fingerprint": self.fingerprint, "conversations": found}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TemplateProbes:
        found = document["conversations"].items()
        return cls({name: Rendering(str(r["text"]), tuple(map(int, r["ids"]))) for name, r in found})


def render_probes(tokenizer: ChatTokenizer, template: ChatTemplate) -> TemplateProbes:
    """Render and encode every probe, at a fixed time of day."""
    renderings = {}
    for name, (messages, tools) in PROBES.items():
        try:
            with at_time(_NOON):
                text = render(template, messages, tools, add_generation_prompt=messages[-1]["role"] != "assistant")
            renderings[name] = Rendering(text, tuple(tokenizer.encode(text)))
        except TemplateProblem as problem:
            renderings[name] = Rendering(f"(refused: {problem})", ())
    return TemplateProbes(renderings)


def probes_of(directory: Path, chat_template: str) -> TemplateProbes:
    """Return what a checkpoint directory makes of the probes.

    Args:
        chat_template: as `template_for`.

    Raises:
        DataError: its tokenizer or the template cannot be used.
    """
    tokenizer = load_tokenizer(directory)
    return render_probes(tokenizer, template_for(tokenizer, chat_template))


def check_probes(found: TemplateProbes, trained: Path, *, stage: str, where: Path) -> str:
    """Return the fingerprint of what a stage found, when training read the same.

    Args:
        trained: directory that training left. Without `template_probes.json` there is nothing to compare with.
        where: what the stage rendered with, for the message.

    Raises:
        StageError: training read other ids; both texts are shown.
    """
    try:
        recorded = TemplateProbes.from_json(json.loads((trained / PROBES_FILE).read_text()))
    except FileNotFoundError:
        return found.fingerprint
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"what training made of the probe conversations cannot be read: {error}"
        raise StageError(what, where=str(trained / PROBES_FILE), do="run training again") from None
    unequal = [
        name
        for name, rendering in recorded.renderings.items()
        if name in found.renderings and found.renderings[name].ids != rendering.ids
    ]
    if unequal:
        name = unequal[0]
        raise _difference(name, recorded.renderings[name], found.renderings[name], stage, where)
    return found.fingerprint


def _difference(name: str, trained: Rendering, found: Rendering, stage: str, where: Path) -> StageError:
    first = next(
        (i for i, (a, b) in enumerate(zip(trained.ids, found.ids, strict=False)) if a != b),
        min(len(trained.ids), len(found.ids)),
    )
    what = f"the model would read other tokens in stage {stage} than in training: conversation {name!r}, token {first}"
    if trained.text == found.text:
        shown = (
            f"one text, two tokenizers:\n{_indented(trained.text)}\n  ids in training\n{_around(trained.ids, first)}\n"
        )
        shown += f"  ids in {stage}\n{_around(found.ids, first)}"
    else:
        lines = difflib.unified_diff(
            trained.text.splitlines(), found.text.splitlines(), "training", stage, lineterm="", n=1
        )
        shown = f"in training\n{_indented(trained.text)}\n  in {stage}\n{_indented(found.text)}\n  difference\n"
        shown += "\n".join(f"    {line}" for line in lines)
    do = "restore the tokenizer and the chat template that the model was trained with, or train again with the new ones"
    return StageError(f"{what}\n  {shown}", where=str(where), do=do)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _around(ids: tuple[int, ...], index: int) -> str:
    return f"    … {list(ids[max(0, index - 3) : index + 6])} …"
