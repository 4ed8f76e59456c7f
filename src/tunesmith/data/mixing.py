"""What becomes of a row, decided by its content alone: the same row meets the same fate wherever it stands.

Every draw is a hash of (content, seed, purpose), so adding or removing other rows moves none: a row held out today is
not trained on tomorrow, and equal rows are never on both sides.
"""

from __future__ import annotations

import hashlib
import json

from tunesmith.rows.conversation import Conversation, Preference

_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def content_digest(content: Conversation | Preference) -> bytes:
    """Return 16 bytes that are equal exactly when what a row says is equal, whatever format said it."""
    return hashlib.blake2b(_CANONICAL(content.to_json()).encode(), digest_size=16).digest()


def draw(digest: bytes, seed: int, purpose: str) -> float:
    """Return a number in [0, 1) that looks random and depends on the arguments only."""
    key = f"{seed}:{purpose}:".encode()
    return int.from_bytes(hashlib.blake2b(key + digest, digest_size=8).digest()) / 2**64


def is_held_out(digest: bytes, seed: int, validation_fraction: float) -> bool:
    """Return whether a row belongs to the validation split."""
    return validation_fraction > 0 and draw(digest, seed, "validation") < validation_fraction


def num_repeats(digest: bytes, seed: int, weight: float) -> int:
    """Return how often one epoch shows a row: the whole part of the weight, once more for its fraction of the rows."""
    whole = int(weight)
    return whole + (weight > whole and draw(digest, seed, "weight") < weight - whole)
