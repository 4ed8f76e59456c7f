"""Talking to what a run has made: `tunesmith serve` and `tunesmith chat`.

Answers go to stdout, everything about them to stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tunesmith.artifacts import Which
from tunesmith.chosen_model import Choice, choose_model, running
from tunesmith.errors import DataError, ServeError
from tunesmith.serve.process import ServerProcess
from tunesmith.track.console import say

_HELP = "/reset forgets the conversation · /result TEXT answers a call · /quit ends · Ctrl-C stops an answer"


def serve(run: str, output_dir: str, *, base: bool = False, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Serve a model in the foreground until Ctrl-C or SIGTERM.

    Raises:
        ServeError: the server did not start, or ended by itself.
    """
    which: Which = "base" if base else "tuned"
    choice = choose_model(run, output_dir, which, f"serve-{which}")
    say(f"starting {choice.model.name} ({choice.engine}) …")
    with _sigterm_as_interrupt():
        try:
            with running(choice, host=host, port=port) as server:
                print(_how_to_ask(server), flush=True)
                code = server.wait()
                what = f"the server ended with exit code {code}\n{server.last_lines()}"
                raise ServeError(what, where=str(server.log))
        except KeyboardInterrupt:
            say("stopped")
            return 0


def chat(
    run: str,
    output_dir: str,
    *,
    compare: bool = False,
    message: str | None = None,
    system: str | None = None,
    tools: str | None = None,
) -> int:
    """Talk to a run's tuned model, or to base and tuned in turn; `message` asks one thing and ends.

    Raises:
        ServeError: a server did not start, or refused the conversation.
        DataError: the file of tools cannot be read.
    """
    models: tuple[Which, ...] = ("base", "tuned") if compare else ("tuned",)
    declared = _read_tools(tools) if tools else []
    choices = [choose_model(run, output_dir, which, f"chat-{which}") for which in models]
    if message is not None:
        for choice in choices:
            # One after the other: two models may not fit into memory.
            with running(choice) as server:
                talk = Talk(server.url, server.model.name, declared, system)
                _label(choice, compare)
                _print_answer(talk.ask(message))
        return 0
    with contextlib.ExitStack() as stack:
        say("starting …")
        servers = [stack.enter_context(running(choice)) for choice in choices]
        talks = [Talk(server.url, server.model.name, declared, system) for server in servers]
        _converse(talks, choices)
    return 0


@dataclass
class Talk:
    """One conversation with one model.

    Args:
        url: of an OpenAI-compatible server, without /v1.
        model: the name it serves.
        tools: declarations on offer.
        system: system message.
    """

    url: str
    model: str
    tools: list[dict[str, Any]] = field(default_factory=list)
    system: str | None = None
    messages: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": _as_utf8(self.system)}] if self.system else []

    def ask(self, text: str) -> Iterator[str]:
        """Say something and yield the answer as it comes, calls made readable; the conversation then holds both."""
        return self._send({"role": "user", "content": _as_utf8(text)})

    def give_result(self, text: str) -> Iterator[str]:
        """Answer the oldest open call of the last turn and yield what the model says to it."""
        answered = {message.get("tool_call_id") for message in self.messages}
        calls = [call for message in self.messages for call in message.get("tool_calls", [])]
        open_call = next((call for call in calls if call["id"] not in answered), None)
        if open_call is None:
            return iter(["(no call waits for a result)"])
        result = {
            "role": "tool",
            "tool_call_id": open_call["id"],
            "name": open_call["function"]["name"],
            "content": _as_utf8(text),
        }
        return self._send(result)

    def _send(self, message: dict[str, Any]) -> Iterator[str]:
        request = {"model": self.model, "messages": [*self.messages, message], "stream": True}
        # Greedy, as the evaluation asks: what is seen here is what was measured.
        request |= {"temperature": 0} | ({"tools": self.tools} if self.tools else {})
        content, calls = "", dict[int, dict[str, Any]]()
        for delta in _deltas(f"{self.url}/v1/chat/completions", request):
            if delta.get("content"):
                content += delta["content"]
                yield delta["content"]
            for piece in delta.get("tool_calls") or []:
                _add_piece(calls.setdefault(piece["index"], {"type": "function", "function": {}}), piece)
        made = [calls[index] for index in sorted(calls)]
        if made:
            yield ("\n" if content else "") + "\n".join(shown_call(call) for call in made)
        answer = {"role": "assistant", "content": content} | ({"tool_calls": made} if made else {})
        self.messages += [message, answer]


def _as_utf8(text: str) -> str:
    """Return a text that can be sent: bytes of a terminal that were no UTF-8 come in as halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shown_call(call: dict[str, Any]) -> str:
    """Return a call as people write it: `→ book_train(station="Snoosnid", carriages=466)`."""
    function = call["function"]
    try:
        arguments = json.loads(function.get("arguments") or "{}")
        inside = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    except (ValueError, AttributeError):
        inside = function.get("arguments") or ""
    return f"→ {function.get('name')}({inside})"


def _add_piece(call: dict[str, Any], piece: dict[str, Any]) -> None:
    call |= {key: piece[key] for key in ("id", "type") if piece.get(key)}
    for key, text in (piece.get("function") or {}).items():
        call["function"][key] = call["function"].get(key, "") + (text or "")


def _deltas(url: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the deltas of a streamed answer.

    Raises:
        ServeError: the server refused, or went away.
    """
    try:
        with httpx.stream(
            "POST", url, json=request, timeout=httpx.Timeout(None, connect=10.0), trust_env=False
        ) as response:
            if response.status_code != 200:
                raise ServeError(f"the server refused: {_refusal(response)}", where=url)
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == line or data == "[DONE]":
                    continue
                document = json.loads(data)
                if "error" in document:
                    raise ServeError(str(document["error"].get("message")), where=url)
                yield from (choice["delta"] for choice in document["choices"])
    except (httpx.HTTPError, ValueError) as error:
        raise ServeError(f"the answer broke off: {error or type(error).__name__}", where=url) from None


def _refusal(response: httpx.Response) -> str:
    text = response.read().decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]


def _converse(talks: list[Talk], choices: list[Choice]) -> None:
    """Read lines until the end of input or /quit."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    say(_HELP)
    while (line := _read_line()) is not None and line != "/quit":
        if not line:
            continue
        if line == "/reset":
            for talk in talks:
                talk.reset()
        elif line == "/help" or (line.startswith("/") and not line.startswith("/result")):
            say(_HELP)
        elif len(talks) > 1 and sys.stdout.isatty():
            _answer_side_by_side(talks, line)
        else:
            for talk, choice in zip(talks, choices, strict=True):
                _label(choice, len(talks) > 1)
                _answer(talk, line)


def _speak(talk: Talk, line: str) -> Iterator[str]:
    if line.startswith("/result"):
        return talk.give_result(line.removeprefix("/result").strip())
    return talk.ask(line)


def _answer(talk: Talk, line: str) -> None:
    try:
        _print_answer(_speak(talk, line))
    except KeyboardInterrupt:
        print()
        say("(stopped)")
    except ServeError as error:
        say(error.render())


def _answer_side_by_side(talks: list[Talk], line: str) -> None:
    """Show what both say in two columns, as it comes; Ctrl-C leaves what is there."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = [""] * len(talks)
    stopped = threading.Event()

    def listen(number: int) -> None:
        try:
            for piece in _speak(talks[number], line):
                if stopped.is_set():
                    return  # with the answer, the question is forgotten
                texts[number] += piece
        except ServeError as error:
            texts[number] += f"\n{error.render()}"

    def table() -> Table:
        made = Table(*(talk.model for talk in talks), expand=True)
        made.add_row(*(Text(text) for text in texts))
        return made

    listeners = [threading.Thread(target=listen, args=(i,), daemon=True) for i in range(len(talks))]
    with Live(table(), console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        try:
            for listener in listeners:
                listener.start()
            while any(listener.is_alive() for listener in listeners):
                listeners[0].join(0.1)
                listeners[-1].join(0.05)
                live.update(table(), refresh=True)
        except KeyboardInterrupt:
            stopped.set()
            say("(stopped)")
        live.update(table(), refresh=True)


def _read_line() -> str | None:
    try:
        return input("\nyou> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _print_answer(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def _label(choice: Choice, is_one_of_two: bool) -> None:
    if is_one_of_two:
        print(f"[{choice.model.name}]", flush=True)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _how_to_ask(server: ServerProcess) -> str:
    body = json.dumps({"model": server.model.name, "messages": [{"role": "user", "content": "Hello"}]})
    return "\n".join(
        [
            f"{server.model.name} is served at {server.url}/v1  (log: {server.log}; Ctrl-C stops it)",
            f"  curl {server.url}/v1/chat/completions -H 'Content-Type: application/json' \\",
            f"    -d '{body}'",
        ]
    )


def _read_tools(file: str) -> list[dict[str, Any]]:
    try:
        declared = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the tools cannot be read: {error}", where=file, do="give a JSON list of declarations"
        ) from None
    if not isinstance(declared, list) or not all(isinstance(tool, dict) for tool in declared):
        raise DataError("the tools are no JSON list of objects", where=file, do="give OpenAI's form, or bare functions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in declared]
