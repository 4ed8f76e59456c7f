"""A model behind an address that somebody else looks after: a judge, a production server, a hosted API."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tunesmith.artifacts import Endpoint, Which
from tunesmith.errors import EvaluateError
from tunesmith.evaluate.client import is_loopback
from tunesmith.recipe.environment import expand
from tunesmith.track.console import say

_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 30.0
_WAIT_FOR_RETURN_SECONDS, _LOOK_EVERY_SECONDS = 60.0, 1.0


class External:
    """An endpoint we did not start.

    Args:
        url: with or without `/v1` at its end; may hold `${env:NAME}`.
        model: the name it is served under; empty for the only one that is.
        api_key: `${env:NAME}`, or empty.
        which: whose place it takes in a comparison.
        timeout_seconds: of a request there; an endpoint that went away is waited for as long, a minute at most.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str = "",
        *,
        which: Which = "tuned",
        timeout_seconds: float = _WAIT_FOR_RETURN_SECONDS,
    ) -> None:
        self._url, self._model, self._api_key, self._which = url, model, api_key, which
        self._wait_seconds = min(timeout_seconds, _WAIT_FOR_RETURN_SECONDS)
        self._was_there = False

    @property
    def identity(self) -> dict[str, str]:
        """What stands for the weights, which nobody outside can see: where they are and what they are called."""
        return {"url": root_url(self._url), "model": self._model}

    def endpoint(self) -> Endpoint:
        """Return the endpoint once it answers; one that did before is waited for.

        Raises:
            EvaluateError: nobody answers there, or the model is not served there.
        """
        url = root_url(expand(self._url))
        deadline = time.monotonic() + (self._wait_seconds if self._was_there else 0.0)
        told = False
        while True:
            served, problem = _served(url, expand(self._api_key))
            if not problem:
                break
            if self._was_there and not told:
                say(f"waiting for {url} to come back, for up to {self._wait_seconds:g} s")
                told = True
            if time.monotonic() >= deadline:
                do = "start the server, or correct the address"
                raise EvaluateError(f"nobody answers there: {problem}", where=url, do=do)
            time.sleep(_LOOK_EVERY_SECONDS)
        self._was_there = True
        return Endpoint(url, self._name(served, url), "external", self._which, api_key=self._api_key)

    def _name(self, served: list[str] | None, url: str) -> str:
        """Return the model's name, of a server that has one only without being told."""
        if self._model:
            return self._model
        if served is None or len(served) != 1:
            known = f"it serves {', '.join(served)}" if served else "it does not list its models"
            raise EvaluateError(f"which model is meant is not clear: {known}", where=url, do="name it with --model")
        return served[0]


def root_url(url: str) -> str:
    """Return the address without `/v1` or a slash at its end."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _served(url: str, api_key: str) -> tuple[list[str] | None, str]:
    """Return the names a server lists (None when it lists none), and why it cannot be reached; '' when it can."""
    timeout = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{url}/v1/models", timeout=timeout, headers=headers, trust_env=not is_loopback(url))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return None, f"{type(error).__name__}: {error}".rstrip(": ")
    try:
        listed: Any = response.json()["data"]
        return [str(entry["id"]) for entry in listed], ""
    except (ValueError, KeyError, TypeError):
        return None, ""
