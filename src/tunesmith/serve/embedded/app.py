"""The HTTP side: requests in, answers out, one event loop.

`/health`, `/v1/models`, `/v1/chat/completions`, `/v1/completions`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.serve.embedded import asgi
from tunesmith.serve.embedded.batch import Batch, Delivery
from tunesmith.serve.embedded.chat_api import ChatExchange
from tunesmith.serve.embedded.checkpoint import Checkpoint
from tunesmith.serve.embedded.completion_api import CompletionExchange
from tunesmith.serve.embedded.requests import BadRequest
from tunesmith.serve.embedded.sequence import Answer, Output
from tunesmith.tokens.jinja import TemplateProblem


class Desk:
    """Hands answers to the batch and brings back what they gain, from the thread into the event loop."""

    def __init__(self, batch: Batch) -> None:
        self._loop = asyncio.get_running_loop()
        self._inboxes: dict[Answer, asyncio.Queue[tuple[Answer, Output]]] = {}
        self.batch = batch
        batch.deliver = self._deliver

    async def outputs(self, answers: list[Answer]) -> AsyncIterator[list[tuple[int, Output]]]:
        """Yield what the answers gain, by their index, until all are done; give up the rest when closed early."""
        inbox: asyncio.Queue[tuple[Answer, Output]] = asyncio.Queue()
        index = {answer: i for i, answer in enumerate(answers)}
        self._inboxes |= dict.fromkeys(answers, inbox)
        unfinished = set(answers)
        self.batch.submit(answers)
        try:
            while unfinished:
                gained = [await inbox.get()]
                while not inbox.empty():
                    gained.append(inbox.get_nowait())
                unfinished -= {answer for answer, output in gained if output.finish_reason or output.error}
                yield [(index[answer], output) for answer, output in gained]
        finally:
            for answer in answers:
                self._inboxes.pop(answer, None)
                if answer in unfinished:
                    self.batch.cancel(answer)

    def _deliver(self, delivery: Delivery) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._sort, delivery)

    def _sort(self, delivery: Delivery) -> None:
        for answer, output in delivery:
            inbox = self._inboxes.get(answer)
            if inbox is not None:
                inbox.put_nowait((answer, output))


Exchange = ChatExchange | CompletionExchange


class App:
    """The ASGI application.

    Args:
        checkpoint: what answers.
        name: the model's name in requests.
        batch: where answers are made; another thread runs it.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, batch: Batch) -> None:
        self._checkpoint, self._name, self._batch = checkpoint, name, batch
        self._created = int(time.time())
        self._desk: Desk | None = None

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: asgi.Receive, send: asgi.Send) -> None:
        await receive()
        self._desk = Desk(self._batch)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        started = time.monotonic()
        method, path = scope["method"], scope["path"].rstrip("/")
        status, note = 200, ""
        refusal: BadRequest | None = None
        reply = asgi.Reply(send)
        try:
            note = await self._route(method, path, receive, reply)
        except asgi.Gone:
            status, note = 499, "client left"
        except BadRequest as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 - the client gets an answer, the log gets the reason, the server lives
            refusal = BadRequest(f"{type(error).__name__}: {error}", status=500)
        if refusal is not None:
            status, note = refusal.status, refusal.message
            await asgi.send_error(reply, status, refusal.body())
        if path != "/health":
            _log(f"{method} {path} {status} {time.monotonic() - started:.3f}s {' '.join(note.split())[:200]}".rstrip())

    async def _route(self, method: str, path: str, receive: asgi.Receive, send: asgi.Send) -> str:
        """Answer a request; return what the log should say about it."""
        if method == "GET" and path == "/health":
            await asgi.send_json(send, 200, {"status": "ok"})
        elif method == "GET" and path == "/v1/models":
            await asgi.send_json(send, 200, {"object": "list", "data": [self._model_card()]})
        elif method == "GET" and path.startswith("/v1/models/"):
            self._check_model(path.removeprefix("/v1/models/"))
            await asgi.send_json(send, 200, self._model_card())
        elif path in ("/v1/chat/completions", "/v1/completions"):
            if method != "POST":
                raise BadRequest(f"{path} takes POST.", status=405)
            return await self._answer(self._exchange(path, await _json_body(receive)), receive, send)
        else:
            raise BadRequest(f"There is no {method} {path} here.", status=404, code="not_found")
        return ""

    def _model_card(self) -> dict[str, Any]:
        length = self._checkpoint.max_model_len
        card = {"id": self._name, "object": "model", "created": self._created, "owned_by": "tunesmith"}
        return card | {"max_model_len": length}

    def _check_model(self, name: Any) -> None:
        if name is None:
            raise BadRequest(f"model is missing: this server has {self._name!r}.", param="model")
        if name != self._name:
            message = f"The model {str(name)[:100]!r} does not exist here: this server has {self._name!r}."
            raise BadRequest(message, param="model", status=404, code="model_not_found")

    def _exchange(self, path: str, document: Any) -> Exchange:
        if isinstance(document, dict):
            self._check_model(document.get("model"))
        try:
            if path == "/v1/chat/completions":
                return ChatExchange(self._checkpoint, self._name, document)
            return CompletionExchange(self._checkpoint, self._name, document)
        except TemplateProblem as error:
            raise BadRequest(str(error), param="messages") from None
        except TunesmithError as error:
            raise BadRequest(error.what, param="messages") from None

    async def _answer(self, exchange: Exchange, receive: asgi.Receive, send: asgi.Send) -> str:
        work = self._stream(exchange, send) if exchange.wish.stream else self._whole(exchange, send)
        await asgi.unless_gone(receive, work)
        usage = exchange.usage
        return f"{usage.num_prompt}+{usage.num_completion} tokens"

    async def _whole(self, exchange: Exchange, send: asgi.Send) -> None:
        assert self._desk is not None
        async for gained in self._desk.outputs(exchange.answers):
            for index, output in gained:
                if output.error:
                    raise BadRequest(output.error, status=500)
                exchange.add(index, output)
        await asgi.send_json(send, 200, exchange.whole())

    async def _stream(self, exchange: Exchange, send: asgi.Send) -> None:
        assert self._desk is not None
        await asgi.start_events(send)
        await asgi.send_events(send, exchange.opening())
        async for gained in self._desk.outputs(exchange.answers):
            events: list[Any] = []
            for index, output in gained:
                events += [BadRequest(output.error, status=500).body()] if output.error else exchange.add(index, output)
            if events:
                await asgi.send_events(send, events)
        await asgi.send_events(send, exchange.closing())
        await asgi.end_events(send)


async def _json_body(receive: asgi.Receive) -> Any:
    try:
        body = await asgi.read_body(receive)
        document = json.loads(body)
        if b"\\ud" in body.lower():
            json.dumps(document, ensure_ascii=False).encode()  # an escape may leave half of a surrogate pair
        return document
    except asgi.TooLarge:
        raise BadRequest(f"The body is larger than {asgi.MAX_BODY_BYTES >> 20} MiB.", status=413) from None
    except UnicodeEncodeError:
        raise BadRequest("The body holds half of a surrogate pair, which is no text.") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}") from None


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
