"""Servers that keep a client waiting for ever, fill its memory, or count wrongly.

.venv/bin/pytest tests/replay/test_lying_servers.py
"""

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from edge.errors import BackendError
from edge.replay.client import Server, Written

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
# What a server sends first, and then again and again.
ENDLESS = {
    "the beginning of a header": (OK + b"X-", b"x"),
    "interim responses": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "the name of a chunk": (CHUNKED + b"1;", b"x"),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "the trailer of a whole answer": (CHUNKED + b"2\r\n{}\r\n0\r\nX-", b"x"),
    "an error": (CHUNKED.replace(b"200 OK", b"500 Oh"), b"1\r\n \r\n"),
}


@contextlib.contextmanager
def sending(first: bytes, again: bytes = b"") -> Iterator[str]:
    """A server that answers each request so. The value: its URL."""

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            seen = b""
            while b"\r\n\r\n" not in seen:
                seen += connection.recv(1 << 16)
            connection.sendall(first)
            while again and not ended.wait(0.02):
                connection.sendall(again)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            ended.set()


def asked(url: str, seconds: float) -> Written:
    """The answer of a server, from another thread: a client that waits for ever must not stop the tests."""
    found: list[Written | BaseException] = []

    def ask() -> None:
        try:
            with Server(url, timeout=seconds, pause=0.01) as server:
                found.append(server.chat({"messages": []}, time.monotonic() + seconds))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    assert found, "the client waits"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@pytest.mark.parametrize("name", ENDLESS)
def test_an_answer_that_never_ends(name: str) -> None:
    with (
        sending(*ENDLESS[name]) as url,
        pytest.raises(BackendError, match=r"no answer in 1 tries: no answer in"),
    ):
        asked(url, 0.5)


@pytest.mark.parametrize("times", [1, 2])
def test_a_small_answer_that_becomes_large(times: int) -> None:
    data = bytes(70 << 20)
    for _ in range(times):
        data = gzip.compress(data)
    coding = ", ".join(["gzip"] * times)
    head = f"Content-Encoding: {coding}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with sending(OK + head + data) as url, pytest.raises(BackendError, match=f"compressed .{coding}., which"):
        asked(url, 10)


@pytest.mark.parametrize("count", ["9" * 400, "-1", "1e300", "true", '"7"', "NaN"])
def test_counts_that_cannot_be(count: str) -> None:
    """A division by such a count ended the agent with a traceback."""
    answer = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 0}})
    data = answer.replace(": 0}", f": {count}}}").encode()
    with sending(OK + f"Content-Length: {len(data)}\r\n\r\n".encode() + data) as url:
        assert asked(url, 10) == Written("x", "", None, None, None)
