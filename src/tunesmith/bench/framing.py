"""HTTP/1.1's framing of one answer: where its head ends, which bytes are body, and when it is complete."""

from __future__ import annotations

_LONGEST_HEAD_BYTES = 65_536
_LONGEST_CHUNK_LINE_BYTES = 1024


class Malformed(Exception):
    """What came is not HTTP."""


class Framing:
    """Grows with `feed`; a byte that was read once is not read again.

    Attributes:
        status: 0 until the head has been read.
        is_complete: the whole answer is here.
        closes: the server will not take another request on this connection.
        spans: (begin, end) of every stretch of body in `raw`.
    """

    def __init__(self) -> None:
        self.raw = bytearray()
        self.status = 0
        self.is_complete = False
        self.closes = False
        self.spans: list[tuple[int, int]] = []
        self.kind = ""  # chunked | length | close, once the head has been read
        self._at = 0  # where reading goes on
        self._end = 0  # of the body, for `length`

    def feed(self, data: bytes) -> None:
        """Take bytes as they came.

        Raises:
            Malformed: they are not HTTP.
        """
        self.raw += data
        if not self.kind and not self._read_head():
            return
        if self.kind == "chunked":
            self._read_chunks()
        elif self.kind == "length":
            self.is_complete = len(self.raw) >= self._end
            self.spans = [(self._at, min(len(self.raw), self._end))]
        else:
            self.spans = [(self._at, len(self.raw))]
        if self.is_complete and len(self.raw) > max(self._at, self._end):
            self.closes = True  # more came than was promised: whatever it is, it is no answer to the next request

    def close(self) -> None:
        """The connection has ended: that completes an answer without a length, and no other."""
        self.closes = True
        self.is_complete = self.is_complete or self.kind == "close"

    def body(self) -> bytes:
        """Return all of the body that has come."""
        return b"".join(bytes(self.raw[begin:end]) for begin, end in self.spans)

    def _read_head(self) -> bool:
        while True:
            end = self.raw.find(b"\r\n\r\n", self._at)
            if end < 0:
                if len(self.raw) - self._at > _LONGEST_HEAD_BYTES:
                    raise Malformed(f"{len(self.raw) - self._at} bytes without the end of a head")
                return False
            lines = self.raw[self._at : end].decode("latin-1").split("\r\n")
            self._at = end + 4
            words = lines[0].split(" ", 2)
            if len(words) < 2 or not words[0].startswith("HTTP/1."):
                raise Malformed(f"not an HTTP answer: {lines[0][:80]!r}")
            status = _number(words[1], 10)
            if status >= 200 or status == 101:
                break
        pairs = (line.partition(":") for line in lines[1:])
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self.status = status
        self.closes = headers.get("connection", "").lower() == "close" or words[0] == "HTTP/1.0"
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self.kind = "chunked"
        elif "content-length" in headers or status in (204, 304):
            self.kind = "length"
            self._end = self._at + _number(headers.get("content-length", "0"), 10)
        else:
            self.kind, self.closes = "close", True
        return True

    def _read_chunks(self) -> None:
        raw, at = self.raw, self._at
        while True:
            line_end = raw.find(b"\r\n", at)
            if line_end < 0 or line_end - at > _LONGEST_CHUNK_LINE_BYTES:
                if len(raw) - at > _LONGEST_CHUNK_LINE_BYTES:
                    raise Malformed(f"{len(raw) - at} bytes without the end of a line")
                break
            line = raw[at:line_end]
            try:
                size = int(line, 16)
            except ValueError:
                size = _number(line.split(b";")[0].decode("latin-1"), 16)
            begin, end = line_end + 2, line_end + 2 + size
            if size <= 0:
                if size < 0:
                    raise Malformed(f"not a length: {bytes(line[:40])!r}")
                self._read_trailers(at, line_end)
                return
            if len(raw) < end + 2:
                break
            if raw[end] != 13 or raw[end + 1] != 10:
                raise Malformed("a chunk is longer than it says")
            self.spans.append((begin, end))
            at = end + 2
        self._at = at

    def _read_trailers(self, at: int, line_end: int) -> None:
        """Read what follows the last chunk: nothing, or lines up to an empty one."""
        self._at = at
        if self.raw.startswith(b"\r\n", line_end + 2):
            end = line_end
        else:
            end = self.raw.find(b"\r\n\r\n", line_end)
            if end < 0:
                if len(self.raw) - line_end > _LONGEST_HEAD_BYTES:
                    raise Malformed("trailers without an end")
                return
        self.is_complete, self._at = True, end + 4


def _number(text: str, base: int) -> int:
    try:
        number = int(text.strip(), base)
    except ValueError:
        number = -1
    if number < 0:
        raise Malformed(f"not a number in HTTP's framing: {text[:40]!r}")
    return number
