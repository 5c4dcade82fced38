"""A proxy on a Unix socket in front of `edge serve`, and what its record of a session says."""

import contextlib
import http.client
import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Exchange:
    """A request and its answer, as far as the client read it."""

    method: str
    path: str
    body: Any
    status: int = 0
    answer: str = ""
    whole: bool = False


@dataclass
class Record:
    """The exchanges of a session."""

    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def endpoints(self) -> list[str]:
        """The endpoints that the client posted to."""
        return sorted({one.path.split("?")[0] for one in self._posts})

    @property
    def _posts(self) -> list[Exchange]:
        return [one for one in self.exchanges if one.method == "POST"]

    @property
    def errors(self) -> list[str]:
        """Why the server refused requests or broke off. A prompt that is too long is no error of the protocol."""
        found: dict[str, None] = {}
        for one in self.exchanges:
            if one.status != 200 and "context_length_exceeded" not in one.answer:
                found[f"{one.method} {one.path}: {one.status} {one.answer[:300]}"] = None
            if one.status == 200:
                broken = [event for event in _events(one.answer) if event.get("error")]
                found |= {f"{one.path}: in the stream: {event}": None for event in broken}
        return list(found)

    @property
    def accepted(self) -> int:
        """Answered requests."""
        return sum(one.status == 200 for one in self._posts)

    @property
    def calls(self) -> int:
        """Answers with a call that the server wrote; their arguments are JSON objects, else a ValueError."""
        return sum(bool(_calls(one.answer)) for one in self._posts if one.whole)

    @property
    def results(self) -> int:
        """Requests that bring the result of a call back."""
        return sum(_has_result(one.body) for one in self._posts)


def _events(answer: str) -> Iterator[dict[str, Any]]:
    """The answer's JSON objects: of each event of a stream, or the one."""
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: ")] or [answer]
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def _calls(answer: str) -> list[str]:
    """The arguments of the calls in an answer."""
    found: dict[Any, str] = {}
    for event in _events(answer):
        for choice in event.get("choices") or []:
            part = choice.get("delta") or choice.get("message") or {}
            for call in part.get("tool_calls") or []:
                index = call.get("index", call.get("id"))
                found[index] = found.get(index, "") + (call["function"].get("arguments") or "")
        if event.get("type") == "response.completed":
            event = event["response"]
        for item in event.get("output") or []:
            if isinstance(item, dict) and item.get("type") == "function_call":
                found[item["call_id"]] = item["arguments"]
        for block in event.get("content") or []:
            if isinstance(block, dict) and block.get("type") == "tool_use":
                found[block["id"]] = json.dumps(block["input"])
        if event.get("type") == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            found[event["index"]] = found.get(event["index"], "") + event["delta"]["partial_json"]
    for text in found.values():
        if not isinstance(json.loads(text), dict):
            raise ValueError(f"arguments that are no object: {text}")
    return list(found.values())


def _has_result(body: Any) -> bool:
    if not isinstance(body, dict):
        return False
    messages = [
        *(body.get("messages") or []),
        *(body["input"] if isinstance(body.get("input"), list) else []),
    ]
    for message in messages:
        if message.get("role") == "tool" or str(message.get("type")).endswith("_call_output"):
            return True
        content = message.get("content")
        if message.get("role") == "user" and "Observation:" in json.dumps(content):
            return True  # smolagents
        if isinstance(content, list) and any(part.get("type") == "tool_result" for part in content):
            return True
    return False


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, Any]:
        return super().get_request()[0], ("client", 0)


@contextlib.contextmanager
def recording(place: Path, address: str, kept: Path) -> Iterator[Record]:
    """A proxy at the socket `place` to the server at `address` (host:port); `kept`: the file of the record."""
    record = Record()
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *values: object) -> None:
            pass

        def _pass_on(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            exchange = Exchange(self.command, self.path, _read(data))
            record.exchanges.append(exchange)
            server = http.client.HTTPConnection(address, timeout=900)
            left_out = ("host", "connection", "content-length", "accept-encoding")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            server.request(self.command, self.path, data, {**headers, "Content-Length": str(len(data))})
            answer = server.getresponse()
            exchange.status = answer.status
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "transfer-encoding",
                    "connection",
                    "content-length",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            got = bytearray()
            try:
                while part := answer.read1(65536):
                    got += part
                    self.wfile.write(part)
                    self.wfile.flush()
                exchange.whole = True
            except OSError:  # the client went away
                pass
            finally:
                exchange.answer = got.decode("utf-8", "replace")
                server.close()
                with lock, kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(exchange)) + "\n")

        do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = _pass_on

    place.unlink(missing_ok=True)
    with _Server(str(place), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield record
        server.shutdown()


def _read(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")
