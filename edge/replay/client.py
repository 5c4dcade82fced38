"""HTTP client for an OpenAI-compatible server: lists its models and requests answers, with retries."""

import os
import random
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx

from edge.answer.schema import SchemaFields
from edge.errors import BackendError
from edge.prompt import Message

KEY_VARIABLE = "OPENAI_API_KEY"
TRIES = 6
_LONGEST_WAIT = 60.0  # seconds between two tries; a longer Retry-After counts as a failure
_AGAIN = {408, 409, 425, 429}  # retried, like every status from 500
_ABSENT = {404, 405, 501}
_MOST = 64 << 20  # maximum bytes of a response


class Refused(BackendError):
    """The server refuses a request, and another try would not help. `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def absent(self) -> bool:
        """Whether the server does not have that address."""
        return self.status in _ABSENT


class Request(SchemaFields, total=False):
    """The JSON fields of a request for one answer. A prompt is token ids; a server's own names are included."""

    model: str
    max_tokens: int
    prompt: list[int]
    messages: list[Message]
    temperature: float
    top_p: float
    seed: int
    top_k: int
    min_p: float
    repeat_penalty: float
    repetition_penalty: float


@dataclass(frozen=True)
class Written:
    """An answer. The finish reason ("stop" or "length") and the token counts are None if the server sends none."""

    text: str
    thought: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Server:
    """A server at `base_url`; several threads can use it. The key from OPENAI_API_KEY is sent only to this server.

    `timeout` is the maximum time for an answer in seconds. `pause` is the time before the second try in seconds; it
    doubles before each later try. Raises BackendError for an invalid URL.
    """

    def __init__(
        self, base_url: str, *, timeout: float = 600.0, concurrency: int = 1, pause: float = 0.5
    ) -> None:
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError, ValueError):
            raise BackendError(f"{base_url}: is not a URL; use a URL like http://localhost:8000/v1") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise BackendError(
                f"{base_url}: is not an http or https URL; use a URL like http://localhost:8000/v1"
            )
        if url.userinfo or url.query or url.fragment:
            raise BackendError(
                f"the URL of {url.host} must not have a user name, query or fragment; put a key in {KEY_VARIABLE}"
            )
        path = url.path.rstrip("/")
        self.url = str(url.copy_with(path=path or "/v1"))
        self.pause = pause
        self._stopped = threading.Event()
        key = os.environ.get(KEY_VARIABLE, "").strip()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx.Limits(max_connections=concurrency + 1),
            follow_redirects=False,  # the key must not reach another server
        )

    def models(self) -> dict[str, str]:
        """The models of the server with their owner, which is different for vLLM and llama-server."""
        data = self.ask("GET", "models").get("data")
        names = [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []
        return {str(item["id"]): str(item.get("owned_by") or "") for item in names if item.get("id")}

    def version(self) -> str | None:
        """The version of vLLM or llama-server; None if the server does not report it."""
        root = self.url.removesuffix("/v1")
        for path, name in (("version", "version"), ("props", "build_info")):
            with suppress(httpx.HTTPError, ValueError):
                value = self._client.get(f"{root}/{path}", timeout=10.0).json()
                if isinstance(value, dict) and isinstance(value.get(name), str):
                    return str(value[name])
        return None

    def complete(self, request: Request) -> Written:
        """The answer to a request to `completions`."""
        return _written(self.ask("POST", "completions", request), self.url)

    def chat(self, request: Request) -> Written:
        """The answer to a request to `chat/completions`."""
        return _written(self.ask("POST", "chat/completions", request), self.url)

    def ask(self, method: str, path: str, request: Request | None = None) -> dict[str, Any]:
        """The JSON object that the server returns for a request, with up to TRIES tries.

        Raises Refused if another try would not help, and BackendError if all tries fail.
        """
        failed = ""
        for number in range(TRIES):
            if self._stopped.is_set():
                raise BackendError(f"{self.url}: stopped")
            wait = min(_LONGEST_WAIT, self.pause * 2**number) * random.uniform(0.75, 1.25)
            try:
                response = self._client.request(method, f"{self.url}/{path}", json=request)
            except httpx.HTTPError as error:
                failed = " ".join(str(error).split()) or type(error).__name__
            except RuntimeError:  # the client was closed in another thread
                raise BackendError(f"{self.url}: stopped") from None
            else:
                if response.is_success:
                    with suppress(ValueError):
                        value = response.json() if len(response.content) <= _MOST else None
                        if isinstance(value, dict):
                            return value
                    failed = f"its answer to {path} is not a JSON object"
                else:
                    failed = f"{response.status_code} {_message(response)}"
                    if response.status_code not in _AGAIN and response.status_code < 500:
                        raise Refused(
                            f"{self.url}: {path} was refused: {failed}{_advice(response)}",
                            response.status_code,
                        )
                    if response.status_code == 501:
                        raise Refused(f"{self.url}: {path} was refused: {failed}", 501)
                    delay = _retry_after(response)
                    if delay is not None and delay > _LONGEST_WAIT:
                        raise BackendError(
                            f"{self.url}: {failed}; the server asks to wait {delay:.0f} s before the next try"
                        )
                    wait = max(wait, delay or 0.0)
            if number + 1 < TRIES:
                self._stopped.wait(wait)
        raise BackendError(f"{self.url}: no answer in {TRIES} tries: {failed}")

    def close(self) -> None:
        """Send no more requests, and abandon those that wait for an answer."""
        self._stopped.set()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _written(value: Mapping[str, Any], url: str) -> Written:
    """The text of a completion or a chat. Raises BackendError if there is none."""
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if choice is None:
        raise BackendError(f"{url}: an answer has no choices")
    message = choice.get("message")
    source = message if isinstance(message, dict) else choice
    text = source.get("content" if source is message else "text")
    thought = source.get("reasoning_content") or source.get("reasoning")
    if not isinstance(text, str | None):
        raise BackendError(f"{url}: the text of an answer is not a string")
    reason = choice.get("finish_reason")
    usage = value.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    prompt, completion = (count if type(count) is int and count >= 0 else None for count in counts)
    return Written(
        text or "",
        thought if isinstance(thought, str) else "",
        reason if isinstance(reason, str) else None,
        prompt,
        completion,
    )


def _message(response: httpx.Response) -> str:
    """The error message of the server, in one line."""
    text = response.text[:2000]
    with suppress(ValueError):
        value = response.json()
        error = value.get("error", value) if isinstance(value, dict) else value
        message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
        text = str(message or text)
    text = re.sub(r"<[^>]*>", " ", text)  # an HTML page
    return " ".join(text.split())[:300] or response.reason_phrase


def _advice(response: httpx.Response) -> str:
    return f" (is the key in {KEY_VARIABLE} right?)" if response.status_code in (401, 403) else ""


def _retry_after(response: httpx.Response) -> float | None:
    """The Retry-After header in seconds, from a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    with suppress(ValueError, TypeError):
        date = parsedate_to_datetime(value)
        return max(0.0, (date - datetime.now(date.tzinfo or UTC)).total_seconds())
    return None
