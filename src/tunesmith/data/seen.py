"""Which rows were met before, in about twenty bytes a row."""

from __future__ import annotations

_NUM_BUCKETS = 1 << 16
DIGEST_BYTES = 16


class DigestSet:
    """A set of 16-byte digests, laid end to end in buckets by their first two bytes.

    A set of Python's `bytes` objects takes about 100 bytes for each. Looking up costs a search through one bucket: 16
    digests at a million rows.
    """

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _NUM_BUCKETS
        self._count = 0

    def add(self, digest: bytes) -> None:
        """Take a digest in that is not there yet."""
        assert len(digest) == DIGEST_BYTES
        number = digest[0] << 8 | digest[1]
        bucket = self._buckets[number]
        if bucket is None:
            self._buckets[number] = bytearray(digest)
        else:
            bucket += digest
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: bytes) -> bool:
        bucket = self._buckets[digest[0] << 8 | digest[1]]
        if bucket is None:
            return False
        position = bucket.find(digest)
        while position % DIGEST_BYTES and position >= 0:  # found across two neighbours
            position = bucket.find(digest, position + 1)
        return position >= 0
