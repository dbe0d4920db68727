"""The little of OpenAI's HTTP interface that a canary needs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Self

import requests

from envbuilder.errors import SmokeError

_SHOWN = 300  # characters of an answer that is none


@dataclass(frozen=True, kw_only=True)
class Answer:
    text: str
    tokens: int
    seconds: float


class Client:
    """Asks one server for one model. No proxy and no netrc: the server is on this machine."""

    def __init__(self, url: str, model: str, *, timeout_s: float) -> None:
        self._url, self._model, self._timeout_s = url, model, timeout_s
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def ready(self) -> bool:
        """Whether the server answers and has this very model: another server may have taken the port."""
        try:
            reply = self._session.get(f"{self._url}/v1/models", timeout=5)
            return reply.status_code == requests.codes.ok and self._model in {entry["id"] for entry in reply.json()["data"]}
        except (requests.RequestException, ValueError, LookupError, TypeError):
            return False

    def complete(self, prompt: str, *, most_tokens: int, to_the_end: bool = True) -> Answer:
        """Greedy completion; with `to_the_end` false, the model goes on past its end until `most_tokens`."""
        body = {"prompt": prompt, "max_tokens": most_tokens, "temperature": 0, "ignore_eos": not to_the_end}
        return self._ask("/v1/completions", body, lambda choice: choice["text"])

    def chat(self, prompt: str, *, most_tokens: int) -> Answer:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": most_tokens, "temperature": 0}
        return self._ask("/v1/chat/completions", body, lambda choice: choice["message"]["content"])

    def _ask(self, path: str, body: dict[str, Any], text_of: Any) -> Answer:  # noqa: ANN401 - JSON in, text out
        started = time.monotonic()
        try:
            reply = self._session.post(self._url + path, json={"model": self._model, **body}, timeout=self._timeout_s)
        except requests.RequestException as error:
            raise SmokeError(f"the server did not answer POST {path}", why=f"{type(error).__name__}: {error}") from error
        if reply.status_code != requests.codes.ok:
            raise SmokeError(f"the server answered POST {path} with {reply.status_code}", why=reply.text[:_SHOWN].strip())
        try:
            data = reply.json()
            text, tokens = text_of(data["choices"][0]) or "", int(data["usage"]["completion_tokens"])
        except (ValueError, LookupError, TypeError) as error:
            raise SmokeError(f"the server's answer to POST {path} is not a completion", why=reply.text[:_SHOWN].strip()) from error
        return Answer(text=text, tokens=tokens, seconds=time.monotonic() - started)
