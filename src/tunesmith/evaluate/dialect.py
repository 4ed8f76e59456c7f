"""The body of a request, as far as an endpoint takes it: hosted models refuse some of OpenAI's own parameters.

Reasoning models want `max_completion_tokens` for `max_tokens` and no temperature; some servers know no `seed`. What an
endpoint says it does not take is left out from then on, and told: an answer without temperature 0 is another answer.
"""

from __future__ import annotations

import re
from typing import Any

from tunesmith.evaluate.wire import chat_messages
from tunesmith.rows.conversation import Message

_REFUSED = re.compile(
    r"unsupported|not supported|does ?n[o']t support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed", re.I
)
_OPTIONAL = ("temperature", "seed", "stop")


class Dialect:
    """What one endpoint takes; it learns from refusals.

    Args:
        model: the model's name there.
        seed: sent with every request, where it is taken.
    """

    def __init__(self, model: str, seed: int) -> None:
        self._model, self._seed = model, seed
        self._left_out: list[str] = []
        self._length = "max_tokens"

    @property
    def told(self) -> str:
        """What is different from the usual; empty when nothing is."""
        renamed = [f"{self._length} for max_tokens"] if self._length != "max_tokens" else []
        return "; ".join(renamed + [f"without {name}" for name in self._left_out])

    def document(
        self,
        messages: tuple[Message, ...],
        tools: tuple[dict[str, Any], ...],
        max_tokens: int,
        **more: Any,
    ) -> dict[str, Any]:
        """Return the body of a request; `more` may hold a raw prompt, stop words and a temperature."""
        document: dict[str, Any] = {"model": self._model}
        if more.get("prompt") is None:
            document["messages"] = chat_messages(messages)
            document |= {"tools": list(tools)} if tools else {}
        else:
            document["prompt"] = more["prompt"]
        document |= {self._length: max_tokens, "temperature": more.get("temperature", 0.0), "seed": self._seed}
        document |= {"stop": list(more["stop"])} if more.get("stop") else {}
        return {name: value for name, value in document.items() if name not in self._left_out}

    def learn(self, status: int, message: str) -> bool:
        """Take note of a parameter that a refusal names; return whether the request may be sent again without it."""
        if status not in (400, 422) or not _REFUSED.search(message):
            return False
        if self._length == "max_tokens" and "max_completion_tokens" in message:
            self._length = "max_completion_tokens"
            return True
        for name in _OPTIONAL:
            if name not in self._left_out and re.search(rf"\b{name}\b", message):
                self._left_out.append(name)
                return True
        return False
