"""HTTP client for an OpenAI-compatible server: lists its models and requests answers, with retries."""

import json
import math
import os
import random
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from edge.answer.schema import SchemaFields
from edge.errors import BackendError
from edge.prompt import Message
from edge.system.hosts import leads_here
from edge.system.places import read_text

KEY_VARIABLE = "OPENAI_API_KEY"
TRIES = 6
_LONGEST_WAIT = 60.0  # seconds between two tries; a longer Retry-After counts as a failure
_NO_PROXY = dict.fromkeys(("all://", "http://", "https://"))  # instead of those of the environment
_AGAIN = {408, 409, 425, 429}  # retried, like every status from 500
_ABSENT = {404, 405, 501}
_MOST = 64 << 20  # maximum bytes of a response
_STREAM = "text/event-stream"
_MOST_KEY = 4096  # maximum characters of a key
_MOST_TOKENS = 10**9  # of a prompt or an answer, as a server may count them


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
    chat_template_kwargs: dict[str, bool]


@dataclass(frozen=True)
class Written:
    """An answer. The finish reason ("stop" or "length") and the token counts are None if the server sends none."""

    text: str
    thought: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class _Response:
    """A whole response. `kind`: its content type, without parameters."""

    status: int
    headers: httpx.Headers
    data: bytes

    @property
    def kind(self) -> str:
        return str(self.headers.get("Content-Type", "")).partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The JSON value. Raises ValueError."""
        try:
            return json.loads(self.data)
        except RecursionError:
            raise ValueError("too deep") from None


def read_key(path: Path | None) -> str:
    """The key for a server: the text of a file, else OPENAI_API_KEY; empty if there is none.

    Raises BackendError or ReplayError, never with the key, if it cannot be read or is not a key.
    """
    source = KEY_VARIABLE if path is None else str(path)
    key = (os.environ.get(KEY_VARIABLE, "") if path is None else read_text(path)).strip()
    if path is not None and not key:
        raise BackendError(f"{source}: is empty: write the key of the server into it")
    if len(key) > _MOST_KEY or not re.fullmatch("[!-~]*", key):
        raise BackendError(f"{source}: is not a key: a key is one word of ASCII characters")
    return key


class Server:
    """A server at `base_url`; several threads can use it. Its key (see `read_key`) is sent only to this server.

    `timeout` is the maximum time for an answer in seconds. `pause` is the time before the second try in seconds; it
    doubles before each later try. `key_file`: the file of the key. Raises BackendError for an invalid URL or key.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = 600.0,
        pause: float = 0.5,
        key_file: Path | None = None,
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
        self._sockets = weakref.WeakSet[socket.socket]()
        self._timeout = timeout
        self._key = read_key(key_file)
        self._key_source = str(key_file or KEY_VARIABLE)
        self._own = threading.local()
        self._lines: list[_Line] = []

    def models(self) -> dict[str, str]:
        """The models of the server with their owner, which is different for vLLM and llama-server."""
        data = self.ask("GET", "models").get("data")
        names = [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []
        return {str(item["id"]): str(item.get("owned_by") or "") for item in names if item.get("id")}

    def version(self) -> str | None:
        """The version of vLLM or llama-server; None if the server does not report it."""
        root = self.url.removesuffix("/v1")
        for path, name in (("version", "version"), ("props", "build_info")):
            with suppress(httpx.HTTPError, BackendError, ValueError):
                value = self._exchange("GET", f"{root}/{path}", None, time.monotonic() + 10.0).json()
                if isinstance(value, dict) and isinstance(value.get(name), str):
                    return str(value[name])
        return None

    @property
    def open_key(self) -> bool:
        """Whether the key goes over a network without encryption."""
        url = httpx.URL(self.url)
        return bool(self._key) and url.scheme == "http" and not leads_here(url.host)

    def complete(self, request: Request, end: float = math.inf) -> Written:
        """The answer to a request to `completions`; `end` as in `ask`."""
        return _written(self.ask("POST", "completions", request, end), self.url)

    def chat(self, request: Request, end: float = math.inf) -> Written:
        """The answer to a request to `chat/completions`; `end` as in `ask`."""
        return _written(self.ask("POST", "chat/completions", request, end), self.url)

    def ask(
        self, method: str, path: str, request: Request | None = None, end: float = math.inf
    ) -> dict[str, Any]:
        """The JSON object that the server returns for a request, with up to TRIES tries.

        `end`: the time.monotonic() at which it stops. Raises Refused if another try would not help, and BackendError
        if all tries fail or the time has ended.
        """
        failed = ""
        for number in range(TRIES):
            if self._stopped.is_set():
                raise BackendError(f"{self.url}: stopped")
            wait = min(_LONGEST_WAIT, self.pause * 2**number) * random.uniform(0.75, 1.25)
            until = min(end, time.monotonic() + self._timeout)
            try:
                response = self._exchange(method, f"{self.url}/{path}", request, until)
            except httpx.TimeoutException as error:
                late = isinstance(error, httpx.ReadTimeout)
                failed = f"no answer in {self._timeout:.0f} s" if late else "the connection timed out"
            except httpx.HTTPError as error:
                failed = " ".join(str(error).split()) or type(error).__name__
            except RuntimeError:  # the client was closed in another thread
                raise BackendError(f"{self.url}: stopped") from None
            else:
                if 200 <= response.status < 300:
                    with suppress(ValueError):
                        value = response.json()
                        if isinstance(value, dict):
                            return value
                    failed = f"its answer to {path} is not a JSON object{self._kind_of(response)}"
                else:
                    failed = f"{response.status} {self._message(response)}"
                    # llama-cpp-python's server calls a field that it does not know an internal error.
                    if (
                        response.status == 500
                        and request
                        and "response_format" in request
                        and "response_format" in failed
                    ):
                        raise Refused(f"{self.url}: {path} was refused: {failed}", response.status)
                    wait = max(wait, self._delay(response, path, failed))
            if time.monotonic() + wait > end:
                break
            if number + 1 < TRIES:
                self._stopped.wait(wait)
        raise BackendError(f"{self.url}: no answer in {number + 1} tries: {failed}")

    def _exchange(self, method: str, url: str, request: Request | None, end: float) -> _Response:
        """The whole response to one request, read until `end`. Raises httpx.HTTPError, or BackendError if too large."""
        left = max(end - time.monotonic(), 0.001)
        limits = httpx.Timeout(left, connect=min(left, 10.0))
        data = bytearray()
        line = self._line()
        watched = {"trace": partial(self._keep_socket, line)}
        sent = line.client.stream(method, url, json=request, timeout=limits, extensions=watched)
        with _ended_at(end, line), sent as response:
            if response.is_success and response.headers.get("Content-Type", "").startswith(_STREAM):
                raise Refused(f"{self.url}: it sends a stream ({_STREAM}), which edge did not ask for", 200)
            if coding := response.headers.get(
                "Content-Encoding", ""
            ):  # it can be small and become very large
                raise Refused(
                    f"{self.url}: it sends its answer compressed ({self.without_key(coding)[:40]}), "
                    "which edge did not ask for",
                    200,
                )
            for piece in response.iter_raw():
                data += piece
                if len(data) > _MOST:
                    raise Refused(f"{self.url}: its answer is larger than {_MOST >> 20} MiB", 200)
        return _Response(response.status_code, response.headers, bytes(data))

    def _line(self) -> "_Line":
        """The line of this thread."""
        line: _Line | None = getattr(self._own, "line", None)
        if line is None:
            headers, url = {"Accept-Encoding": "identity"}, httpx.URL(self.url)
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            client = httpx.Client(
                headers=headers,
                limits=httpx.Limits(max_connections=1),
                follow_redirects=False,  # the key must not reach another server
                mounts=_NO_PROXY if leads_here(url.host) else None,  # a proxy would see the key
            )
            self._own.line = line = _Line(client)
            self._lines.append(line)
            if self._stopped.is_set():  # `close` may not have seen it
                client.close()
        return line

    def _delay(self, response: _Response, path: str, failed: str) -> float:
        """Seconds that the server asks to wait after a failure. Raises Refused if another try would not help."""
        status = response.status
        if status == 501 or (status not in _AGAIN and status < 500):
            raise Refused(f"{self.url}: {path} was refused: {failed}{self._advice(response)}", status)
        delay = _retry_after(response) or 0.0
        if delay > _LONGEST_WAIT:
            raise BackendError(
                f"{self.url}: {failed}; the server asks to wait {delay:.0f} s before the next try"
            )
        return delay

    def _message(self, response: _Response) -> str:
        """The error message of the server in one line, without the key."""
        text = response.data[:2000].decode(errors="replace")
        with suppress(ValueError):
            value = response.json()
            error = value.get("error", value) if isinstance(value, dict) else value
            message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
            text = str(message or text)
        text = re.sub(r"<[^>]*>", " ", self.without_key(text))  # an HTML page
        return " ".join(text.split())[:300] or httpx.codes.get_reason_phrase(response.status)

    def _advice(self, response: _Response) -> str:
        """What a person can do about a refusal."""
        if response.status in (401, 403):
            return f" (is the key in {self._key_source} right?)"
        if 300 <= response.status < 400:
            place = self.without_key(response.headers.get("Location", "another address"))[:200]
            return f" (it redirects to {place}, which edge does not follow: give the server's own URL)"
        if response.status == 404:
            return " (does the URL end as the server's documentation says, for example with /v1?)"
        return ""

    def _keep_socket(self, line: "_Line", event: str, details: Mapping[str, Any]) -> None:
        """Remember the socket of a new connection, for `close`."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            one = details["return_value"].get_extra_info("socket")
            self._sockets.add(one)
            line.socket = one
            if self._stopped.is_set():  # `close` may not have seen it
                _shut(one)

    def _kind_of(self, response: _Response) -> str:
        """The content type of a response that is not JSON, as a part of a message."""
        return (
            ""
            if response.kind in ("", "application/json")
            else f" but {self.without_key(response.kind)[:100]}"
        )

    def without_key(self, text: str) -> str:
        """A text of the server as a part of a message: a server can repeat the key in each of them."""
        return re.sub(re.escape(self._key), "[the key]", text, flags=re.IGNORECASE) if self._key else text

    def close(self) -> None:
        """Send no more requests, and abandon those that wait for an answer."""
        self._stopped.set()
        for one in list(self._sockets):  # closing a socket does not wake the thread that reads from it
            _shut(one)
        for line in list(self._lines):
            line.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Line:
    """What one thread sends its requests with. `socket`: that of its only connection."""

    client: httpx.Client
    socket: "socket.socket | None" = None


@contextmanager
def _ended_at(end: float, line: _Line) -> Iterator[None]:
    """Ends the connection of a line at `end`: while a server sends a byte now and then, no read times out.

    Raises httpx.ReadTimeout then.
    """
    late = threading.Event()

    def stop() -> None:
        late.set()
        if line.socket is not None:
            _shut(line.socket)

    timer = threading.Timer(max(end - time.monotonic(), 0.001), stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except httpx.TransportError:
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise httpx.ReadTimeout("the answer takes too long")


def _shut(connection: socket.socket) -> None:
    """End a connection, also a read that waits in another thread."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


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
    prompt, completion = (
        count if type(count) is int and 0 <= count <= _MOST_TOKENS else None for count in counts
    )
    return Written(
        text or "",
        thought if isinstance(thought, str) else "",
        reason if isinstance(reason, str) else None,
        prompt,
        completion,
    )


def _retry_after(response: _Response) -> float | None:
    """The Retry-After header in seconds, from a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    with suppress(ValueError, TypeError):
        date = parsedate_to_datetime(value)
        return max(0.0, (date - datetime.now(date.tzinfo or UTC)).total_seconds())
    return None
