"""Conversations of a ChatGPT export: a tree of messages, of which one path was last shown."""

from __future__ import annotations

from typing import Any

from tunesmith.rows.conversation import Message
from tunesmith.rows.messages import BadShape

# What else the export holds (thoughts, code for tools, browser pages) was never said to the person.
_SHOWN_CONTENT = ("text", "multimodal_text")


def chatgpt_messages(mapping: Any, current_node: Any) -> list[Message]:
    """Return what was said on the path to `current_node`, or on the longest path when that is missing.

    Hidden messages, calls of ChatGPT's own tools and their results are left out; an answer that is then in pieces is
    joined again.

    Raises:
        BadShape: the tree is broken, or a message is more than text.
    """
    if not isinstance(mapping, dict) or not all(isinstance(node, dict) for node in mapping.values()):
        raise BadShape("the mapping is not a tree of nodes")
    messages: list[Message] = []
    for node_id in _path(mapping, current_node):
        message = _said(mapping[node_id].get("message"))
        if message is None:
            continue
        if messages and messages[-1]["role"] == message["role"]:
            messages[-1] = {**message, "content": f"{messages[-1]['content']}\n\n{message['content']}"}
        else:
            messages.append(message)
    return messages


def _path(mapping: dict[str, Any], current_node: Any) -> list[str]:
    """Return the node ids from the root to the current node."""
    if isinstance(current_node, str) and current_node in mapping:
        return _ancestors(mapping, current_node)
    parents = {node.get("parent") for node in mapping.values() if isinstance(node.get("parent"), str)}
    leaves = [node_id for node_id in mapping if node_id not in parents]
    return max((_ancestors(mapping, leaf) for leaf in leaves), key=len, default=[])


def _ancestors(mapping: dict[str, Any], leaf: str) -> list[str]:
    path: list[str] = []
    node_id: Any = leaf
    while isinstance(node_id, str) and node_id in mapping:
        path.append(node_id)
        if len(path) > len(mapping):
            raise BadShape("the mapping goes round in a circle")
        node_id = mapping[node_id].get("parent")
    return path[::-1]


def _said(message: Any) -> Message | None:
    if not isinstance(message, dict):
        return None
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    if role not in ("user", "assistant", "system") or not isinstance(content, dict):
        return None
    metadata = message.get("metadata")
    hidden = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation")
    if hidden or message.get("recipient", "all") != "all" or content.get("content_type") not in _SHOWN_CONTENT:
        return None
    parts = content.get("parts") or []
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise BadShape(f"a {role} message has a part that is not text")
    text = "".join(parts)
    return {"role": role, "content": text} if text.strip() else None
