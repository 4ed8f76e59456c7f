"""From a raw answer to the times of its tokens: server-sent events, and what they say.

Definitions, for every request that was answered (seconds):

    started  the moment the request was due: in a closed loop when it was sent, in an open loop when its turn came,
             however late it was sent. A client that counts from the sending leaves out the waiting that a slow server
             causes (coordinated omission).
    ttft     time to first token: from `started` to the first event with text, reasoning or a piece of a call in it
    e2e      end-to-end latency: from `started` to the end of the stream
    tpot     time per output token after the first: (e2e - ttft) / (output tokens - 1)
    itl      inter-token latencies: the times between successive events with output in them. A server may put several
             tokens into an event; then these are times between events, and fewer `num_events` than tokens say so.

Output tokens are what the server's usage says; only where it says nothing, events are counted instead.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from tunesmith.bench.http import RawAnswer

_OUTPUT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")


@dataclass(frozen=True)
class Timing:
    """What one request took. Times in seconds; None where there is no such time.

    Failures: connect (no connection) · timeout (not complete in time) · stall (silent for too long after it began) ·
    http_NNN (another status than 200) · error (an error instead of an event) · malformed (not HTTP, no events, no JSON)
    · disconnect (the connection ended early) · truncated (the answer ended, but no event said why) · empty (complete,
    without any output).
    """

    prompt: str  # where it comes from, file:line
    started: float  # since the level began
    ttft: float | None = None
    e2e: float | None = None
    tpot: float | None = None
    itl: tuple[float, ...] = ()
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    has_usage: bool = True
    finish_reason: str | None = None
    failure: str = ""  # empty when answered
    detail: str = ""
    num_events: int = 0  # with output in them, also of a failed request
    sent_late: float = 0.0  # sent so long after `started`
    gone: float | None = None  # a failed request was given up so long after `started`


@dataclass
class Output:
    """What the events of one answer hold."""

    times: list[float] = field(default_factory=list)  # of events with output
    text: list[bytes] = field(default_factory=list)  # of these events, JSON-escaped; without calls and reasoning
    usage: dict[str, Any] = field(default_factory=dict)
    finish: tuple[float, str] | None = None
    error: str = ""
    has_calls: bool = False

    def answer_text(self) -> str:
        """Return the answer's text."""
        return str(json.loads(b'"' + b"".join(self.text) + b'"', strict=False))


def read_answer(name: str, raw: RawAnswer, begin: float) -> tuple[Timing, Output]:
    """Turn a raw answer into timings; what is no proper stream is a failure with a kind."""
    output = Output()
    problem, detail = raw.problem, raw.detail
    if not problem and raw.status != 200:
        problem, detail = f"http_{raw.status}", raw.body().decode("utf-8", "replace")
    elif raw.status == 200:
        try:
            is_whole = _EventReader(output).read(raw)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            problem, detail = problem or "malformed", detail or f"an event is not a completion chunk: {error}"
        else:
            if not problem:
                problem, detail = _complaint(output, is_whole, raw)
    if problem:
        return _failed(name, raw, begin, output, problem, detail), output
    return _answered(name, raw, begin, output), output


def _complaint(output: Output, is_whole: bool, raw: RawAnswer) -> tuple[str, str]:
    if output.error:
        return "error", output.error
    if output.finish is None and not output.times and is_whole and not output.usage:
        start = raw.body()[:80]
        return "malformed", f"the answer holds no completion chunk: {start!r}"
    if output.finish is None or not is_whole:
        return "truncated", "the stream ended without a finish_reason"
    if not output.times:
        told = output.usage.get("completion_tokens")
        return "empty", f"a complete answer without any output (tokens by the server's count: {told})"
    return "", ""


def _failed(name: str, raw: RawAnswer, begin: float, output: Output, problem: str, detail: str) -> Timing:
    return Timing(
        name,
        raw.started - begin,
        failure=problem,
        detail=" ".join(detail.split())[:300],
        num_events=len(output.times),
        sent_late=max(0.0, raw.sent - raw.started) if raw.sent else 0.0,
        gone=raw.ended - raw.started,
    )


def _answered(name: str, raw: RawAnswer, begin: float, output: Output) -> Timing:
    times = output.times
    told = output.usage.get("completion_tokens")
    has_usage = isinstance(told, int)
    count = told if isinstance(told, int) else len(times)
    prompt_tokens = output.usage.get("prompt_tokens")
    ttft, e2e = times[0] - raw.started, raw.ended - raw.started
    assert output.finish is not None
    return Timing(
        prompt=name,
        started=raw.started - begin,
        ttft=ttft,
        e2e=e2e,
        tpot=(e2e - ttft) / (count - 1) if count > 1 else None,
        itl=tuple(later - earlier for earlier, later in itertools.pairwise(times)),
        num_prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else None,
        num_output_tokens=count,
        has_usage=has_usage,
        finish_reason=output.finish[1],
        num_events=len(times),
        sent_late=max(0.0, raw.sent - raw.started),
    )


def _is_plain(inner: bytes) -> bool:
    """Return whether the inside of a JSON string stands for itself."""
    return b'"' not in inner and b"\\" not in inner


class _EventReader:
    """Reads the events of one answer.

    Most events of an answer differ in one string only. Once such an event has been decoded, its bytes before and after
    that string are a form: another event of the same form whose string holds neither quote nor backslash is the same
    document with another text, and need not be decoded.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._before, self._after = b"\x00", b"\x00"  # fits nothing

    def read(self, raw: RawAnswer) -> bool:
        """Read everything; return whether the last event is whole."""
        data, arrived, ends = bytes(raw.framing.raw), raw.times, raw.ends
        times, text = self._output.times, self._output.text
        index, rest = 0, b""
        for begin, end in raw.framing.spans:
            if begin == end:
                continue
            while ends[index] <= begin:
                index += 1
            # Most servers send an event in a chunk of its own: nothing has to be cut out for it.
            if not rest and end <= ends[index] and data.startswith(self._before, begin):
                inner = data[begin + len(self._before) : end - len(self._after) - 2]
                if inner and data.endswith(self._after + b"\n\n", begin, end) and _is_plain(inner):
                    times.append(arrived[index])
                    text.append(inner)
                    continue
            while ends[index] < end:
                rest = self._read_piece(arrived[index], rest + data[begin : ends[index]])
                begin, index = ends[index], index + 1
            rest = self._read_piece(arrived[index], rest + data[begin:end])
        return self._read_rest(raw, rest)

    def _read_piece(self, when: float, piece: bytes) -> bytes:
        """Read the events that end in a piece; return what comes after the last one."""
        half = b""
        if b"\r" in piece:
            cut = len(piece) - piece.endswith(b"\r")
            piece, half = piece[:cut].replace(b"\r\n", b"\n"), piece[cut:]
        blocks = piece.split(b"\n\n")
        rest = blocks.pop() + half
        for block in blocks:
            if block.startswith(self._before) and block.endswith(self._after):
                inner = block[len(self._before) : -len(self._after)]
                if inner and _is_plain(inner):
                    self._output.times.append(when)
                    self._output.text.append(inner)
                    continue
            self._decode(when, block)
        return rest

    def _read_rest(self, raw: RawAnswer, rest: bytes) -> bool:
        """Read what is left without an empty line behind it; return whether it is whole."""
        if not rest.strip():
            return True
        try:
            self._decode(raw.times[-1], rest.strip())
        except ValueError:
            return False
        return True

    def _decode(self, when: float, block: bytes) -> None:
        lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
        if not lines:
            return  # a comment, or a field that says nothing to us
        try:
            documents = [json.loads(b"\n".join(lines))] if lines != [b"[DONE]"] else []
        except ValueError:
            # Some servers end events with one line break instead of two.
            documents = [json.loads(line) for line in lines if line and line != b"[DONE]"]
        for document in documents:
            if not isinstance(document, dict):
                raise TypeError(f"expected an object, found {json.dumps(document)[:60]}")
            self._take(when, document, block if len(documents) == 1 else b"")

    def _take(self, when: float, document: dict[str, Any], block: bytes) -> None:
        output = self._output
        if document.get("error"):
            output.error = json.dumps(document["error"], ensure_ascii=False)
        usage = document.get("usage")
        if usage:
            output.usage = dict(usage)
        choices = document.get("choices") or []
        for choice in choices:
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content")
            if text or any(delta.get(key) for key in _OUTPUT_KEYS):
                output.times.append(when)
                output.has_calls |= bool(delta.get("tool_calls"))
            if isinstance(text, str) and text:
                output.text.append(json.dumps(text)[1:-1].encode())
            if choice.get("finish_reason"):
                output.finish = (when, str(choice["finish_reason"]))
        only_text = (
            len(choices) == 1 and not usage and not document.get("error") and not choices[0].get("finish_reason")
        )
        if only_text and block:
            self._learn(block, choices[0])

    def _learn(self, block: bytes, choice: dict[str, Any]) -> None:
        """Keep the form of an event that is one choice with some text and nothing else that matters."""
        delta = choice.get("delta")
        key = b'"content":' if isinstance(delta, dict) else b'"text":'
        text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        others = [name for name in _OUTPUT_KEYS if name != "content" and isinstance(delta, dict) and delta.get(name)]
        if not isinstance(text, str) or not text or others or block.count(key) != 1 or block.count(b"\n"):
            return
        quote = block.find(b'"', block.index(key) + len(key))
        end = quote + 1
        while block[end] != 34:  # the closing quote
            end += 2 if block[end] == 92 else 1
        if block[block.index(key) + len(key) : quote].strip():
            return
        self._before, self._after = block[: quote + 1], block[end:]
