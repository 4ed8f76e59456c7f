"""What every row becomes: a conversation, or a pair of answers to one.

Messages keep OpenAI's chat form: `role` is system, user, assistant or tool, `content` is text (`""` is allowed), an
assistant may carry `tool_calls=[{"type": "function", "function": {"name": …, "arguments": {…}}}]` with the arguments as
a mapping, never as JSON text. Tools are declared as
`{"type": "function", "function": {name, description, parameters}}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and the tools that were on offer."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the row in `messages` form; `tools` only where there are any."""
        row: dict[str, Any] = {"messages": list(self.messages)}
        return row | ({"tools": list(self.tools)} if self.tools else {})


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse continuation."""

    prompt: Conversation
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the row in `prompt_messages/chosen_messages/rejected_messages` form."""
        row: dict[str, Any] = {
            "prompt_messages": list(self.prompt.messages),
            "chosen_messages": list(self.chosen),
            "rejected_messages": list(self.rejected),
        }
        return row | ({"tools": list(self.prompt.tools)} if self.prompt.tools else {})
